"""``restart --hold``: new connections wait while a container stops and starts again, and then go on to it.

With ``--hold connections`` those that are open wait too, in the relay of kept ports (:mod:`casemate.node.keeping`).

What was listening before must be listening again before anything is let through; otherwise the callers that waited
would be refused by a container that is not ready. When the time is over they get a reset, not a silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

from casemate.hostd.client import ask
from casemate.hostd.protocol_keeping import PodProbe, Probed
from casemate.node import audit, events, lifecycle, lookup
from casemate.node.core import Caller, Core
from casemate.node.keeping.service import Keeping
from casemate.node.keeping.service import Pod as KeptPod
from casemate.node.lifecycle import row_and_pod
from casemate.node.policy.errors import HoldUnavailable
from casemate.node.rows import ContainerRow, PodRow
from casemate.spec.api import RestartRequest, StopRequest
from casemate.spec.errors import CasemateError, TimedOut

#: Between two looks at what listens: a start takes some 100 ms.
LOOK_S = 0.01
MAX_TABLE_BYTES = 4 << 20
_LISTENING = "0A"
#: The port 0 of the kernel's table is none.
Ports = frozenset[int]


async def restart(core: Core, reference: str, project: str, request: RestartRequest, caller: Caller) -> None:
    """Stop and start; with *hold* no new connection fails meanwhile.

    Raises :class:`HoldUnavailable`, :class:`TimedOut` when it was not ready in time (it runs on, and who waited was
    reset).
    """
    stop = StopRequest(request.timeout, request.signal)
    if not request.hold and not request.hold_open:
        await lifecycle.restart(core, reference, project, stop, caller)
        return
    row = await core.db.read(lambda db: lookup.container(db, reference, project))
    async with core.lock(row.id):
        row, pod = await core.db.read(lambda db: row_and_pod(db, row.id))
        _check(row, pod)
        kept = await _kept(core, row, pod, request)
        wanted = await _wanted(row, pod, request)
        wait_s = request.hold_for_s
        await core.policy.firewall.hold(pod.id, wait_s=wait_s, limit=request.hold_connections)
        await _note(core, row, "hold", seconds=wait_s, ports=sorted(wanted))
        try:
            async with asyncio.timeout(wait_s):
                await kept.hold()
                await lifecycle.stop_locked(core, row.id, stop, caller)
                await lifecycle.start_locked(core, row.id, caller, attach=False)
                await _ready(core, row.id, wanted)
        except TimeoutError as error:
            released = await core.policy.firewall.release(pod.id, accept=False)
            ended = await kept.resume(accept=False)
            await _note(core, row, "hold-failed", reset=released.waited + ended["reset"])
            raise TimedOut(
                f"container {row.name} was not ready within {wait_s} s; "
                f"{released.waited + ended['reset']} connections were reset"
            ) from error
        except BaseException:
            with contextlib.suppress(CasemateError):
                await core.policy.firewall.release(pod.id, accept=False)
            await kept.resume(accept=False)
            raise
        released = await core.policy.firewall.release(pod.id)
        # Now that what is new goes to the pod, what was open does.
        facts = await kept.resume(accept=True)
        await _note(core, row, "released", waited=released.waited, refused=released.refused, caller=caller.who, **facts)


class _NothingKept:
    """``--hold`` alone: open connections end with their server."""

    async def hold(self) -> None:
        return

    async def resume(self, *, accept: bool) -> dict[str, int]:  # noqa: ARG002 - as the other's
        return {"reset": 0}


class _Kept:
    """Open connections to the kept ports of *pod*."""

    def __init__(self, keeping: Keeping, pod: KeptPod, request: RestartRequest, *, anew: bool) -> None:
        self._keeping, self._pod, self._request, self._anew = keeping, pod, request, anew

    async def hold(self) -> None:
        request = self._request
        await self._keeping.hold(
            self._pod, wait_s=request.hold_for_s, drain_s=request.hold_drain_s, limit=request.hold_connections
        )

    async def resume(self, *, accept: bool) -> dict[str, int]:
        done = await self._keeping.resume(self._pod, accept=accept, anew=self._anew)
        return {"resumed": done.resumed, "replayed": done.replayed, "reset": done.reset}


async def _kept(core: Core, row: ContainerRow, pod: PodRow, request: RestartRequest) -> _NothingKept | _Kept:
    if not request.hold_open:
        return _NothingKept()
    if core.keeping is None:
        raise HoldUnavailable("this node has no relay of kept connections")
    found = await core.keeping.check(pod.id, row.name)
    # A sandbox with a network stack of its own ends without telling the other side.
    return _Kept(core.keeping, found, request, anew=not _shows(pod))


def _check(row: ContainerRow, pod: PodRow) -> None:
    if pod.address is None:
        raise HoldUnavailable(f"pod {pod.name} has no network of its own: nothing can be held for it")
    if row.status != "running":
        raise HoldUnavailable(f"container {row.name} is {row.status}: only for one that runs connections are held")


async def _note(core: Core, row: ContainerRow, action: str, **facts: object) -> None:
    at = core.clock()

    def work(db: sqlite3.Connection) -> None:
        events.add(db, at, "container", row.id, action, project=row.project, name=row.name, **facts)
        if "caller" in facts:
            audit.append(db, at, str(facts["caller"]), "container.restart", row.id, name=row.name, held=True)

    await core.db.write(work)
    core.events.wake()


async def _ready(core: Core, id_: str, wanted: Ports) -> None:
    """Until every port of *wanted* is listened at; the caller bounds the time. An end of the container ends it."""
    while True:
        row, pod = await core.db.read(lambda db: row_and_pod(db, id_))
        if row.status != "running":
            raise HoldUnavailable(f"container {row.name} is {row.status} again: it ended after its start")
        if not wanted or await _listens(core, row, pod, wanted):
            return
        await asyncio.sleep(LOOK_S)


def _shows(pod: PodRow) -> bool:
    """Whether the host's tables show what listens in the pod: not of one with a network stack of its own."""
    return pod.the_spec().level == "namespace"


async def _wanted(row: ContainerRow, pod: PodRow, request: RestartRequest) -> Ports:
    """The ports that must be listened at again: those named, those that are, or those that are kept."""
    if request.hold_ports:
        return Ports(request.hold_ports)
    if _shows(pod):
        return await asyncio.to_thread(listening, row.pid)
    return Ports(one.port for one in pod.the_spec().network.kept)


async def _listens(core: Core, row: ContainerRow, pod: PodRow, wanted: Ports) -> bool:
    if _shows(pod):
        return wanted <= await asyncio.to_thread(listening, row.pid)
    for port in wanted:
        if not (await ask(core.hostd, PodProbe(pod.id, port), Probed)).is_open:
            return False
    return True


def listening(pid: int) -> Ports:
    """TCP ports that something in the network namespace of *pid* listens at (proc(5), net/tcp); none for pid 0.

    At levels with a network stack of their own the host's table shows nothing: there hostd tries.
    """
    found: set[int] = set()
    for name in ("tcp", "tcp6"):
        try:
            with Path(f"/proc/{pid}/net/{name}").open("rb") as file:
                text = file.read(MAX_TABLE_BYTES).decode("ascii", "replace")
        except OSError:
            continue
        for line in text.splitlines()[1:]:
            fields = line.split()
            if len(fields) > 3 and fields[3] == _LISTENING:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return frozenset(found)
