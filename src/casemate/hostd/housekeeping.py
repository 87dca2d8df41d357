"""What hostd does once a second: records made durable, logs rotated, OOM told, the trash emptied.

Logs: conmon rotates by renaming an empty file over the full one, so that everything is gone. hostd keeps a second
name (``log.0``) on the file that conmon writes to; when ``log`` has become another file, what ``log.0`` names is the
generation before, and becomes ``log.1``. So at least half of the bound is always there, and at most one and a half
times the bound on disk. A container that fills more than one generation between two looks loses those between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from casemate.host import conntrack, heap
from casemate.hostd import inputs, machinefiles, pods
from casemate.hostd.context import Context
from casemate.hostd.protocol import ContainerOom
from casemate.hostd.records import sync
from casemate.hostd.state import Container, Pod
from casemate.network import links
from casemate.spec.errors import CasemateError

log = logging.getLogger("casemate.hostd")

_PERIOD_S = 1.0
#: To know that nobody changed a rule takes 20 us; a repair is to be done within a second.
_FIREWALL_PERIOD_S = 0.3
#: A trim takes 1 ms.
_FIRST_TRIM_S, _TRIM_PERIOD_S = 2.0, 10.0
#: A process that was killed is dead within milliseconds of the end of its connections.
_DEATH_LOOKS, _DEATH_LOOK_S = 10, 0.05
#: One look at a container is about 5 us; with thousands the looks are spread so that they cost 1 % of a cpu.
_LOOKS_A_SECOND = 2000
_SPENT_WAIT_S = 0.5


async def run(context: Context, retire: Callable[[Context, Pod, Container], Awaitable[None]]) -> None:
    """For ever. *retire* takes away what is only of a running container."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_keep_durable(context), name="durable")
        group.create_task(_look(context), name="look")
        group.create_task(_empty_trash(context), name="trash")
        group.create_task(_forget_flows(context), name="flows")
        group.create_task(_delete_links(context), name="links")
        group.create_task(_leave_machines(context, retire), name="machines")
        group.create_task(_keep_firewall(context), name="firewall")
        group.create_task(context.firewall.run(), name="referrals")
        group.create_task(_keep_inputs(context), name="inputs")
        group.create_task(_give_memory_back(), name="memory")
        group.create_task(context.visibility.keep(), name="visibility")
        group.create_task(context.keeping.keep(), name="kept connections")


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
            keep_generation(context, container)
        except (OSError, CasemateError) as error:
            log.warning("the older log of container %s was not kept: %s", container.id[:12], error)


def keep_generation(context: Context, container: Container) -> bool:
    """Give a log that conmon rotated its name ``log.1``, and hold the new one; True when there was one."""
    spec = container.record.spec
    path = context.folders.log(spec.pod, spec.id)
    held = path.with_name("log.0")
    try:
        current = path.stat().st_ino
    except FileNotFoundError:
        return False
    if current == container.log_inode:
        return False
    try:
        before = held.stat().st_ino
    except FileNotFoundError:
        before = current
    if before != current:
        held.rename(path.with_name("log.1"))
    if not held.exists():
        held.hardlink_to(path)
    container.log_inode = held.stat().st_ino
    return before != current


async def _keep_inputs(context: Context) -> None:
    """See to the inputs of a casemated that is gone; again, since its socket may close before it counts as dead."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PERIOD_S):
                await context.peer_gone.wait()
        again = context.peer_gone.is_set()
        context.peer_gone.clear()
        for _ in range(_DEATH_LOOKS if again else 1):
            for container in context.state.containers.values():
                for held in (container.held, *(one.held for one in container.execs.values())):
                    inputs.let_go(held)
                    inputs.silence(held)
            if again:
                await asyncio.sleep(_DEATH_LOOK_S)


async def _give_memory_back() -> None:
    """First when the start is done: what the library held of the host's firewall is free by then."""
    pause_s = _FIRST_TRIM_S
    while True:
        await asyncio.sleep(pause_s)
        heap.give_back()
        pause_s = _TRIM_PERIOD_S


async def _keep_firewall(context: Context) -> None:
    """Somebody's `nft flush ruleset` is noticed by the ruleset's generation, and repaired."""
    while True:
        await asyncio.sleep(_FIREWALL_PERIOD_S)
        if not context.firewall.is_open:
            continue
        try:
            await pods.keep_firewall(context)
        except (CasemateError, OSError) as error:
            log.error("the firewall was not looked at: %s", error)


async def _forget_flows(context: Context) -> None:
    """UDP flows to ports that were taken back: one that goes on would keep its translation for ever."""
    while True:
        await context.flows_wait.wait()
        context.flows_wait.clear()
        while context.stale_flows:
            address = context.stale_flows.pop()
            try:
                await conntrack.forget(address)
            except (CasemateError, OSError) as error:
                log.warning("flows to %s were not forgotten: %s", address, error)


async def _delete_links(context: Context) -> None:
    """Taps of pods that are gone. One whose name a new pod has again is that pod's: it was made anew."""
    while True:
        await context.links_wait.wait()
        context.links_wait.clear()
        while context.dead_links:
            name = context.dead_links.pop()
            try:
                await links.delete_interface(name)
            except (CasemateError, OSError) as error:
                log.warning("interface %s was not deleted: %s", name, error)


async def _leave_machines(context: Context, retire: Callable[[Context, Pod, Container], Awaitable[None]]) -> None:
    """Take containers that ended out of their machines, which end with the last of them."""
    while True:
        await context.spent_waits.wait()
        # Who runs with --rm removes it now: what it wrote need not be kept.
        await asyncio.sleep(_SPENT_WAIT_S)
        context.spent_waits.clear()
        waiting, context.spent = context.spent, set()
        for name in waiting:
            container = context.state.containers.get(name)
            if container is None:
                continue
            pod = context.state.pods[container.record.spec.pod]
            async with pod.lock:
                if container.record.phase != "exited" or container.id not in context.state.containers:
                    continue
                if machinefiles.is_copied(context, container):
                    context.spent.add(name)
                    context.spent_waits.set()
                    continue
                try:
                    await retire(context, pod, container)
                except (CasemateError, OSError) as error:
                    log.warning("container %s was not taken out of its machine: %s", container.id[:12], error)


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
