"""The database of casemated: one SQLite file in WAL mode, used by one thread.

Work is a function that takes the connection; :meth:`Database.write` runs it in one short transaction, so the
functions of the table modules compose. The loop waits without blocking (decision 0042 has the price of the hop).
``synchronous=NORMAL``: a killed process loses nothing; after a power cut the last commits may be gone, and what
runs then is gone as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from casemate.node.migrations import MIGRATIONS
from casemate.spec.errors import CasemateError, Corrupt, DiskFull

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
#: False alarms (see :func:`damage`) must not hide a real one: more than there can be rows of published ports.
_MAX_PROBLEMS = 1_000_000
#: Work that waits for the thread; above it callers get an error instead of a place in an endless queue.
MAX_QUEUED = 10_000
_SQLITE_FULL = 13


class DatabaseNewer(CasemateError):
    code = "store.newer"
    title = "The database was written by a newer Casemate"
    remedy = "Start the newer version again; there is no way back."


class Database:
    """The file at *path*; open it with :meth:`open`, end with :meth:`close`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._queue: queue.SimpleQueue[Callable[[sqlite3.Connection], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def open(self) -> None:
        """Open or create the file, bring it to the current schema, start the thread."""
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(target=self._serve, args=(loop, opened), name="database", daemon=True)
        self._thread.start()
        await opened

    async def close(self) -> None:
        """Run what is queued, then close the file."""
        if self._thread is not None:
            self._queue.put(None)
            thread, self._thread = self._thread, None
            await asyncio.to_thread(thread.join)

    async def read(self, work: Work[T]) -> T:
        """What *work* returns; it must not change anything."""
        return await self._run(work, write=False)

    async def write(self, work: Work[T], *, durable: bool = False) -> T:
        """Run *work* in a transaction: all of it is stored, or (when it raises) nothing.

        *durable*: it is on the disk when this returns, and a power cut does not take it back.
        """
        return await self._run(work, write=True, durable=durable)

    async def _run(self, work: Work[T], *, write: bool, durable: bool = False) -> T:
        if self._thread is None or self._queue.qsize() > MAX_QUEUED:
            raise CasemateError("the database is closed or overloaded")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def job(connection: sqlite3.Connection) -> None:
            try:
                value = _transaction(connection, work, durable=durable) if write else work(connection)
            except BaseException as error:
                _post(loop, future, None, _translated(error))
            else:
                _post(loop, future, value, None)

        self._queue.put(job)
        return await future

    def _serve(self, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[None]) -> None:
        try:
            connection = connect(self.path)
        except BaseException as error:
            _post(loop, opened, None, _translated(error))
            return
        _post(loop, opened, None, None)
        with contextlib.closing(connection):
            while (job := self._queue.get()) is not None:
                job(connection)


def connect(path: str) -> sqlite3.Connection:
    """A connection to the file at *path*, brought to the current schema."""
    Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
    try:
        _check(connection, path)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA cache_size=-1024")  # KiB: the daemon's idle memory is budgeted
        connection.execute("PRAGMA busy_timeout=5000")
        _migrate(connection)
    except BaseException:
        connection.close()
        raise
    Path(path).chmod(0o600)
    return connection


def damage(connection: sqlite3.Connection) -> str:
    """What SQLite finds wrong in the structure of the file; empty when it is sound.

    SQLite 3.40 (Debian 12) looks for NULL in the wrong columns of a WITHOUT ROWID table whose key has another order
    than its columns, and so takes each published port for damage. STRICT and NOT NULL see to that at each write.
    """
    for (problem,) in connection.execute(f"PRAGMA quick_check({_MAX_PROBLEMS})"):
        if problem != "ok" and not problem.startswith("NULL value in "):
            return str(problem)
    return ""


def _check(connection: sqlite3.Connection, path: str) -> None:
    """Raises :class:`Corrupt` before anything is written to a file that is cut off or damaged in its structure.

    SQLite alone serves what it can of such a file, and finds out in the middle of a change. The look takes about
    10 ms for 1,000 containers.
    """
    problem = damage(connection)
    if problem:
        raise Corrupt(
            f"{path}: {problem[:300]}",
            remedy="End the daemon and put a copy of casemate.db back; containers go on meanwhile.",
        )


def _migrate(connection: sqlite3.Connection) -> None:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise DatabaseNewer(f"schema {version} in the database, {len(MIGRATIONS)} known here")
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version={number};\nCOMMIT;")


def _transaction(connection: sqlite3.Connection, work: Work[T], *, durable: bool = False) -> T:
    if durable:
        connection.execute("PRAGMA synchronous=FULL")
    try:
        connection.execute("BEGIN IMMEDIATE")
        value = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    finally:
        if durable:
            connection.execute("PRAGMA synchronous=NORMAL")
    return value


def _post(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], value: T | None, error: BaseException | None
) -> None:
    def settle() -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(settle)


def _translated(error: BaseException) -> BaseException:
    if isinstance(error, sqlite3.OperationalError) and getattr(error, "sqlite_errorcode", 0) & 0xFF == _SQLITE_FULL:
        full = DiskFull(f"the database cannot be written: {error}")
        full.__cause__ = error
        return full
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error, (sqlite3.IntegrityError, sqlite3.OperationalError, sqlite3.ProgrammingError)
    ):
        corrupt = Corrupt(f"the database cannot be read: {error}")
        corrupt.__cause__ = error
        return corrupt
    return error
