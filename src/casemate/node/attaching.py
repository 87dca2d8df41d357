"""Attaching to a container: to one that runs, or by starting it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from casemate.hostd.client import HostdMismatch, ask
from casemate.hostd.protocol import ContainerAttach, ContainerResize, Done
from casemate.node import entering, lifecycle, logs, lookup, removal
from casemate.node.core import Caller, Core
from casemate.node.errors import ContainerNotRunning
from casemate.node.hub import Client
from casemate.spec.api import WaitAnswer
from casemate.spec.errors import CasemateError


@dataclass(frozen=True, slots=True)
class Session:
    """An attached client, and the run that it is attached to."""

    container: str
    intent_at: float
    client: Client
    #: What was said at the start that this attach made.
    warnings: tuple[str, ...] = ()


async def open_session(core: Core, reference: str, project: str, caller: Caller, *, start: bool) -> Session:
    """Attach; with *start*, start a container that does not run, so that nothing of its output is missed."""
    row = await core.db.read(lambda db: lookup.container(db, reference, project))
    if row.made or not start:  # at the first start hostd asks, and knows better
        await core.db.read(lambda db: entering.check(db, row, caller))
    if start and row.status not in ("running", "paused"):
        told = row.the_warnings()
        try:
            row, descriptor = await lifecycle.start(core, row.id, project, caller, attach=True)
        except CasemateError:
            if row.auto_remove:
                await removal.remove_ended(core, row.id)
            raise
        row = (await core.db.read(lambda db: lifecycle.row_and_pod(db, row.id)))[0] if descriptor is None else row
        if descriptor is not None:
            return Session(row.id, row.intent_at, core.hub.adopt(row.id, descriptor), row.the_warnings()[len(told) :])
    if row.status not in ("running", "paused", "stopping"):
        raise ContainerNotRunning(f"container {row.name} is {row.status}", status=row.status)

    async def connect() -> int:
        answered = await core.hostd.call(ContainerAttach(row.id))
        descriptors = answered.take()
        if not descriptors:
            raise HostdMismatch("an attach came without a descriptor")
        return descriptors[0]

    return Session(row.id, row.intent_at, await core.hub.attach(row.id, connect))


async def resize(core: Core, container: str, rows: int, columns: int) -> None:
    """Tell the container's terminal its size."""
    await ask(core.hostd, ContainerResize(container, rows, columns), Done)


async def ended(core: Core, session: Session) -> WaitAnswer:
    """How the run ended; with ``--rm``, once the container is removed and its name is free."""
    return await lifecycle.wait_for_run(core, session.container, session.intent_at)


async def written_so_far(core: Core, container: str) -> AsyncIterator[bytes]:
    """What the log holds, as frames of an attach."""
    async for line in logs.read(core, container, logs.Wanted()):
        yield bytes((line.stream,)) + line.text
