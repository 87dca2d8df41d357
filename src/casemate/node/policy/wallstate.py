"""The history of walls in the store: rows that only grow, each hashed over the one before; and what they add up to."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from casemate.node.clock import rfc3339
from casemate.spec.api.policy import WallEntry

START = "0" * 64
Kind = Literal["reached", "refused", "released", "renamed", "opened"]


@dataclass(frozen=True, slots=True)
class Binding:
    """*member* was reached first at *at* (seconds since the epoch), over a connection with *peer*."""

    member: str
    at: float
    peer: str


@dataclass(slots=True)
class Walls:
    """Who is bound to what: by workload, then by wall. *refused*: when an attempt was written last."""

    bound: dict[str, dict[str, Binding]] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    refused: dict[tuple[str, str, str], float] = field(default_factory=dict)
    #: Paths across that were there when somebody looked last (wall, the two members, through the outside).
    paths: set[tuple[str, str, str, bool]] | None = None


def chained(before: str, entry: WallEntry) -> str:
    """The hash of *entry* after *before*: SHA-256 over the earlier hash and the row as a JSON list."""
    row = msgspec.json.encode(
        [entry.number, entry.at, entry.kind, entry.wall, entry.workload, entry.member, entry.peer, entry.who,
         entry.reason]
    )  # fmt: skip
    return hashlib.sha256(before.encode() + row).hexdigest()


@dataclass(frozen=True, slots=True)
class Line:
    """What is to be written: see :class:`casemate.spec.api.policy.WallEntry`."""

    kind: Kind
    wall: str
    workload: str
    member: str
    peer: str
    who: str
    reason: str


def append(db: sqlite3.Connection, at: float, line: Line) -> None:
    """Add a row, in the caller's transaction."""
    last = db.execute("SELECT number, chain FROM wall_history ORDER BY number DESC LIMIT 1").fetchone()
    number, before = (last[0] + 1, last[1]) if last else (1, START)
    reason = line.reason[:2000]
    entry = WallEntry(
        number, rfc3339(at), line.kind, line.wall, line.workload, line.member, line.peer, line.who, reason, ""
    )
    db.execute(
        "INSERT INTO wall_history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (number, at, entry.at, line.kind, line.wall, line.workload, line.member, line.peer, line.who, reason,
         chained(before, entry)),
    )  # fmt: skip


_COLUMNS = "number, at_text, kind, wall, workload, member, peer, who, reason, chain"


def entries(db: sqlite3.Connection) -> tuple[list[WallEntry], bool, str]:
    """Every row in order, whether the chain holds, and its last hash."""
    found: list[WallEntry] = []
    before, intact = START, True
    for row in db.execute(f"SELECT {_COLUMNS} FROM wall_history ORDER BY number"):  # noqa: S608 - our own columns
        entry = WallEntry(*row)
        intact = intact and chained(before, entry) == entry.chain and entry.number == len(found) + 1
        before = entry.chain
        found.append(entry)
    return found, intact, before


def read_bound(db: sqlite3.Connection) -> dict[str, dict[str, Binding]]:
    """What the rows add up to."""
    bound: dict[str, dict[str, Binding]] = {}
    binding = "kind NOT IN ('refused', 'opened')"
    query = f"SELECT at, kind, wall, workload, member, peer FROM wall_history WHERE {binding} ORDER BY number"  # noqa: S608 - our own text
    for at, kind, wall, workload, member, peer in db.execute(query):
        mine = bound.setdefault(workload, {})
        if kind == "released":
            mine.pop(wall, None)
        else:
            mine[wall] = Binding(member, at, peer)
    return bound
