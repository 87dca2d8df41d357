"""Events of the node: a ring in the store, and whoever watches.

An event is written in the transaction of the change that it tells; watchers are told after the commit. Numbers only
grow, so a watcher that comes back with the last number that it saw misses nothing that the ring still holds.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import AsyncIterator

import msgspec

from casemate.node.clock import rfc3339
from casemate.node.database import Database
from casemate.node.errors import TooMany
from casemate.spec.api import EventRow

#: Rows that the ring keeps, and by how many it may be longer between two trims.
RING_ROWS = 10_000
TRIM_EVERY = 512
MAX_WATCHERS = 128
PAGE = 500

_DECODER = msgspec.json.Decoder(EventRow)


def add(
    db: sqlite3.Connection,
    at: float,
    kind: str,
    subject: str,
    action: str,
    *,
    project: str = "default",
    name: str = "",
    **facts: object,
) -> None:
    """Write an event; call it in the transaction of the change, and :meth:`Events.wake` after the commit."""
    cursor = db.execute("INSERT INTO events (at, row) VALUES (?, x'')", (at,))
    number = cursor.lastrowid
    assert number is not None
    row = EventRow(number, rfc3339(at), kind, subject, action, project, name, facts)
    db.execute("UPDATE events SET row=? WHERE number=?", (msgspec.json.encode(row), number))
    if number % TRIM_EVERY == 0:
        db.execute("DELETE FROM events WHERE number<=?", (number - RING_ROWS,))


def page(db: sqlite3.Connection, after: int, since: float, until: float, limit: int = PAGE) -> list[EventRow]:
    """Events with a number above *after* from *since* to *until* (seconds since the epoch)."""
    query = "SELECT row FROM events WHERE number>? AND at>=? AND at<=? ORDER BY number LIMIT ?"
    return [_DECODER.decode(row) for (row,) in db.execute(query, (after, since, until, limit))]


def last_number(db: sqlite3.Connection) -> int:
    """The number of the newest event."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name='events'").fetchone()
    return int(row[0]) if row else 0


class Events:
    """The watchers' side of the ring."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._watchers = 0

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return self._watchers

    def wake(self) -> None:
        """Tell the watchers that there is something new."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)

    async def watch(
        self, *, after: int | None, since: float, until: float, follow: bool
    ) -> AsyncIterator[EventRow | None]:
        """Events in order; None stands for "nothing new for a while" (a heartbeat).

        *after* None begins with the next one unless *since* names a moment. Raises :class:`TooMany`.
        """
        if self._watchers >= MAX_WATCHERS:
            raise TooMany(f"{MAX_WATCHERS} clients watch events already")
        self._watchers += 1
        try:
            position = after if after is not None else (0 if since else await self._db.read(last_number))
            while True:
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append(future)  # before the read: what is written after it wakes us
                start = position
                rows = await self._db.read(lambda db, start=start: page(db, start, since, until))  # type: ignore[misc]
                for row in rows:
                    position = row.number
                    yield row
                if len(rows) == PAGE:
                    continue
                if not follow:
                    return
                try:
                    async with asyncio.timeout(15.0):
                        await future
                except TimeoutError:
                    yield None
        finally:
            self._watchers -= 1
