"""Execs: further processes in a running container."""

from __future__ import annotations

import asyncio
import sqlite3

import msgspec

from casemate.hostd.client import HostdMismatch, ask
from casemate.hostd.protocol import ContainerResize, Done, ExecStart, Started
from casemate.node import audit, entering, events, images, imagestore, lookup
from casemate.node.core import Caller, Core
from casemate.node.errors import ContainerNotRunning, ContainerState, TooMany
from casemate.node.hub import Client
from casemate.node.resolve import resolve_exec
from casemate.node.rows import ContainerRow, ExecRow, encode, insert, select, update
from casemate.spec.api import ExecCreated, ExecDetail, ExecRequest
from casemate.spec.errors import CasemateError, PermissionDenied
from casemate.spec.workload import Process

#: Execs kept for one container: ended ones are forgotten above it.
MAX_KEPT = 64
MAX_RUNNING = 1024
#: How long after the end of its output an exec's exit code may take; hostd tells it within milliseconds.
END_GRACE_S = 10.0
#: What the field answers when a process' exit code is lost.
LOST = 255


async def create(core: Core, reference: str, project: str, request: ExecRequest, caller: Caller) -> ExecCreated:
    """Write down what is to be executed; it starts with :func:`start_attached` or :func:`start_detached`."""
    row = await core.db.read(lambda db: lookup.container(db, reference, project))
    if row.status != "running":
        raise ContainerNotRunning(f"container {row.name} is {row.status}", status=row.status)
    await core.db.read(lambda db: entering.check(db, row, caller))
    if request.privileged and not caller.descriptors():
        raise PermissionDenied("a privileged exec needs a caller on the unix socket")
    passwd = group = None
    if request.user is not None:
        found = await core.db.read(lambda db: imagestore.find(db, row.image_digest))
        image = await images.ready(core, found, row.image)
        passwd, group = image.passwd, image.group
    process = resolve_exec(request, row.the_spec().process, passwd, group)
    id_ = core.new_id()

    def work(db: sqlite3.Connection) -> None:
        kept = select(db, ExecRow, "WHERE container=? ORDER BY created_at", row.id)
        for old in [e for e in kept if e.status == "ended"][: max(0, len(kept) - MAX_KEPT + 1)]:
            db.execute("DELETE FROM execs WHERE id=?", (old.id,))
        if len(kept) >= MAX_KEPT and all(e.status == "running" for e in kept):
            raise TooMany(f"container {row.name} runs {len(kept)} execs already")
        at = core.clock()
        insert(db, ExecRow(id_, row.id, encode(request), encode(process), at, "created"))
        audit.append(
            db, at, caller.who, "exec.create", row.id, name=row.name, command=" ".join(request.command)[:500],
            privileged=request.privileged,
        )  # fmt: skip

    await core.db.write(work)
    return ExecCreated(id_)


async def start_attached(core: Core, id_: str, caller: Caller) -> tuple[Client, bool]:
    """Start the exec; the client of its output, and whether it takes input."""
    descriptor, process = await _start(core, id_, caller, attach=True)
    if descriptor is None:
        raise HostdMismatch("an attached exec came without a descriptor")
    return core.hub.adopt(id_, descriptor), process.stdin


async def start_detached(core: Core, id_: str, caller: Caller) -> None:
    """Start the exec and leave it alone."""
    await _start(core, id_, caller, attach=False)


async def _start(core: Core, id_: str, caller: Caller, *, attach: bool) -> tuple[int | None, Process]:
    def begin(db: sqlite3.Connection) -> tuple[ExecRow, ContainerRow]:
        found = lookup.exec_(db, id_)
        container = select(db, ContainerRow, "WHERE id=?", found.container)[0]
        if found.status != "created":
            raise ContainerState(f"exec {id_[:12]} is {found.status}", remedy="Create another exec.")
        if container.status != "running":
            raise ContainerNotRunning(f"container {container.name} is {container.status}", status=container.status)
        update(db, ExecRow, id_, status="running")
        return found, container

    if len(core.exec_ends) >= MAX_RUNNING:
        raise TooMany(f"{MAX_RUNNING} execs run already")
    row, container = await core.db.write(begin)
    process = msgspec.json.decode(row.process, type=Process)
    request = msgspec.json.decode(row.request, type=ExecRequest)
    core.exec_ends[id_] = asyncio.get_running_loop().create_future()
    try:
        answered = await core.hostd.call(
            ExecStart(container.id, id_, process, privileged=request.privileged, attach=attach),
            descriptors=caller.descriptors() if request.privileged else (),
        )
    except CasemateError:
        core.exec_ends.pop(id_, None)
        await core.db.write(lambda db: update(db, ExecRow, id_, status="ended", exit_code=126))
        raise
    if not isinstance(answered.answer, Started):
        raise HostdMismatch(f"an exec was answered by {type(answered.answer).__name__}")
    pid, at = answered.answer.pid, core.clock()

    def started(db: sqlite3.Connection) -> None:
        db.execute("UPDATE execs SET pid=? WHERE id=? AND status='running'", (pid, id_))
        events.add(db, at, "container", container.id, "exec_start", project=container.project, name=container.name,
                   exec=id_)  # fmt: skip

    await core.db.write(started)
    core.events.wake()
    descriptors = answered.take()
    return (descriptors[0] if descriptors else None), process


async def ended(core: Core, id_: str) -> int:
    """The exec's exit code, once its output has ended."""
    future = core.exec_ends.get(id_)
    if future is None:
        row = await core.db.read(lambda db: lookup.exec_(db, id_))
        return row.exit_code if row.exit_code is not None else LOST
    try:
        async with asyncio.timeout(END_GRACE_S):
            return await asyncio.shield(future)
    except TimeoutError:
        return LOST


async def resize(core: Core, id_: str, rows: int, columns: int) -> None:
    """Tell the exec's terminal its size."""
    row = await core.db.read(lambda db: lookup.exec_(db, id_))
    await ask(core.hostd, ContainerResize(row.container, rows, columns, id_), Done)


async def inspect(core: Core, id_: str) -> ExecDetail:
    row = await core.db.read(lambda db: lookup.exec_(db, id_))
    command = msgspec.json.decode(row.request, type=ExecRequest).command
    return ExecDetail(row.id, row.container, row.status == "running", row.exit_code, command, row.pid)
