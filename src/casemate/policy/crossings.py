"""Whether rules leave a way for data across a wall: a path from workload to workload, or the proof that there is none.

Rules are taken as they are compiled. Two workloads are joined where either may open a connection to the other at some
port (allowed, audited or referred), because data flows both ways over it. What the walls' history forbids is counted
in: *one* workload that is no member is bound to the first member that it reaches, so it joins no two members by
itself. Two of them, or the world outside, do: what they say to each other binds nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from casemate.policy.bases import Based
from casemate.policy.compile import Compiler
from casemate.policy.decision import UNGOVERNED
from casemate.policy.identity import Identity, Kind
from casemate.policy.ports import SPAN, split
from casemate.policy.verdict import Verdict
from casemate.policy.walls import Wall

#: Paths that are looked for at most, over all walls; the first ones are shown.
MAX_CROSSINGS = 1000


@dataclass(frozen=True, slots=True)
class Hop:
    """A connection that the rules let some identity open. Numbers of identities; *place*: the first port."""

    source: int
    destination: int
    verdict: Verdict
    place: str
    rules: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Crossing:
    """A shortest path from a workload of *one* to a workload of *other*, members of *wall*.

    *outside*: it leads through addresses that are no pod's, and no path through workloads alone was found. No *hops*:
    *both* is an identity in the two members at once.
    """

    wall: str
    one: str
    other: str
    hops: tuple[Hop, ...]
    outside: bool = False
    both: int = 0

    @property
    def key(self) -> tuple[str, str, str, bool]:
        """What tells it from others when the rules change: whom it joins, not by which rules."""
        return (self.wall, self.one, self.other, self.outside)

    def describe(self, compiler: Compiler, named: Mapping[int, str] | None = None) -> str:
        """In words; *named*: who has an identity, in place of its labels."""

        def name(number: int) -> str:
            return (named or {}).get(number) or _plain(compiler.identities[number])

        if not self.hops:
            return f"wall {self.wall}: {name(self.both)} is in {self.one} and {self.other} at once"
        steps = []
        for hop in self.hops:
            why = " and ".join(dict.fromkeys(rule for rule in hop.rules if rule != UNGOVERNED))
            steps.append(f"{name(hop.source)} to {name(hop.destination)} {hop.place} ({hop.verdict.word} by {why})")
        where = ", through the outside" if self.outside else ""
        return f"wall {self.wall}: {self.one} and {self.other} are joined{where}: {'; '.join(steps)}"


def _plain(identity: Identity) -> str:
    """An identity by what its user gave it; what Casemate gives is left out."""
    if identity.kind is not Kind.POD:
        known = ",".join(sorted(identity.dns)) or (f"{len(identity.blocks)} blocks" if identity.blocks else "")
        return f"the outside ({known})" if known else "the outside"
    shown = ",".join(f"{key}={value}" for key, value in identity.labels if not key.startswith("casemate/"))
    return f"{identity.project}/({shown or 'no labels'})"


@dataclass(frozen=True, slots=True)
class Proof:
    """What was looked at for one wall, and found. No *crossings*: the rules in force leave no path across.

    *guarded*: identities that may reach several members, each workload of which its history holds to one.
    """

    wall: str
    members: tuple[tuple[str, int], ...]
    crossings: tuple[Crossing, ...]
    guarded: tuple[int, ...]


def prove(compiler: Compiler, walls: Iterable[Wall], counts: Mapping[int, int] | None = None) -> list[Proof]:
    """Every wall, every pair of its members.

    *counts*: workloads of each identity; without it each may have several. *compiler* should know the outside's
    identities too (see :func:`casemate.node.policy.wallpaths.compiled_world`), or paths through it are not seen.
    """
    return [_Search(compiler, wall, counts).proof() for wall in walls]


class _Search:
    """One wall's graph: identities by what they are to it."""

    def __init__(self, compiler: Compiler, wall: Wall, counts: Mapping[int, int] | None) -> None:
        self._compiler = compiler
        self._wall = wall
        self._counts = counts
        self._held: dict[str, set[int]] = {name: set() for name, _ in wall.members}
        self._both: list[tuple[int, str, str]] = []
        self._free: set[int] = set()
        self._world: set[int] = set()
        for number, identity in compiler.identities.items():
            names = wall.members_of(identity)
            if len(names) > 1:
                self._both.append((number, names[0], names[1]))
            elif names:
                self._held[names[0]].add(number)
            elif identity.kind is Kind.POD:
                self._free.add(number)
            else:
                self._world.add(number)
        self._near = {name: self._beside(held, self._free) for name, held in self._held.items()}
        self._parts = self._components()

    def proof(self) -> Proof:
        found = [Crossing(self._wall.name, one, other, (), both=number) for number, one, other in self._both]
        names = [name for name, held in self._held.items() if held]
        for at, one in enumerate(names):
            for other in names[at + 1 :]:
                path = self._direct(one, other) or self._inside(one, other)
                outside = not path
                path = path or self._outside(one, other)
                if path and len(found) < MAX_CROSSINGS:
                    hops = tuple(self._hop(a, b) for a, b in pairwise(path) if self._is_hop(a, b))
                    found.append(Crossing(self._wall.name, one, other, hops, outside))
        seen: set[int] = set()
        guarded: set[int] = set()
        for near in self._near.values():
            guarded |= seen & near.keys()
            seen |= near.keys()
        members = tuple((name, len(held)) for name, held in self._held.items())
        return Proof(self._wall.name, members, tuple(found), tuple(sorted(guarded)))

    # --- the graph ----------------------------------------------------------------------------------------------

    def _grouped(self, numbers: Iterable[int]) -> dict[Based, set[int]]:
        far: dict[Based, set[int]] = {}
        for number in numbers:
            far.setdefault(self._compiler.based[number], set()).add(number)
        return far

    def _beside(self, starts: Iterable[int], among: set[int]) -> dict[int, int]:
        """Who of *among* is joined with one of *starts*, and with which."""
        far, found = self._grouped(among), dict[int, int]()
        for start in sorted(starts):
            for other in sorted(set(self._compiler.neighbours(start, far))):
                found[other] = start
                self._take(far, other)
        return found

    def _take(self, far: dict[Based, set[int]], number: int) -> None:
        based = self._compiler.based[number]
        far[based].discard(number)
        if not far[based]:
            del far[based]

    def _components(self) -> dict[int, int]:
        """Free identities by the part of the graph that they hang together in."""
        parts: dict[int, int] = {}
        far = self._grouped(self._free)
        for number in sorted(self._free):
            if number in parts:
                continue
            self._take(far, number)
            parts[number] = number
            queue = deque((number,))
            while queue:
                for other in set(self._compiler.neighbours(queue.popleft(), far)):
                    parts[other] = number
                    self._take(far, other)
                    queue.append(other)
        return parts

    def _several(self, number: int) -> bool:
        return self._counts is None or self._counts.get(number, 0) > 1

    def _path(self, starts: Iterable[int], goals: set[int], through: set[int]) -> list[int]:
        """A shortest path of one hop or more from one of *starts* over *through* to one of *goals*; [] for none."""
        first = sorted(set(starts))
        came: dict[int, int | None] = dict.fromkeys(first)
        far = self._grouped((through | goals) - came.keys())
        queue = deque(first)
        while queue:
            at = queue.popleft()
            for other in sorted(set(self._compiler.neighbours(at, far))):
                came[other] = at
                self._take(far, other)
                if other in goals:
                    path, step = [other], came[other]
                    while step is not None:
                        path.append(step)
                        step = came[step]
                    return path[::-1]
                queue.append(other)
        return []

    # --- ways across ----------------------------------------------------------------------------------------------

    def _direct(self, one: str, other: str) -> list[int]:
        """Without anybody between; the walls' own rules forbid it wherever they are laid."""
        return self._path(self._held[one], self._held[other], set())

    def _inside(self, one: str, other: str) -> list[int]:
        """Through two free workloads or more: the first beside *one*, the last beside *other*, not the same."""
        near, far = self._near[one], self._near[other]
        ways: list[list[int]] = []
        parts = {self._parts[number] for number in near} & {self._parts[number] for number in far}
        for part in sorted(parts):
            starts = {number for number in near if self._parts[number] == part}
            goals = {number for number in far if self._parts[number] == part}
            within = {number for number, its in self._parts.items() if its == part}
            ways += [self._path(starts, goals - starts, within), self._path(goals, starts - goals, within)[::-1]]
            shared = sorted(starts & goals)
            if len(shared) > 1:
                ways.append(self._path(shared[:1], set(shared[1:]), within))
            ways += [self._twice(number, within) for number in shared if self._several(number)][:1]
        found = min((way for way in ways if way), key=len, default=[])
        return [near[found[0]], *found, far[found[-1]]] if found else []

    def _twice(self, number: int, within: set[int]) -> list[int]:
        """From one workload of an identity to another of the same: at once, or over a neighbour."""
        if set(self._compiler.neighbours(number, self._grouped({number}))):
            return [number, number]
        way = self._path([number], within - {number}, set())
        return [number, way[1], number] if way else []

    def _outside(self, one: str, other: str) -> list[int]:
        """Out of *one* to the world, and from the world into *other*; one free workload cannot serve both."""
        if not self._world:
            return []
        for less, more in ((one, other), (other, one)):
            way = self._path(self._held[less], self._world, self._free)
            if not way:
                return []
            # Whom a member reaches first is bound to it: the same workload leads nobody from the other.
            spent = {way[1]} if len(way) > 2 and not self._several(way[1]) else set()
            back = self._path(self._held[more], self._world, self._free - spent)
            if back:
                return [*way, *back[::-1]] if less == one else [*back, *way[::-1]]
        return []

    def _is_hop(self, one: int, other: int) -> bool:
        """Two ends outside are joined by what nobody here sees."""
        return not {one, other} <= self._world

    def _hop(self, one: int, other: int) -> Hop:
        """How *one* and *other*, of whom one may reach the other, do."""
        for source, destination in ((one, other), (other, one)):
            for cell in self._compiler.cells(source, destination):
                if cell.verdict < Verdict.HOLD:
                    protocol, first, last = next(iter(split(cell.first, cell.last)))
                    place = protocol.name.lower()
                    if (first, last) != (0, SPAN - 1):
                        place += f"/{first}" + (f"-{last}" if last != first else "")
                    rules = (cell.decision.egress.rule, cell.decision.ingress.rule)
                    return Hop(source, destination, cell.verdict, place, rules)
        raise AssertionError(f"{one} and {other} are no neighbours")
