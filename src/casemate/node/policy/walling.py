"""Walls at work: the history in the store, written before the first packet passes, and the evidence for an auditor.

A history line is a row whose hash covers the row before it. Histories go by the workload's stable name
(``project/container`` or ``project/pod/name``): a new image, address, label or start changes nothing, a container that
is made anew under the same name inherits it, and a rename takes it along.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from casemate.node import audit, events
from casemate.node.clock import rfc3339
from casemate.node.core import Caller, Core
from casemate.node.policy import rights, wallpaths
from casemate.node.policy.endpoints import WALL
from casemate.node.policy.errors import WallNotFound
from casemate.node.policy.wallstate import Binding, Line, append, entries, read_bound
from casemate.policy.addresses import Address
from casemate.policy.errors import PolicyInvalid, WallBreached
from casemate.policy.identity import Endpoint, Kind
from casemate.policy.walls import History, Reached, Wall, connect
from casemate.spec.api.policy import (
    WallBound,
    WallEntry,
    WallList,
    WallMember,
    WallRelease,
    WallReport,
    WallRow,
)

#: A refused attempt of the same two is written at most so often; the referral log has each.
REFUSED_EVERY_S = 60.0
MAX_REFUSED_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Judged:
    """What the walls say of a connection. *wall* is "" where none is touched."""

    allowed: bool
    why: str
    wall: str = ""


def _history(core: Core, ends: Iterable[Endpoint], planned: Sequence[Reached] = ()) -> History:
    """The bindings of these workloads alone, as the state machine takes them; with *planned* ones."""
    lines: list[Reached] = []
    names = [end.name for end in ends]
    for name in names:
        for wall, binding in core.walls.bound.get(name, {}).items():
            lines.append(Reached(len(lines), name, wall, binding.member))
    return History((*lines, *(line for line in planned if line.workload in names)))


def touched(walls: Iterable[Wall], source: Endpoint, destination: Endpoint) -> str:
    """The first wall that has one of the two among its members."""
    for wall in walls:
        if wall.members_of(source) or wall.members_of(destination):
            return wall.name
    return ""


def known(core: Core, source: Endpoint, destination: Endpoint) -> bool | None:
    """Whether the walls let *source* reach *destination*, where nothing has to be written for it; else None."""
    walls = core.policy.policies.walls
    wall = touched(walls, source, destination)
    if not wall or Kind.POD not in (source.kind, destination.kind):
        return True
    if core.walls.lock.locked():
        return None
    before = _history(core, (source, destination))
    outcome = connect(before, walls, source, destination)
    return True if outcome.allowed and len(outcome.history.lines) == len(before.lines) else None


async def judge(core: Core, source: Endpoint, destination: Endpoint, what: str) -> Judged:
    """Whether the walls let *source* open a connection to *destination*; what is reached thereby is in the store."""
    return (await judge_all(core, [(source, destination, what)]))[0]


async def judge_all(core: Core, asked: Sequence[tuple[Endpoint, Endpoint, str]]) -> list[Judged]:
    """What the walls say to connections (source, destination, what for the evidence), one after the other.

    What is reached by any of them is in the store when this returns, all in one transaction. One call at a time: two
    first contacts of one workload cannot both be its first.
    """
    judged: list[Judged] = []
    planned: list[Reached] = []
    evidence: list[Line] = []
    refused: list[tuple[str, Endpoint, Endpoint, str]] = []
    async with core.walls.lock:
        walls = core.policy.policies.walls
        for source, destination, what in asked:
            wall = touched(walls, source, destination)
            if not wall or Kind.POD not in (source.kind, destination.kind):
                judged.append(Judged(True, "no wall is touched"))
                continue
            if changed := _changed(core, (source, destination)):
                # A line under the name that it had would bind nobody.
                judged.append(Judged(False, f"{changed} is not what was asked about any more", wall))
                continue
            before = _history(core, (source, destination), planned)
            outcome = connect(before, walls, source, destination)
            judged.append(Judged(outcome.allowed, outcome.why, wall))
            if not outcome.allowed:
                refused.append((wall, source, destination, f"{what}: {outcome.why}"))
                continue
            for line in outcome.history.lines[len(before.lines) :]:
                peer = destination.name if line.workload == source.name else source.name
                planned.append(line)
                evidence.append(Line("reached", line.wall, line.workload, line.member, peer, "casemated", what))
        if evidence:
            await _reached(core, evidence)
        if refused:
            await _refused(core, refused)
    return judged


def _changed(core: Core, ends: Iterable[Endpoint]) -> str:
    """The first of *ends* that was renamed or removed since its connection was looked at; "" for none."""
    for end in ends:
        if end.kind is Kind.POD:
            now = core.policy.workloads.named(end.name)
            if now is None or now.endpoint.addresses != end.addresses:
                return end.name
    return ""


async def _reached(core: Core, lines: Sequence[Line]) -> None:
    at = core.clock()

    def work(db: sqlite3.Connection) -> None:
        for line in lines:
            append(db, at, line)
            audit.append(db, at, "casemated", "wall.reached", line.workload, wall=line.wall, member=line.member)
            events.add(db, at, "wall", line.workload, "reached", wall=line.wall, member=line.member)

    # Durable against a power cut too: the packet passes after this.
    await core.db.write(work, durable=True)
    for line in lines:
        core.walls.bound.setdefault(line.workload, {})[line.wall] = Binding(line.member, at, line.peer)
    core.events.wake()


async def _refused(core: Core, attempts: Iterable[tuple[str, Endpoint, Endpoint, str]]) -> None:
    """Write attempts (wall, source, destination, why) that were not written a moment ago."""
    at, seen = core.clock(), core.walls.refused
    lines: list[Line] = []
    for wall, source, destination, why in attempts:
        key = (wall, source.name, destination.name)
        if at - seen.get(key, 0.0) < REFUSED_EVERY_S:
            continue
        if len(seen) >= MAX_REFUSED_KEPT:
            seen.clear()
        seen[key] = at
        lines.append(Line("refused", wall, source.name, "", destination.name, "casemated", why))
    if not lines:
        return

    def work(db: sqlite3.Connection) -> None:
        for line in lines:
            append(db, at, line)
            events.add(db, at, "wall", line.workload, "refused", wall=line.wall, peer=line.peer)
            audit.append(db, at, "casemated", "wall.refused", line.workload, answer="refused", wall=line.wall,
                         peer=line.peer)  # fmt: skip

    await core.db.write(work)
    core.events.wake()


async def said(core: Core, source: Endpoint, destination: Endpoint) -> str:
    """What the walls would say to a connection now, in words; nothing is written."""
    walls = core.policy.policies.walls
    wall = touched(walls, source, destination)
    if not wall:
        return ""
    outcome = connect(_history(core, (source, destination)), walls, source, destination)
    return f"wall {wall}: {'open' if outcome.allowed else 'closed'}: {outcome.why}"


def find(core: Core, name: str) -> Wall:
    for wall in core.policy.policies.walls:
        if wall.name == name:
            return wall
    raise WallNotFound(f"wall {name[:140]!r} is not there", name=name[:140])


async def release(core: Core, request: WallRelease, caller: Caller, workload: str) -> None:
    """An officer lets *workload* begin anew; both stand in the evidence. Its open connections are cut."""
    rights.demand(caller, "to release a workload from a wall")
    if not request.reason.strip():
        raise PolicyInvalid("a release needs a reason in words")
    at = core.clock()
    async with core.walls.lock:
        bound = core.walls.bound.get(workload, {})
        if request.wall not in bound:
            find(core, request.wall)
            raise PolicyInvalid(f"{workload} is bound by no member of wall {request.wall}")
        member = bound[request.wall].member

        def work(db: sqlite3.Connection) -> None:
            append(db, at, Line("released", request.wall, workload, member, "", caller.who, request.reason))
            audit.append(db, at, caller.who, "wall.release", workload, wall=request.wall, reason=request.reason)
            events.add(db, at, "wall", workload, "released", wall=request.wall, member=member)

        await core.db.write(work, durable=True)
        del bound[request.wall]
    core.events.wake()
    # What was allowed under the old binding must be asked again: what is open, and answers that the kernel holds.
    if core.policy.active:
        await core.policy.firewall.cut(_between(core, workload, request.wall, member))
        await core.policy.firewall.forget()


def _between(core: Core, workload: str, wall: str, member: str) -> list[tuple[Address, Address]]:
    """Both ways between *workload* and everybody of *member*, by address."""
    policy = core.policy
    own = policy.workloads.named(workload)
    label = (f"{WALL}{wall}", member)
    theirs = [address for end in policy.ends() if label in end.labels for address in end.addresses]
    mine = own.endpoint.addresses if own is not None else ()
    pairs = [(one, other) for one in mine for other in theirs if one.version == other.version]
    return [*pairs, *((other, one) for one, other in pairs)]


def renamed(db: sqlite3.Connection, core: Core, names: tuple[str, str], who: str) -> None:
    """The history goes along with a rename; raises :class:`WallBreached` where the new name has another."""
    old, new = names
    at = core.clock()
    mine, theirs = core.walls.bound.get(old, {}), core.walls.bound.get(new, {})
    for wall, binding in mine.items():
        held = theirs.get(wall)
        if held is not None and held.member != binding.member:
            raise WallBreached(
                f"{old} has reached {binding.member} of wall {wall}, and the name {new} has reached {held.member}"
            )
        if held is None:
            append(db, at, Line("renamed", wall, new, binding.member, old, who, f"{old} is {new} now"))


async def listing(core: Core) -> WallList:
    """Each wall with its members, who is bound to which, and the paths that the rules leave across it."""
    policy = core.policy
    await policy.load()
    walls = policy.policies.walls
    proofs = {proof.wall: proof for proof in (await wallpaths.looked(policy)).proofs}
    rows: list[WallRow] = []
    for wall in walls:
        document = next((key for key, one in policy.documents.items() if wall in one.parsed.walls), "")
        members = tuple(WallMember(name, tuple(pick.describe() for pick in picks)) for name, picks in wall.members)
        bound = tuple(
            WallBound(workload, held[wall.name].member, rfc3339(held[wall.name].at), held[wall.name].peer)
            for workload, held in sorted(core.walls.bound.items())
            if wall.name in held
        )
        proof = proofs[wall.name]
        rows.append(WallRow(wall.name, document, members, bound, proof.paths, proof.outside))
    return WallList(tuple(rows))


async def report(core: Core, wall: str) -> WallReport:
    """The evidence: of one wall, or (empty) of all. The chain is checked over every row, also those not shown."""
    if wall:
        find(core, wall)
    rows = await listing(core)
    found, intact, chain = await core.db.read(entries)
    shown = tuple(row for row in rows.walls if wall in ("", row.name))
    lines = tuple(entry for entry in found if wall in ("", entry.wall))
    keys = {row.document for row in shown}
    documents = tuple(row for key, row in sorted(core.policy.rows.items()) if key in keys)
    at = rfc3339(core.clock())
    digest = hashlib.sha256(msgspec.json.encode((at, shown, documents, lines, intact, chain))).hexdigest()
    return WallReport(at, shown, documents, lines, intact, chain, digest)


__all__ = (
    "Judged",
    "WallEntry",
    "judge",
    "judge_all",
    "known",
    "listing",
    "read_bound",
    "release",
    "renamed",
    "report",
    "said",
)
