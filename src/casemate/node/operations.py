"""Long work: started with 202, followed by events, cancelled on request. The state is in the store.

Progress is kept in memory: the last state of each item (a layer), so that a watcher who comes late sees where the
work is, and one who is slow skips what is overtaken.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from casemate.node import audit, events
from casemate.node.clock import rfc3339
from casemate.node.core import Caller, Core, report
from casemate.node.errors import OperationNotFound, TooMany
from casemate.node.rows import OperationRow, encode, insert, select, update
from casemate.spec.api import Operation, Progress
from casemate.spec.errors import CasemateError, Conflict

MAX_RUNNING = 16
MAX_WATCHERS = 128
#: Ended operations that are kept for who asks late.
MAX_KEPT = 200
#: A pull has at most 127 layers; whatever else a job reports shares the bound.
MAX_ITEMS = 512
#: A worker that is told to end takes at most 5 s and a KILL.
CLOSE_S = 10.0

Work = Callable[["Running"], Awaitable[dict[str, object]]]


class Running:
    """An operation under way: its work tells progress here."""

    def __init__(self, id_: str) -> None:
        self.id = id_
        self.task: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()
        self.ended = False
        self._items: dict[str, tuple[int, Progress]] = {}
        self._number = 0

    def tell(self, progress: Progress) -> None:
        """Note how far an item is."""
        if progress.item in self._items or len(self._items) < MAX_ITEMS:
            self._number += 1
            self._items[progress.item] = (self._number, progress)
            self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def since(self, number: int) -> list[tuple[int, Progress]]:
        """What changed after *number*, in order."""
        return sorted(((n, p) for n, p in self._items.values() if n > number), key=lambda pair: pair[0])

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Operations:
    """The operations of this node."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._running: dict[str, Running] = {}
        self._watchers = 0

    async def start(self, kind: str, target: str, caller: Caller, work: Work) -> Operation:
        """Begin *work* in the background; raises :class:`TooMany`."""
        if len(self._running) >= MAX_RUNNING:
            raise TooMany(f"{MAX_RUNNING} operations run already")
        core, at = self._core, self._core.clock()
        row = OperationRow(core.new_id(), kind, "running", at, 0.0, target, b"{}", who=caller.who)
        running = self._running[row.id] = Running(row.id)

        def write(db: sqlite3.Connection) -> None:
            insert(db, row)
            db.execute(
                "DELETE FROM operations WHERE status<>'running' AND id NOT IN "
                "(SELECT id FROM operations ORDER BY created_at DESC LIMIT ?)",
                (MAX_KEPT,),
            )
            audit.append(db, at, caller.who, kind, target[:512])

        try:
            await core.db.write(write)
        except BaseException:
            del self._running[row.id]
            raise
        core.spawn(self._run(running, row, work), f"operation {kind} {target[:80]}")
        return as_operation(row)

    async def _run(self, running: Running, row: OperationRow, work: Work) -> None:
        running.task = asyncio.current_task()
        status, result, problem = "done", b"{}", None
        try:
            result = encode(await work(running))
        except asyncio.CancelledError:
            status = "cancelled"
        except Exception as error:
            status = "failed"
            problem = encode(_problem(error))
        finally:
            core, at = self._core, self._core.clock()

            def write(db: sqlite3.Connection) -> None:
                update(db, OperationRow, row.id, status=status, finished_at=at, result=result, problem=problem)
                events.add(db, at, "operation", row.id, status, operation=row.kind, target=row.target)

            try:
                await asyncio.shield(core.db.write(write))
            finally:
                self._running.pop(row.id, None)
                running.end()
                core.events.wake()

    async def cancel(self, id_: str) -> Operation:
        """Ask the work to end; raises :class:`Conflict` when it has ended."""
        row = await self._row(id_)
        running = self._running.get(id_)
        if running is None or running.task is None:
            raise Conflict(f"operation {id_[:12]} is {row.status}")
        running.task.cancel()
        return as_operation(row)

    async def get(self, id_: str) -> Operation:
        return as_operation(await self._row(id_))

    async def owner(self, id_: str) -> str:
        """Who began it; raises :class:`OperationNotFound`."""
        return (await self._row(id_)).who

    async def listing(self, who: str = "") -> list[Operation]:
        """The newest first; those of *who*, if given."""
        rows = await self._core.db.read(
            lambda db: select(db, OperationRow, "ORDER BY created_at DESC LIMIT ?", MAX_KEPT + MAX_RUNNING)
        )
        return [as_operation(row) for row in rows if who in ("", row.who)]

    async def watch(self, id_: str) -> AsyncIterator[tuple[int, Progress] | Operation | None]:
        """Progress as it comes (None: nothing for a while), and at the end the operation."""
        if self._watchers >= MAX_WATCHERS:
            raise TooMany(f"{MAX_WATCHERS} clients watch operations already")
        await self._row(id_)
        self._watchers += 1
        try:
            running, number = self._running.get(id_), 0
            while running is not None:
                changed = running.changed
                for number, progress in running.since(number):  # noqa: B020 - the last number is kept
                    yield number, progress
                if running.ended:
                    break
                try:
                    async with asyncio.timeout(15.0):
                        await changed.wait()
                except TimeoutError:
                    yield None
            yield as_operation(await self._row(id_))
        finally:
            self._watchers -= 1

    async def recover(self) -> None:
        """Operations that a crash interrupted have failed; what they left is garbage that `prune` finds."""

        def work(db: sqlite3.Connection) -> None:
            for row in select(db, OperationRow, "WHERE status='running'"):
                if row.id not in self._running:
                    problem = encode(Interrupted(f"{row.kind} {row.target}").to_problem())
                    update(db, OperationRow, row.id, status="failed", finished_at=self._core.clock(), problem=problem)

        await self._core.db.write(work)

    async def close(self) -> None:
        """Cancel what runs, and wait for its end; not for ever, since the worker ends with us (its parent)."""
        running = list(self._running.values())
        for one in running:
            if one.task is not None:
                one.task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                for one in running:
                    while not one.ended:
                        await one.changed.wait()

    async def _row(self, id_: str) -> OperationRow:
        rows = await self._core.db.read(lambda db: select(db, OperationRow, "WHERE id=?", id_))
        if not rows:
            raise OperationNotFound(f"operation {id_[:80]!r} is not there", id=id_[:80])
        return rows[0]


class Interrupted(CasemateError):
    code = "operation.interrupted"
    status = 500
    title = "The daemon ended during the operation"
    remedy = "Start it again; what was transferred already is kept."
    retryable = True


def as_operation(row: OperationRow) -> Operation:
    return Operation(
        id=row.id, kind=row.kind, status=row.status,  # type: ignore[arg-type]  # the store holds nothing else
        created_at=rfc3339(row.created_at), finished_at=rfc3339(row.finished_at), target=row.target,
        result=msgspec.json.decode(row.result), problem=msgspec.json.decode(row.problem) if row.problem else None,
    )  # fmt: skip


def _problem(error: Exception) -> dict[str, object]:
    if isinstance(error, CasemateError):
        return error.to_problem()
    report("an operation failed unexpectedly")
    return CasemateError("an error that Casemate did not expect; the journal has it").to_problem()
