"""The ring of flow records: one SQLite file, written by the recorder alone, read by casemated.

A record is written when its connection begins, and once more (its counters) when it ends; ``stamp`` grows with each
of both, so that a reader who follows sees both. Records beyond the ring's size go, the oldest first. What a power cut
takes is not worth a wait on the disk for each batch: the file is made anew when it cannot be read, and says so.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE ends (
    number INTEGER PRIMARY KEY,
    kind TEXT NOT NULL, project TEXT NOT NULL, name TEXT NOT NULL, pod TEXT NOT NULL, identity INTEGER NOT NULL,
    labels TEXT NOT NULL,
    UNIQUE (kind, project, name, pod, identity, labels)
) STRICT;
CREATE TABLE flows (
    number INTEGER PRIMARY KEY,
    stamp INTEGER NOT NULL,
    began REAL NOT NULL,
    ended REAL,
    source INTEGER NOT NULL, source_address TEXT NOT NULL, source_port INTEGER NOT NULL,
    destination INTEGER NOT NULL, destination_address TEXT NOT NULL, port INTEGER NOT NULL,
    protocol INTEGER NOT NULL,
    verdict TEXT NOT NULL,
    rule TEXT NOT NULL,
    note TEXT NOT NULL,
    via TEXT NOT NULL,
    dns TEXT NOT NULL,
    tls TEXT NOT NULL DEFAULT '',
    times INTEGER NOT NULL DEFAULT 1,
    packets_out INTEGER NOT NULL DEFAULT 0, bytes_out INTEGER NOT NULL DEFAULT 0,
    packets_in INTEGER NOT NULL DEFAULT 0, bytes_in INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX flows_stamp ON flows (stamp);
CREATE TABLE gaps (at REAL NOT NULL, reason TEXT NOT NULL, count INTEGER NOT NULL) STRICT;
"""
#: Gaps that are kept, and ends without a record that may stay until the next sweep.
MAX_GAPS = 1000
_SWEEP_ENDS = 10_000


class NewFlow(NamedTuple):
    """A record as it begins, in the columns' order."""

    number: int
    stamp: int
    began: float
    ended: float | None
    source: int
    source_address: str
    source_port: int
    destination: int
    destination_address: str
    port: int
    protocol: int
    verdict: str
    rule: str
    note: str
    via: str
    dns: str
    tls: str = ""
    times: int = 1
    packets_out: int = 0
    bytes_out: int = 0
    packets_in: int = 0
    bytes_in: int = 0


class EndedFlow(NamedTuple):
    """The end of a record: its counters, in the order of the statement."""

    stamp: int
    ended: float
    packets_out: int
    bytes_out: int
    packets_in: int
    bytes_in: int
    number: int


_INSERT = f"INSERT INTO flows VALUES ({', '.join('?' * len(NewFlow._fields))})"  # noqa: S608 - our own text
_END = "UPDATE flows SET stamp=?, ended=?, packets_out=?, bytes_out=?, packets_in=?, bytes_in=? WHERE number=?"
_NAME = "UPDATE flows SET stamp=?, tls=? WHERE number=?"
_AGAIN = "UPDATE flows SET stamp=?, ended=?, times=times+1 WHERE number=?"
_VERDICT = "UPDATE flows SET stamp=?, verdict=?, rule=?, note=? WHERE number=?"


class Ring:
    """The writer's side of the file at *path*, of at most *capacity* records."""

    def __init__(self, path: str, capacity: int) -> None:
        self._path = path
        self._capacity = capacity
        #: How often numbers of ends were given up.
        self.sweeps = 0
        self._connection = _open(path)
        row = self._connection.execute("SELECT coalesce(max(number), 0), coalesce(max(stamp), 0) FROM flows").fetchone()
        self.number, self.stamp = int(row[0]), int(row[1])
        self._ends: dict[tuple[object, ...], int] = {
            tuple(rest): number for number, *rest in self._connection.execute("SELECT * FROM ends")
        }

    def still_open(self) -> list[tuple[int, str, str, int, int, int]]:
        """Records of an earlier life whose end was not seen: number, addresses, protocol, ports."""
        query = (
            "SELECT number, source_address, destination_address, protocol, source_port, port FROM flows "
            "WHERE ended IS NULL"
        )
        return self._connection.execute(query).fetchall()

    def close(self) -> None:
        self._connection.close()

    def end_number(self, end: tuple[str, str, str, str, int, str]) -> int:
        """The number of an end (kind, project, name, pod, identity, labels), written when it is new."""
        found = self._ends.get(end)
        if found is None:
            cursor = self._connection.execute("INSERT INTO ends VALUES (NULL, ?, ?, ?, ?, ?, ?)", end)
            assert cursor.lastrowid is not None
            found = self._ends[end] = cursor.lastrowid
        return found

    def begin(self) -> None:
        """Begin a batch, unless one is open."""
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")

    def write(
        self,
        new: Sequence[Sequence[object]],
        ended: Sequence[EndedFlow] = (),
        *,
        named: Iterable[tuple[int, str, int]] = (),
        again: Iterable[tuple[int, float, int]] = (),
        judged: Iterable[tuple[int, str, str, str, int]] = (),
    ) -> None:
        """One batch, in one transaction: *new* records (as :class:`NewFlow`), then what became of records."""
        self.begin()
        execute = self._connection.executemany
        execute(_INSERT, new)
        execute(_NAME, named)
        execute(_AGAIN, again)
        execute(_VERDICT, judged)
        execute(_END, ended)
        self._connection.execute("DELETE FROM flows WHERE number<=?", (self.number - self._capacity,))
        if len(self._ends) > _SWEEP_ENDS:
            self._sweep_ends()
        self._connection.execute("COMMIT")

    def gap(self, at: float, reason: str, count: int) -> None:
        """Note that records are missing: *count* of them, -1 where nobody knows how many."""
        self.begin()
        self._connection.execute("INSERT INTO gaps VALUES (?, ?, ?)", (at, reason, count))
        self._connection.execute("DELETE FROM gaps WHERE rowid<=(SELECT max(rowid) FROM gaps)-?", (MAX_GAPS,))
        self._connection.execute("COMMIT")

    def _sweep_ends(self) -> None:
        self._connection.execute(
            "DELETE FROM ends WHERE number NOT IN (SELECT source FROM flows) "
            "AND number NOT IN (SELECT destination FROM flows)"
        )
        self._ends = {tuple(rest): number for number, *rest in self._connection.execute("SELECT * FROM ends")}
        self.sweeps += 1


def _open(path: str) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(path + suffix).unlink()
        connection = _connect(path)
        connection.execute("INSERT INTO gaps VALUES (?, ?, -1)", (time.time(), f"the store could not be read: {error}"))
        return connection


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=64)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA wal_autocheckpoint=4000")
        connection.execute("PRAGMA journal_size_limit=33554432")
        connection.execute("PRAGMA busy_timeout=5000")
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version == 0:
            connection.executescript(f"BEGIN IMMEDIATE;\n{_SCHEMA}\nPRAGMA user_version={SCHEMA_VERSION};\nCOMMIT;")
        elif version != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"schema {version}, {SCHEMA_VERSION} is known here")
        else:
            connection.execute("SELECT count(*) FROM ends").fetchone()
    except BaseException:
        connection.close()
        raise
    Path(path).chmod(0o640)
    return connection
