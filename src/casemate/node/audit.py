"""The audit log: who changed what, and each use of a grant; each row's hash covers the row before it."""

from __future__ import annotations

import hashlib
import sqlite3

import msgspec

from casemate.node.clock import rfc3339
from casemate.spec.api import AuditList, AuditRow

#: Rows of a page at most.
MAX_PAGE = 1000
_START = "0" * 64


class Entry(msgspec.Struct, frozen=True):
    """A row before it is numbered and chained."""

    at: str
    who: str
    action: str
    subject: str
    answer: str
    facts: dict[str, object]


_UNREADABLE = Entry("", "?", "unreadable", "", "", {})


def append(
    db: sqlite3.Connection, at: float, who: str, action: str, subject: str, *, answer: str = "done", **facts: object
) -> None:
    """Add a row; call it in the transaction that makes the change."""
    entry = msgspec.json.encode(Entry(rfc3339(at), who, action, subject, answer, facts))
    last = db.execute("SELECT chain FROM audit ORDER BY number DESC LIMIT 1").fetchone()
    chain = _chain(last[0] if last else _START, entry)
    db.execute("INSERT INTO audit (row, chain) VALUES (?, ?)", (entry, chain))


def page(db: sqlite3.Connection, after: int, limit: int) -> AuditList:
    """Rows with a number above *after*; ``intact`` says whether the chain of these rows holds."""
    before = db.execute("SELECT chain FROM audit WHERE number<=? ORDER BY number DESC LIMIT 1", (after,)).fetchone()
    expected = before[0] if before else _START
    rows: list[AuditRow] = []
    intact = True
    query = "SELECT number, row, chain FROM audit WHERE number>? ORDER BY number LIMIT ?"
    for number, raw, chain in db.execute(query, (after, min(limit, MAX_PAGE))):
        expected = _chain(expected, raw)
        intact = intact and expected == chain
        expected = chain
        try:
            e = msgspec.json.decode(raw, type=Entry)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            intact, e = False, _UNREADABLE
        rows.append(AuditRow(number, e.at, e.who, e.action, e.subject, e.answer, e.facts, chain))
    return AuditList(tuple(rows), intact)


def before_last(db: sqlite3.Connection, count: int) -> int:
    """The number after which the last *count* rows stand."""
    found = db.execute("SELECT number FROM audit ORDER BY number DESC LIMIT 1 OFFSET ?", (count,)).fetchone()
    return int(found[0]) if found else 0


def verify(db: sqlite3.Connection) -> int | None:
    """The number of the first row whose chain does not hold, or None when all do."""
    expected, last = _START, 0
    for number, raw, chain in db.execute("SELECT number, row, chain FROM audit ORDER BY number"):
        expected = _chain(expected, raw)
        if expected != chain or number != last + 1:
            return int(number)
        last = number
    return None


def _chain(before: str, row: bytes) -> str:
    return hashlib.sha256(before.encode() + row).hexdigest()
