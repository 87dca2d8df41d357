"""The journal: what is about to be done is written before it is done, and struck out after.

An entry that is still there when casemated starts names work that a crash interrupted; the reconcile loop finishes
or undoes it. ``begin`` belongs into the transaction that changes the state, ``end`` into the one that records the
effect.
"""

from __future__ import annotations

import sqlite3
from typing import Literal

import msgspec

Kind = Literal["container.start", "container.remove", "container.relevel", "pod.remove", "volume.remove", "image.adopt"]


class Entry(msgspec.Struct, frozen=True):
    """Interrupted work: *kind* on *subject*, which had come to *step*."""

    number: int
    at: float
    kind: str
    subject: str
    facts: dict[str, object]
    step: str


def begin(db: sqlite3.Connection, kind: Kind, subject: str, at: float, **facts: object) -> int:
    """Write the intent; the entry's number."""
    cursor = db.execute(
        "INSERT INTO journal (at, kind, subject, facts, step) VALUES (?, ?, ?, ?, 'intent')",
        (at, kind, subject, msgspec.json.encode(facts)),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def step(db: sqlite3.Connection, number: int, name: str) -> None:
    """Name the step that was reached."""
    db.execute("UPDATE journal SET step=? WHERE number=?", (name, number))


def end(db: sqlite3.Connection, number: int) -> None:
    """The work is done, or undone: nothing is left to converge."""
    db.execute("DELETE FROM journal WHERE number=?", (number,))


def end_all(db: sqlite3.Connection, subject: str) -> None:
    """Strike out all entries about *subject*."""
    db.execute("DELETE FROM journal WHERE subject=?", (subject,))


def pending(db: sqlite3.Connection) -> list[Entry]:
    """Every entry that is not struck out, the oldest first."""
    rows = db.execute("SELECT number, at, kind, subject, facts, step FROM journal ORDER BY number")
    return [Entry(n, at, kind, subject, msgspec.json.decode(facts), name) for n, at, kind, subject, facts, name in rows]
