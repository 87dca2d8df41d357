"""Ends of containers and execs: seen through a pidfd of their conmon, which has written the exit file by then.

A pidfd tells of every end, also of a conmon that was killed; a folder watch would miss those, and lose events when
its queue overflows. Nothing here waits: it runs on the loop when the kernel says so, and after a restart of hostd
by going through the records.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

from casemate.host import durable, pidfd
from casemate.hostd import inputs, pods
from casemate.hostd.context import Context
from casemate.hostd.protocol import ContainerExited, ContainerOom
from casemate.hostd.records import ProcessRecord
from casemate.hostd.state import Container, changed
from casemate.isolation import conmon
from casemate.spec.errors import CasemateError, TimedOut

log = logging.getLogger("casemate.hostd")

#: The exit code when nobody knows it: conmon was killed, or the host went down. 255 is what Podman reports.
UNKNOWN_EXIT_CODE = 255
_MAX_EXIT_BYTES = 64


def watch(context: Context, container: Container) -> None:
    """Call :func:`container_ended` when the container's conmon is gone; at once if it is."""
    one = container.record.conmon
    number = None if one is None else pidfd.open_pidfd(one.pid, one.start_ticks)
    if number is None:
        container_ended(context, container)
        return
    on_end(number, lambda: container_ended(context, container))


def on_end(number: int, function: object) -> None:
    """Call *function* once when the process of the pidfd *number* has ended; the pidfd is closed then."""
    assert callable(function)
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(number)
        os.close(number)
        function()

    loop.add_reader(number, ended)


def forget(container: Container) -> None:
    """The container is being discarded: its exit, should it still come, tells nobody."""
    inputs.drop(container.held)
    container.ended.set()


def container_ended(context: Context, container: Container) -> None:
    """Record the exit and tell the peer. Does nothing when that was done, or when the container is gone."""
    record = container.record
    if record.phase not in ("created", "running") or context.state.containers.get(container.id) is not container:
        container.ended.set()
        return
    if record.conmon is not None and pidfd.is_alive(record.conmon.pid, record.conmon.start_ticks):
        return  # of an earlier start
    inputs.drop(container.held)
    code, finished, reason = read_exit(context.folders.exit_file(container.id))
    reason = reason or _ending(context, container)
    if code == UNKNOWN_EXIT_CODE and reason and record.process is not None:
        # conmon is gone without a word: what it supervised must not run on unseen.
        _kill(record.process)
    oom = was_oom(context, container)
    if oom and not container.oom_told:
        container.oom_told = True
        context.emit(ContainerOom(container.id))
    changed(
        container,
        phase="exited",
        exit_code=code,
        oom_killed=oom,
        finished_at=finished,
        reason=reason,
        conmon=None,
        process=None,
    )
    # Before it is written down: a crash in between finds the container ended once more.
    _close_ports(context, container)
    context.records.write_container(container.record)
    context.step("container.exited")
    if _has_more(context, container):
        # A sandbox whose containers have ended holds memory for nothing.
        context.spent.add(container.id)
        context.spent_waits.set()
    container.ended.set()
    context.emit(ContainerExited(container.id, code, oom, finished, reason))


def _ending(context: Context, container: Container) -> str:
    """Why a sandbox or a machine ended, and the container with it; empty for an end of its own."""
    if context.machines is not None and (found := context.machines.ending(container.id)):
        return found
    level = context.levels.get(context.state.pods[container.record.spec.pod].record.spec.level)
    return "" if level is None or level.inside is None else level.inside.ending(container.id)


def _has_more(context: Context, container: Container) -> bool:
    """Whether the end of *container* leaves something of it in a machine, or in a sandbox that others share."""
    pod = context.state.pods[container.record.spec.pod].record.spec
    level = context.levels.get(pod.level)
    return level is not None and not level.features.in_cgroup(pod, container.record.spec)


def _close_ports(context: Context, container: Container) -> None:
    pod = context.state.pods[container.record.spec.pod]
    try:
        pods.close_ports(context, pod)
    except CasemateError as error:
        log.error("the published ports of pod %s are still there: %s", pod.id[:12], error)


def read_exit(path: Path) -> tuple[int, float, str]:
    """(exit code, seconds since the epoch, why the code is not known)."""
    try:
        finished = path.stat().st_mtime
        return conmon.parse_exit(durable.read_bounded(path, _MAX_EXIT_BYTES)), finished, ""
    except (OSError, CasemateError):
        return UNKNOWN_EXIT_CODE, time.time(), "conmon ended without leaving an exit code"


def _kill(process: ProcessRecord) -> None:
    pidfd.send_signal(process.pid, process.start_ticks, 9)


def was_oom(context: Context, container: Container) -> bool:
    """Whether the kernel killed a process of the container for want of memory.

    conmon leaves a file when it saw the event; the cgroup's own counter also tells where it did not.
    """
    if (context.folders.bundle(container.id) / "oom").exists():
        return True
    level = context.levels.get(context.state.pods[container.record.spec.pod].record.spec.level)
    if level is not None and level.inside is not None:
        return level.inside.was_oom(container.id)
    path = f"{context.pod_cgroup(container.record.spec.pod)}/{container.id}"
    try:
        return bool(context.cgroups.stats(path).oom_kills)
    except (OSError, CasemateError):
        return False


async def wait_ended(container: Container, timeout_s: float) -> None:
    """Wait until the exit is recorded; raises :class:`TimedOut`."""
    try:
        async with asyncio.timeout(timeout_s):
            await container.ended.wait()
    except TimeoutError as error:
        raise TimedOut(f"container {container.id[:12]} did not end within {timeout_s:g} s of KILL") from error
