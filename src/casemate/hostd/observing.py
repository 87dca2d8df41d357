"""What hostd has, as the kernel shows it: pages of pods, figures, processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from casemate.host import pidfd
from casemate.hostd import pods
from casemate.hostd.context import Context
from casemate.hostd.protocol import (
    ContainerState,
    ContainerUsage,
    Observed,
    ObservedContainer,
    ObservedPod,
    Processes,
    ProcessRow,
    Stats,
)
from casemate.hostd.state import Container, Pod
from casemate.isolation.level import InnerUsage
from casemate.spec.errors import CasemateError

_TICKS_S = os.sysconf("SC_CLK_TCK")
_MAX_ROWS = 1000
_MAX_COMMAND_BYTES = 512


def observe(context: Context, after: str, limit: int) -> Observed:
    """The *limit* pods whose ids follow *after*."""
    ids = sorted(one for one in context.state.pods if one > after)
    page = ids[:limit]
    found = tuple(_pod(context, context.state.pods[one]) for one in page)
    return Observed(found, page[-1] if len(ids) > limit else "")


def _pod(context: Context, pod: Pod) -> ObservedPod:
    found = tuple(_container(context, pod, one) for one in pod.containers.values() if one.record.phase != "removing")
    return ObservedPod(pod.id, pod.record.spec.network.address, pod.record.first_id, found)


def _container(context: Context, pod: Pod, container: Container) -> ObservedContainer:
    record = container.record
    state: ContainerState = "broken"
    match record.phase:
        case "created" | "exited":
            state = record.phase
        case "running":
            state = "paused" if is_paused(context, pod, container) else "running"
        case _:
            pass
    return ObservedContainer(
        id=container.id,
        state=state,
        pid=record.process.pid if record.process else 0,
        exit_code=record.exit_code,
        oom_killed=record.oom_killed,
        started_at=record.started_at,
        finished_at=record.finished_at,
        reason=record.reason,
    )


def is_paused(context: Context, pod: Pod, container: Container) -> bool:
    """Whether all of a container that runs is stopped."""
    level = context.levels.get(pod.record.spec.level)
    if level is not None and level.inside is not None:
        return level.inside.is_paused(container.id)
    return context.cgroups.is_frozen(f"{context.pod_cgroup(pod.id)}/{container.id}")


async def stats(context: Context, wanted: tuple[str, ...]) -> Stats:
    """The figures of those of *wanted* that run."""
    found = []
    for one in wanted:
        container = context.state.containers.get(one)
        if container is not None and container.record.phase == "running":
            found.append(await _figures(context, container))
    return Stats(time.time_ns(), tuple(found))


async def _figures(context: Context, container: Container) -> ContainerUsage:
    pod = context.state.pods[container.record.spec.pod]
    level = context.levels.get(pod.record.spec.level)
    if level is None or level.inside is None:
        return _usage(context, container)
    try:
        figures = await level.inside.usage(container.id)
    except CasemateError:
        # It ends at this moment, or its guest does not answer: neither keeps the others' figures back.
        figures = InnerUsage(0, 0, 0, 0, 0, 0, 0)
    received, sent = 0, 0
    if level.features.network == "tap" or level.features.takes_address:
        received, sent = _link_bytes(pods.interface(context, pod))
    else:
        received, sent = _network(container)
    return ContainerUsage(
        id=container.id,
        cpu_ns=figures.cpu_ns,
        memory_bytes=figures.memory_bytes,
        memory_limit_bytes=figures.memory_limit_bytes,
        pids=figures.pids,
        pids_limit=figures.pids_limit,
        read_bytes=figures.read_bytes,
        write_bytes=figures.write_bytes,
        rx_bytes=received,
        tx_bytes=sent,
    )


def _link_bytes(interface: str) -> tuple[int, int]:
    """(received, sent) by the pod: what the host sends through its end of the link, the pod receives."""
    folder = Path(f"/sys/class/net/{interface}/statistics")
    try:
        return int((folder / "tx_bytes").read_text()), int((folder / "rx_bytes").read_text())
    except (OSError, ValueError):
        return 0, 0


def _usage(context: Context, container: Container) -> ContainerUsage:
    figures = context.cgroups.stats(f"{context.pod_cgroup(container.record.spec.pod)}/{container.id}")
    received, sent = _network(container)
    return ContainerUsage(
        id=container.id,
        cpu_ns=figures.cpu_usage_ns or 0,
        memory_bytes=max(0, (figures.memory_bytes or 0) - (figures.memory_cache_bytes or 0)),
        memory_limit_bytes=figures.memory_limit_bytes or 0,
        pids=figures.pids or 0,
        pids_limit=figures.pids_limit or 0,
        read_bytes=figures.io_read_bytes or 0,
        write_bytes=figures.io_write_bytes or 0,
        rx_bytes=received,
        tx_bytes=sent,
    )


def _network(container: Container) -> tuple[int, int]:
    """(received, sent) bytes on the interfaces of the container's network namespace, without its loopback."""
    process = container.record.process
    received = sent = 0
    if process is None:
        return 0, 0
    try:
        text = Path(f"/proc/{process.pid}/net/dev").read_text()
    except OSError:
        return 0, 0
    for line in text.splitlines()[2:]:
        name, _, numbers = line.partition(":")
        fields = numbers.split()
        if name.strip() != "lo" and len(fields) >= 9:
            received, sent = received + int(fields[0]), sent + int(fields[8])
    return received, sent


async def top(context: Context, pod: Pod, container: Container) -> Processes:
    """The processes of a container, by its cgroup; those behind a wall as their own kernel counts them."""
    level = context.levels.find(pod.record.spec.level)
    if level.inside is not None:
        inner = await level.inside.processes(container.id) if container.record.phase == "running" else []
        return Processes(
            tuple(
                ProcessRow(one.pid, one.ppid, one.uid, one.cpu_ns, one.started_at, one.tty, one.command)
                for one in inner[:_MAX_ROWS]
            )
        )
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    rows = []
    for pid in context.cgroups.pids(f"{context.pod_cgroup(pod.id)}/{container.id}")[:_MAX_ROWS]:
        row = _row(pid, pod.record.first_id, boot)
        if row is not None:
            rows.append(row)
    return Processes(tuple(rows))


def _row(pid: int, first_id: int, boot: float) -> ProcessRow | None:
    if pidfd.start_ticks(pid) is None:
        return None
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
        with Path(f"/proc/{pid}/cmdline").open("rb") as file:
            command = file.read(_MAX_COMMAND_BYTES)
        uid = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None
    name = data[data.index(b"(") + 1 : data.rindex(b")")]
    fields = data[data.rindex(b")") + 2 :].split()
    inside = uid - first_id if first_id <= uid < first_id + 65_536 else uid
    text = command.rstrip(b"\0").replace(b"\0", b" ") or b"[" + name + b"]"
    return ProcessRow(
        pid=pid,
        ppid=int(fields[1]),
        uid=inside,
        cpu_ns=(int(fields[11]) + int(fields[12])) * 1_000_000_000 // _TICKS_S,
        started_at=boot + int(fields[19]) / _TICKS_S,
        tty=_tty(int(fields[4])),
        command=text.decode("utf-8", "replace"),
    )


def _tty(number: int) -> str:
    """The terminal of /proc/<pid>/stat's seventh field: pts are major 136 to 143 (proc(5))."""
    major, minor = number >> 8 & 0xFFF, (number & 0xFF) | (number >> 12 & 0xFFF00)
    return f"pts/{(major - 136) * 256 + minor}" if 136 <= major <= 143 else "?"
