"""Everything that is counted on this node, as samples; and as Prometheus' text.

Names and labels are few and fixed: no name of a workload, an address or a stranger becomes a label, so that the number
of series does not grow with what happens. Source: the Prometheus text format 0.0.4; OpenMetrics 1.0 for names.
"""

from __future__ import annotations

import os
import resource
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from casemate.spec.errors import CasemateError

if TYPE_CHECKING:
    from casemate.node.node import Node

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Sample:
    """One value. A counter only grows while the process lives; a gauge is what is now."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()


async def samples(node: Node) -> list[Sample]:
    """What is counted now."""
    found = await node.core.db.read(_containers)
    found += _flows(node)
    found += _names(node)
    found += await _firewall(node)
    found += _policy(node)
    found += _process(node)
    return found


def _containers(db: sqlite3.Connection) -> list[Sample]:
    counts = dict(db.execute("SELECT status, count(*) FROM containers GROUP BY status").fetchall())
    states = ("created", "starting", "running", "paused", "stopping", "restarting", "exited", "removing", "broken")
    found = [
        Sample("casemate_containers", "gauge", "Containers by state.", counts.get(state, 0), (("state", state),))
        for state in states
    ]
    pods = db.execute("SELECT count(*) FROM pods").fetchone()[0]
    return [*found, Sample("casemate_pods", "gauge", "Pods, those of lone containers too.", pods)]


def _flows(node: Node) -> list[Sample]:
    counters = node.flows.counters()
    told = {
        "recorded": "Flow records begun.", "ended": "Connections whose end was seen.",
        "denied": "Refused packets that were seen.", "audited": "Audited packets that were seen.",
        "lost_log": "Refused or audited packets that the kernel could not keep.",
        "overruns": "Times that more connections began or ended than could be read.",
        "broken": "Messages of the kernel that could not be read.",
        "unruled": "Records without the rule that decided.", "names_seen": "Server names that TLS showed.",
    }  # fmt: skip
    found = [
        Sample(f"casemate_flows_{name}_total", "counter", text, getattr(counters, name)) for name, text in told.items()
    ]
    return [*found, Sample("casemate_flows_watching", "gauge", "Whether flows are recorded now.", counters.watching)]


def _names(node: Node) -> list[Sample]:
    counts = msgspec.structs.asdict(node.names.counters)
    found = [
        Sample("casemate_dns_total", "counter", "Questions of pods and what became of them.", value, (("what", name),))
        for name, value in counts.items()
    ]
    return [*found, Sample("casemate_dns_up", "gauge", "Whether the pods' resolver answers.", node.names.working)]


async def _firewall(node: Node) -> list[Sample]:
    try:
        state = await node.core.policy.firewall.state()
    except CasemateError:
        return [Sample("casemate_hostd_up", "gauge", "Whether casemate-hostd answers.", 0)]
    found = [Sample("casemate_hostd_up", "gauge", "Whether casemate-hostd answers.", 1)]
    found += [
        Sample("casemate_firewall_total", "counter", "Packets or connections by what became of them.", value,
               (("what", name),))
        for name, value in sorted(state.counters.items())
    ]  # fmt: skip
    found += [
        Sample("casemate_firewall_elements", "gauge", "Elements of the firewall's maps.", value, (("map", name),))
        for name, value in sorted(state.elements.items())
    ]
    found.append(Sample("casemate_firewall_waiting", "gauge", "Packets that wait for an answer.", state.waiting))
    return found


def _policy(node: Node) -> list[Sample]:
    state = node.core.policy.state()
    return [
        Sample("casemate_policy_rules", "gauge", "Rules in force.", state.rules),
        Sample("casemate_policy_identities", "gauge", "Identities that the firewall knows.", state.identities),
        Sample("casemate_policy_enforced", "gauge", "Whether the firewall holds the policy.", state.enforced),
    ]


def _process(node: Node) -> list[Sample]:
    own = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return [
        Sample("process_cpu_seconds_total", "counter", "CPU time of casemated.", own.ru_utime + own.ru_stime),
        Sample("process_resident_memory_bytes", "gauge", "Memory of casemated.", pages * os.sysconf("SC_PAGE_SIZE")),
        Sample("process_open_fds", "gauge", "Open descriptors of casemated.", sum(1 for _ in _descriptors())),
        Sample("casemate_event_watchers", "gauge", "Clients that watch events.", node.core.events.watchers),
    ]


def _descriptors() -> Iterator[Path]:
    return Path("/proc/self/fd").iterdir()


def text(found: list[Sample]) -> str:
    """*found* in Prometheus' text format; samples of one name stand together."""
    lines: list[str] = []
    last = ""
    for one in found:
        if one.name != last:
            lines += [f"# HELP {one.name} {one.help}", f"# TYPE {one.name} {one.kind}"]
            last = one.name
        labels = ",".join(f'{key}="{_escaped(value)}"' for key, value in one.labels)
        lines.append(f"{one.name}{'{' + labels + '}' if labels else ''} {_number(one.value)}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
