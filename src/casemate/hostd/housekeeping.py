"""What hostd does once a second: records made durable, logs rotated, OOM told, the trash emptied.

Logs: conmon itself only truncates: at its bound the whole file is gone, the line that tells why included. So hostd
rotates at half of the bound: the file becomes ``log.1``, and conmon is told to open a new one. At least the last
quarter of the bound is then always there; conmon's own bound is only the backstop against a container that writes
more than that between two looks, or while hostd is away. On disk: at most twice the bound.
"""

from __future__ import annotations

import asyncio
import logging

from casemate.hostd import containers
from casemate.hostd.context import Context
from casemate.hostd.protocol import ContainerOom
from casemate.hostd.records import sync
from casemate.hostd.state import Container
from casemate.spec.errors import CasemateError

log = logging.getLogger("casemate.hostd")

_PERIOD_S = 1.0
#: One look at a container is about 5 us; with thousands the looks are spread so that they cost 1 % of a cpu.
_LOOKS_A_SECOND = 2000


async def run(context: Context) -> None:
    """For ever."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_keep_durable(context), name="durable")
        group.create_task(_look(context), name="look")
        group.create_task(_empty_trash(context), name="trash")


async def _keep_durable(context: Context) -> None:
    while True:
        await asyncio.sleep(_PERIOD_S)
        due = context.records.due()
        if due:
            try:
                await asyncio.to_thread(sync, due)
            except OSError as error:
                log.error("records could not be made durable: %s", error)


async def _look(context: Context) -> None:
    while True:
        running = [one for one in context.state.containers.values() if one.record.phase == "running"]
        for start in range(0, len(running), _LOOKS_A_SECOND):
            for container in running[start : start + _LOOKS_A_SECOND]:
                _look_at(context, container)
            await asyncio.sleep(_PERIOD_S)
        if not running:
            await asyncio.sleep(_PERIOD_S)


def _look_at(context: Context, container: Container) -> None:
    if container.record.phase != "running":
        return
    folder = context.folders.bundle(container.id)
    if not container.oom_told and (folder / "oom").exists():
        container.oom_told = True
        context.emit(ContainerOom(container.id))
    spec = container.record.spec
    if spec.log.keep:
        try:
            rotate(context, container)
        except (OSError, CasemateError) as error:
            log.warning("the log of container %s was not rotated: %s", container.id[:12], error)


def rotate(context: Context, container: Container) -> bool:
    """Move a log that has reached half of its bound aside, and let conmon begin a new one."""
    spec = container.record.spec
    path = context.folders.log(spec.pod, spec.id)
    try:
        if path.stat().st_size < spec.log.max_bytes // 2:
            return False
    except FileNotFoundError:
        return False
    path.rename(path.with_name("log.1"))
    # Type 2 of conmon's messages: open the log again (to which it writes on until then, under its new name).
    containers.control(context.folders.bundle(spec.id), "2 0 0\n")
    return True


async def _empty_trash(context: Context) -> None:
    while True:
        context.trash_waits.clear()
        try:
            await context.trash.empty()
        except CasemateError as error:
            log.error("the trash was not emptied: %s", error.detail)
            await asyncio.sleep(_PERIOD_S)
        await context.trash_waits.wait()
        # Removals come in bursts: one `rm` for many.
        await asyncio.sleep(_PERIOD_S)
