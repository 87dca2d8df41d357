"""Paths across walls: what the rules leave at every hour of the week, and who may leave one on purpose.

Looked at before a set of documents comes into force, so that one that opens a path is refused; when somebody asks; and
when workloads have come or changed. What is proved is about the rules and the workloads of that moment.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from casemate.node import audit, events
from casemate.node.core import Caller, Core, report
from casemate.node.policy import rights
from casemate.node.policy.errors import WallPathOpened
from casemate.node.policy.ruleset import standing
from casemate.node.policy.state import Policy
from casemate.node.policy.wallstate import Line, append
from casemate.policy.addresses import BlockIndex
from casemate.policy.compile import Compiler
from casemate.policy.crossings import Crossing, prove
from casemate.policy.identity import NOBODY, Endpoint, Identity, Kind, identity_of
from casemate.policy.parse import Document, Policies, together
from casemate.policy.rules import Names, RuleSet, block_groups
from casemate.policy.windows import in_force
from casemate.spec.api.walls import WallCheck, WallCount, WallProof

#: Different sets of rules that hours make, each compiled on its own; documents with more are not proved, and say so.
MAX_HOURS = 64
#: Paths that an answer names of one wall.
MAX_SHOWN = 100
#: After a workload has come or changed: at the earliest, and so many times as long as the last look took.
LOOK_AFTER_S = 2.0
LOOK_SHARE = 20.0


@dataclass(frozen=True, slots=True)
class Path:
    """A crossing, and in words as the rules of its hour have it."""

    crossing: Crossing
    text: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What was looked at and found. *whole* is False where the hours were too many to look at each."""

    proofs: tuple[WallProof, ...] = ()
    paths: tuple[Path, ...] = ()
    whole: bool = True

    @property
    def inside(self) -> tuple[Path, ...]:
        """Those through workloads of this node alone: what is refused."""
        return tuple(path for path in self.paths if not path.crossing.outside)


NOTHING = Seen()


def look(policies: Policies, own: RuleSet, ends: Iterable[Endpoint]) -> Seen:
    """Every wall of *policies* under the documents' rules *own* (for the defaults) and at every hour. In a thread."""
    if not policies.walls:
        return NOTHING
    found = list(ends)
    sets, whole = _hours(policies, own)
    paths: dict[tuple[str, str, str, bool], Path] = {}
    proofs: dict[str, WallProof] = {}
    for rules in sets:
        compiler, holders = compiled_world(standing(rules, policies.walls), found)
        counts = {number: len(names) for number, names in holders.items()}
        named = {number: _several(names) for number, names in holders.items()}
        for proof in prove(compiler, policies.walls, counts):
            for one in proof.crossings:
                paths.setdefault(one.key, Path(one, one.describe(compiler, named)))
            held = proofs.get(proof.wall)
            guarded = {named[number] for number in proof.guarded}
            proofs[proof.wall] = WallProof(
                wall=proof.wall, identities=len(compiler.identities), rules=len(rules.rules), hours=len(sets),
                members=tuple(WallCount(name, count) for name, count in proof.members),
                guarded=tuple(sorted(guarded | set(held.guarded if held else ()))[:MAX_SHOWN]), whole=whole,
            )  # fmt: skip
    ordered = tuple(paths[key] for key in sorted(paths))
    return Seen(tuple(_with_paths(proof, ordered) for proof in proofs.values()), ordered, whole)


def _with_paths(proof: WallProof, paths: Iterable[Path]) -> WallProof:
    mine = [path for path in paths if path.crossing.wall == proof.wall]
    inside = tuple(path.text for path in mine if not path.crossing.outside)[:MAX_SHOWN]
    outside = tuple(path.text for path in mine if path.crossing.outside)[:MAX_SHOWN]
    return WallProof(
        proof.wall, proof.members, proof.guarded, inside, outside, proof.identities, proof.rules, proof.hours,
        proof.whole,
    )  # fmt: skip


def _hours(policies: Policies, own: RuleSet) -> tuple[list[RuleSet], bool]:
    """A set of rules for each different choice that the hours of a week make; cut short beyond a bound."""
    timed = [rule for rule in policies.rules if rule.windows]
    if not timed:
        return [own], True
    borders = sorted({border for rule in timed for window in rule.windows for border in window.borders()})
    chosen: dict[tuple[bool, ...], int] = {}
    for minute in borders:
        chosen.setdefault(tuple(in_force(rule.windows, minute) for rule in timed), minute)
        if len(chosen) > MAX_HOURS:
            return [policies.in_force(at, own.default) for at in list(chosen.values())[:MAX_HOURS]], False
    return [policies.in_force(at, own.default) for at in chosen.values()], True


def _several(names: Sequence[str]) -> str:
    """Who has an identity: the first few by name."""
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def compiled_world(rules: RuleSet, ends: Iterable[Endpoint]) -> tuple[Compiler, dict[int, list[str]]]:
    """*rules* for the identities of *ends* and those of the outside, and which workloads have each.

    The outside: an identity for each set of blocks that rules name, and one for each name.
    """
    index = BlockIndex(block_groups(rules))
    own = [(end.name, identity_of(end, index)) for end in ends]
    world = {Identity(Kind.WORLD, blocks=groups) for version in (4, 6) for _, _, groups in index.cells(version)}
    patterns = {
        pattern for rule in rules.rules for peer in rule.peers if isinstance(peer, Names) for pattern in peer.patterns
    }
    world |= {Identity(Kind.WORLD, dns=frozenset({pattern.replace("*", "any", 1)})) for pattern in patterns}
    numbers = NOBODY.allocate([*(identity for _, identity in own), *world]).numbers
    holders: dict[int, list[str]] = {}
    for name, identity in sorted(own, key=lambda one: one[0]):
        holders.setdefault(numbers[identity], []).append(name)
    return Compiler(rules, {number: identity for identity, number in numbers.items()}), holders


async def looked(policy: Policy, documents: Mapping[str, Document] | None = None) -> Seen:
    """What holds, or (with *documents*) what would."""
    policies = policy.policies
    if documents is not None:
        policies = await asyncio.to_thread(together, list(documents.values()))
    if not policies.walls:
        return NOTHING
    _, own = policy.worked_out(policies)
    ends = policy.ends(policies.walls)
    return await asyncio.to_thread(look, policies, own, ends)


async def demand(
    core: Core, documents: Mapping[str, Document], caller: Caller, *, reason: str
) -> tuple[Seen, tuple[Path, ...]]:  # fmt: skip
    """What *documents* would leave, and of that what is new and was allowed on purpose; the policy's lock is held.

    Raises :class:`WallPathOpened` where they open a path that is not open already, unless an officer gives a *reason*
    (:class:`GrantMissing` for anybody else) or the node is set to warn.
    """
    policy = core.policy
    after = await looked(policy, documents)
    if not after.inside:
        return after, ()
    before = {path.crossing.key for path in (await looked(policy)).inside}
    new = [path for path in after.inside if path.crossing.key not in before]
    if not new or core.settings.text("policy.wall_paths") == "warn":
        return after, ()
    if reason.strip():
        rights.demand(caller, "to open a path across a wall")
        return after, tuple(new)
    more = f" (and {len(new) - 1} more)" if len(new) > 1 else ""
    raise WallPathOpened(f"{new[0].text}{more}", wall=new[0].crossing.wall, paths=len(new))


def allowed(db: sqlite3.Connection, at: float, paths: Iterable[Path], caller: Caller, reason: str) -> None:
    """What an officer allows stands in the walls' evidence and the audit log; in the change's transaction."""
    for path in paths:
        one = path.crossing
        ends = f"{one.one} and {one.other}"
        append(db, at, Line("opened", one.wall, "", ends, "", caller.who, f"{reason}: {path.text}"))
        audit.append(db, at, caller.who, "wall.opened", one.wall, members=ends, reason=reason, path=path.text[:1000])
        events.add(db, at, "wall", one.wall, "opened", members=ends, path=path.text[:1000])


async def check(policy: Policy, documents: Iterable[Document], *, whole: bool) -> WallCheck:
    """The proof for what is in force, or what would be with *documents* beside it (*whole*: in its place)."""
    await policy.load()
    given = {one.key: one for one in documents}
    both = {**({} if whole else policy.documents), **given} if given or whole else None
    seen = await looked(policy, both)
    return WallCheck(seen.proofs, closed=not seen.inside and seen.whole)


class Watch:
    """Looks again when what holds has changed, and tells of paths that were not there: a workload that comes under
    labels of its own can open one that no document did.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._again = False
        self._running = False
        core.policy.changed.append(self.changed)

    def changed(self) -> None:
        """Cheap; called at each change."""
        if not self._core.policy.walls:
            self._core.walls.paths = None
            return
        self._again = True
        if not self._running:
            self._running = True
            self._core.spawn(self._run(), "paths across walls")

    async def _run(self) -> None:
        wait_s = LOOK_AFTER_S
        loop = asyncio.get_running_loop()
        try:
            while self._again:
                await asyncio.sleep(wait_s)
                self._again = False
                began = loop.time()
                await self.look()
                wait_s = max(LOOK_AFTER_S, LOOK_SHARE * (loop.time() - began))
        except Exception:
            report("paths across walls could not be looked for")
        finally:
            self._running = False

    async def look(self) -> tuple[Path, ...]:
        """Look now; paths that are new since the last look are told as events. They are the answer."""
        core = self._core
        seen = await looked(core.policy)
        before, core.walls.paths = core.walls.paths, {path.crossing.key for path in seen.paths}
        new = tuple(path for path in seen.inside if before is not None and path.crossing.key not in before)
        if new:
            at = core.clock()

            def work(db: sqlite3.Connection) -> None:
                for path in new:
                    one = path.crossing
                    facts = {"members": f"{one.one} and {one.other}", "path": path.text[:1000]}
                    events.add(db, at, "wall", one.wall, "path", **facts)
                    audit.append(db, at, "casemated", "wall.path", one.wall, answer="seen", **facts)

            await core.db.write(work)
            core.events.wake()
        return new
