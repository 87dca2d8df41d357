"""Policy in the database: documents, identity numbers, quarantines, referrals' answers."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import islice
from typing import Any

import msgspec

from casemate.node.clock import rfc3339
from casemate.node.policy.referral_packs import Run, packed, read
from casemate.policy.identity import FIRST_NUMBER, Allocation, Identity, Kind
from casemate.policy.parse import Document
from casemate.policy.ports import NamedPort, Protocol
from casemate.spec.api.policy import PolicyRow, QuarantineAllow, QuarantineRow, ReferralRow

_NEXT = "policy.next_number"
#: Decided referrals that are kept; the ring may be longer by TRIM_EVERY between two trims.
REFERRAL_ROWS = 50_000
TRIM_EVERY = 256
_ALLOWS = msgspec.json.Decoder(tuple[QuarantineAllow, ...])
_TEXTS = msgspec.json.Decoder(tuple[str, ...])
_REFERRAL = msgspec.json.Decoder(ReferralRow)
_encode = msgspec.json.Encoder().encode


def documents(db: sqlite3.Connection) -> list[tuple[PolicyRow, dict[str, Any]]]:
    """Every document with its row, by key."""
    query = (
        "SELECT key, kind, project, name, rules, walls, applied_at, applied_by, document FROM policy_documents "
        "ORDER BY key"
    )
    return [
        (PolicyRow(key, kind, project, name, rules, walls, rfc3339(at), by), msgspec.json.decode(raw))
        for key, kind, project, name, rules, walls, at, by, raw in db.execute(query)
    ]


def put_document(db: sqlite3.Connection, one: Document, at: float, who: str) -> None:
    db.execute(
        "INSERT OR REPLACE INTO policy_documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (one.key, one.kind, one.project, one.name, len(one.parsed.rules), len(one.parsed.walls), at, who,
         msgspec.json.encode(one.value)),
    )  # fmt: skip


def drop_document(db: sqlite3.Connection, key: str) -> None:
    db.execute("DELETE FROM policy_documents WHERE key=?", (key,))


# --- identity numbers -------------------------------------------------------------------------------------------


class _Identity(msgspec.Struct, frozen=True, array_like=True):
    kind: str
    project: str
    labels: tuple[tuple[str, str], ...]
    project_labels: tuple[tuple[str, str], ...]
    ports: tuple[tuple[str, int, int], ...]
    blocks: tuple[str, ...]
    dns: tuple[str, ...]


_IDENTITY = msgspec.json.Decoder(_Identity)


def identity_bytes(identity: Identity) -> bytes:
    """*identity* as the store keeps it; equal identities give equal bytes."""
    ports = tuple((port.name, port.protocol.value, port.number) for port in identity.ports)
    return msgspec.json.encode(
        _Identity(identity.kind.value, identity.project, identity.labels, identity.project_labels, ports,
                  tuple(sorted(identity.blocks)), tuple(sorted(identity.dns)))
    )  # fmt: skip


def identity_from(raw: bytes) -> Identity:
    held = _IDENTITY.decode(raw)
    ports = tuple(NamedPort(name, Protocol(protocol), number) for name, protocol, number in held.ports)
    return Identity(
        Kind(held.kind), held.project, held.labels, held.project_labels, ports, frozenset(held.blocks),
        frozenset(held.dns),
    )  # fmt: skip


def allocation(db: sqlite3.Connection) -> Allocation:
    """The numbers of an earlier life of the daemon."""
    numbers = {identity_from(raw): number for number, raw in db.execute("SELECT number, identity FROM policy_numbers")}
    found = db.execute("SELECT value FROM facts WHERE name=?", (_NEXT,)).fetchone()
    return Allocation(numbers, int(found[0]) if found else FIRST_NUMBER)


def keep_allocation(db: sqlite3.Connection, before: Allocation, after: Allocation) -> None:
    """Write what *after* has and *before* has not, and strike out what is gone."""
    gone = [(number,) for identity, number in before.numbers.items() if after.numbers.get(identity) != number]
    db.executemany("DELETE FROM policy_numbers WHERE number=?", gone)
    new = [
        (number, identity_bytes(identity))
        for identity, number in after.numbers.items()
        if before.numbers.get(identity) != number
    ]
    db.executemany("INSERT OR REPLACE INTO policy_numbers VALUES (?, ?)", new)
    db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (_NEXT, str(after.next_number)))


# --- quarantines ------------------------------------------------------------------------------------------------

_QUARANTINE = (
    "SELECT number, workload, since, who, cause, reason, until, allow, before, released_at, released_by, "
    "release_reason FROM quarantines "
)


def quarantines(db: sqlite3.Connection, *, everything: bool = False) -> list[QuarantineRow]:
    """Those that hold, or all that ever were, the newest first."""
    where = "" if everything else "WHERE released_at=0 "
    rows = db.execute(f"{_QUARANTINE}{where}ORDER BY number DESC LIMIT 1000")
    return [
        QuarantineRow(
            number, workload, rfc3339(since), who, cause, reason, rfc3339(until), _ALLOWS.decode(allow),
            _TEXTS.decode(before), rfc3339(released), by, why,
        )
        for number, workload, since, who, cause, reason, until, allow, before, released, by, why in rows
    ]  # fmt: skip


def quarantine_ends(db: sqlite3.Connection) -> dict[int, float]:
    """When each one that holds ends by itself (seconds since the epoch)."""
    return dict(db.execute("SELECT number, until FROM quarantines WHERE released_at=0 AND until>0").fetchall())


def add_quarantine(db: sqlite3.Connection, row: QuarantineRow, at: float, until: float) -> int:
    """Write *row* (its number and times are made here: *at*, *until* in seconds, 0 for no end); its number."""
    cursor = db.execute(
        "INSERT INTO quarantines (workload, since, until, who, cause, reason, allow, before) VALUES (?,?,?,?,?,?,?,?)",
        (row.workload, at, until, row.by, row.cause, row.reason, msgspec.json.encode(row.allow),
         msgspec.json.encode(row.before)),
    )  # fmt: skip
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def end_quarantine(db: sqlite3.Connection, number: int, at: float, who: str, reason: str) -> None:
    db.execute(
        "UPDATE quarantines SET released_at=?, released_by=?, release_reason=? WHERE number=? AND released_at=0",
        (at, who, reason, number),
    )


# --- referrals --------------------------------------------------------------------------------------------------


def add_referrals(db: sqlite3.Connection, rows: Sequence[ReferralRow], runs: Sequence[Run] = ()) -> None:
    """Keep decided referrals: *rows* each by itself, *runs* (in the order of their numbers) packed."""
    packs = packed(runs)
    db.executemany("INSERT OR REPLACE INTO referrals VALUES (?, ?)", [(row.number, _encode(row)) for row in rows])
    db.executemany("INSERT OR REPLACE INTO referral_packs VALUES (?, ?, ?)", packs)
    last = max([*(row.number for row in rows), *(pack.last for pack in packs)])
    if last // TRIM_EVERY != (last - len(rows) - sum(len(run.ports) for run in runs)) // TRIM_EVERY:
        db.execute("DELETE FROM referrals WHERE number<=?", (last - REFERRAL_ROWS,))
        db.execute("DELETE FROM referral_packs WHERE last<=?", (last - REFERRAL_ROWS,))


def referrals(db: sqlite3.Connection, limit: int, project: str = "") -> list[ReferralRow]:
    """The newest decided ones, the newest first; with an end in *project*, if given."""
    query, packs = "SELECT row FROM referrals", "SELECT pack FROM referral_packs"
    if project:
        ends = (f"json_extract(CAST(row AS TEXT), '$.{end}') GLOB ?" for end in ("source", "destination"))
        query += f" WHERE {' OR '.join(ends)}"
        packs += " WHERE instr(projects, ?)"
    values = (f"{project}/*",) * 2 if project else ()
    rows = db.execute(f"{query} ORDER BY number DESC LIMIT ?", (*values, limit))
    found = [_REFERRAL.decode(row) for (row,) in rows]
    held = db.execute(f"{packs} ORDER BY last DESC", (f" {project} ",) if project else ())
    found += islice((row for (pack,) in held for row in read(pack, project)), limit)
    found.sort(key=lambda row: -row.number)
    return found[:limit]


def last_referral(db: sqlite3.Connection) -> int:
    query = "SELECT max(coalesce(max(number), 0), (SELECT coalesce(max(last), 0) FROM referral_packs)) FROM referrals"
    return int(db.execute(query).fetchone()[0])


def remember(db: sqlite3.Connection, key: str, row: ReferralRow, until: float) -> None:
    """Keep a person's answer for equal connections; *until* 0 is without end."""
    db.execute("INSERT OR REPLACE INTO referral_answers VALUES (?, ?, ?)", (key, until, msgspec.json.encode(row)))


def forget(db: sqlite3.Connection, key: str) -> None:
    db.execute("DELETE FROM referral_answers WHERE key=?", (key,))


def remembered(db: sqlite3.Connection, at: float) -> dict[str, tuple[float, ReferralRow]]:
    db.execute("DELETE FROM referral_answers WHERE until>0 AND until<?", (at,))
    return {
        key: (until, _REFERRAL.decode(row))
        for key, until, row in db.execute("SELECT key, until, row FROM referral_answers")
    }
