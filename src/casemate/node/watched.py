"""What the doctor says of flow records, the pods' resolver, and operators of projects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.host import operators
from casemate.spec.api import FindingRow

if TYPE_CHECKING:
    from casemate.node.node import Node

_AGAIN = "It is tried again by itself; the journals of casemated and casemate-hostd say why it fails."


def findings(node: Node) -> list[FindingRow]:
    """A line each, with what was lost."""
    return [_flows(node), _names(node), *_operators(node)]


def _operators(node: Node) -> list[FindingRow]:
    """Names of operators and administrators that nobody has: they open nothing, and may be meant for somebody."""
    found = operators.unknown(node.core.settings)
    if not found:
        return []
    return [
        FindingRow(
            "operators", "warning", f"nobody on this host is called so: {', '.join(found[:10])}",
            "Correct projects.operators and projects.administrators in /etc/casemate/casemate.toml.",
        )
    ]  # fmt: skip


def _flows(node: Node) -> FindingRow:
    counters = node.flows.counters()
    if not counters.capacity:
        return FindingRow("flows", "note", "nothing is recorded: flows.records is 0")
    if not counters.watching:
        return FindingRow("flows", "warning", "nobody records flows at this time", _AGAIN)
    if counters.overruns or counters.lost_log:
        lost = f"{counters.overruns} overruns, {counters.lost_log} packets of the log lost since the recorder began"
        return FindingRow("flows", "note", f"{counters.recorded} records; {lost}")
    return FindingRow("flows", "ok", f"{counters.recorded} records since the recorder began, none lost")


def _names(node: Node) -> FindingRow:
    if not node.names.working:
        severity = "warning" if node.names.enabled else "note"
        return FindingRow("names", severity, "the pods' resolver does not answer at this time", _AGAIN)
    counters = node.names.counters
    if counters.failed > 10 and counters.failed * 2 > counters.forwarded:
        return FindingRow(
            "names", "warning", f"{counters.failed} of {counters.forwarded} questions to the host's resolvers failed",
            "Look at /etc/resolv.conf, or set network.dns.",
        )  # fmt: skip
    return FindingRow("names", "ok", f"the pods' resolver answered {counters.queries} questions")
