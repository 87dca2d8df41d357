"""What rules say taken together: paths across walls, rules that never decide, selectors that pick nobody."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from casemate.policy.bases import Based
from casemate.policy.compile import Compiler
from casemate.policy.identity import Endpoint, Identity
from casemate.policy.labels import Operator, Selector
from casemate.policy.parse import Policies
from casemate.policy.ports import split
from casemate.policy.rules import Rule, Workloads
from casemate.policy.verdict import Action, Verdict
from casemate.policy.walls import Wall

MAX_WARNINGS = 1000


@dataclass(frozen=True, slots=True)
class Hop:
    """A connection that the rules in force let some identity open; data flows both ways over it."""

    source: int
    destination: int
    verdict: Verdict
    place: str
    rules: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Crossing:
    """The shortest path from a workload of *one* to a workload of *other*, members of *wall*."""

    wall: str
    one: str
    other: str
    hops: tuple[Hop, ...]

    def describe(self, compiler: Compiler) -> str:
        steps = []
        for hop in self.hops:
            source, destination = (compiler.identities[n].describe() for n in (hop.source, hop.destination))
            steps.append(f"{source} to {destination} {hop.place} ({hop.verdict.word} by {' and '.join(hop.rules)})")
        return f"wall {self.wall}: {self.one} and {self.other} are joined by {'; '.join(steps)}"


def crossings(compiler: Compiler, walls: Iterable[Wall]) -> list[Crossing]:
    """A path for each pair of members that the rules leave joined, through any number of hops.

    Empty means: no sequence of connections that the rules allow, audit or refer leads across. The history of walls
    forbids more while things run (one workload between two members); this looks at rules alone, and so errs on the
    strict side. Outside identities count as one end each: what they do among themselves nobody here sees.
    """
    found: list[Crossing] = []
    for wall in walls:
        places: dict[str, set[int]] = {name: set() for name, _ in wall.members}
        for number, identity in compiler.identities.items():
            for member in wall.members_of(identity):
                places[member].add(number)
        names = [name for name, _ in wall.members]
        for at, one in enumerate(names):
            for other in names[at + 1 :]:
                hops = _path(compiler, places[one], places[other])
                if hops is not None:
                    found.append(Crossing(wall.name, one, other, hops))
    return found


def _path(compiler: Compiler, starts: set[int], goals: set[int]) -> tuple[Hop, ...] | None:
    """Breadth first, so the shortest. An identity that is in both members joins them without a hop."""
    came: dict[int, int | None] = dict.fromkeys(sorted(starts))
    far: dict[Based, set[int]] = {}
    for number in compiler.identities.keys() - starts:
        far.setdefault(compiler.based[number], set()).add(number)
    queue = deque(came)
    while queue:
        at = queue.popleft()
        if at in goals:
            hops: list[Hop] = []
            while (step := came[at]) is not None:
                hops.append(_hop(compiler, step, at))
                at = step
            return tuple(reversed(hops))
        for other in sorted(set(compiler.neighbours(at, far))):
            came[other] = at
            queue.append(other)
            based = compiler.based[other]
            far[based].discard(other)
            if not far[based]:
                del far[based]
    return None


def _hop(compiler: Compiler, one: int, other: int) -> Hop:
    """How *one* and *other*, of whom one may reach the other, do."""
    for source, destination in ((one, other), (other, one)):
        for cell in compiler.cells(source, destination):
            if cell.verdict < Verdict.HOLD:
                protocol, first, last = next(iter(split(cell.first, cell.last)))
                place = f"{protocol.name.lower()}/{first}" + (f"-{last}" if last != first else "")
                rules = (cell.decision.egress.rule, cell.decision.ingress.rule)
                return Hop(source, destination, cell.verdict, place, rules)
    raise AssertionError(f"{one} and {other} are no neighbours")


def warnings(policies: Policies, compiler: Compiler, endpoints: Iterable[Endpoint]) -> list[str]:
    """What is allowed to be written and is hardly meant. At most :data:`MAX_WARNINGS` and a line."""
    ends = list(endpoints)
    out = [*_unmatched(policies.rules, ends), *_contradictions(policies.rules), *_never(policies.rules, compiler)]
    if len(out) > MAX_WARNINGS:
        return [*out[:MAX_WARNINGS], f"and {len(out) - MAX_WARNINGS} more warnings"]
    return out


def warnings_of(rules: Iterable[Rule], identities: Iterable[Identity]) -> list[str]:
    """The part of :func:`warnings` that needs no compiled rules: ends of *rules* that select nothing."""
    return _unmatched(rules, list(identities))[:MAX_WARNINGS]


def _unmatched(rules: Iterable[Rule], ends: Sequence[Endpoint | Identity]) -> list[str]:
    held = {pair for end in ends for pair in (*end.labels, *end.project_labels)}
    keys = {key for key, _ in held}
    known: dict[Workloads, str] = {}
    out: list[str] = []
    for rule in rules:
        for what, picked in (("subject", rule.subject), *(("peer", peer) for peer in rule.peers)):
            if not isinstance(picked, Workloads):
                continue
            if picked not in known:
                picks = any(picked.matches(end) for end in ends)
                known[picked] = "" if picks else _why(picked, held, keys)
            if known[picked]:
                out.append(f"{rule.id}: its {what} {picked.describe()} selects nothing{known[picked]}")
    return list(dict.fromkeys(out))


def _why(picked: Workloads, held: set[tuple[str, str]], keys: set[str]) -> str:
    for selector in (picked.selector, picked.projects or Selector()):
        for requirement in selector.requirements:
            if requirement.operator in (Operator.IN, Operator.EXISTS) and requirement.key not in keys:
                return f": nothing has the label {requirement.key!r}"
            if requirement.operator is Operator.IN and not any(
                (requirement.key, v) in held for v in requirement.values
            ):
                return f": no {requirement.key!r} has that value"
    return "."


def _contradictions(rules: Iterable[Rule]) -> list[str]:
    """Rules of one tier about exactly the same connections that ask for different things."""
    seen: dict[object, Rule] = {}
    out: list[str] = []
    for rule in sorted(rules, key=lambda rule: rule.order):
        if rule.id.endswith(":isolation") or rule.condition or rule.windows:
            continue
        key = (rule.tier, rule.direction, rule.subject, rule.peers, rule.ports)
        first = seen.setdefault(key, rule)
        if first.action is not rule.action and not first.audit and first.action is not Action.PASS:
            out.append(f"{rule.id} contradicts {first.id}, which stands before it: {first.action.name.lower()} holds")
    return out


def _never(rules: Iterable[Rule], compiler: Compiler) -> list[str]:
    """Rules that pick somebody, and of which no pair of identities ever hears: earlier rules decide everything."""
    heard = compiler.heard()
    ends = list(compiler.identities.values())
    known: dict[Workloads, bool] = {}

    def picks(workloads: Workloads) -> bool:
        if workloads not in known:
            known[workloads] = any(workloads.matches(end) for end in ends)
        return known[workloads]

    return [
        f"{rule.id} never decides: rules before it decide everything that it is about"
        for rule in rules
        if rule.id not in heard
        and rule.action is not Action.PASS
        and not rule.id.endswith(":isolation")
        and not rule.windows
        and picks(rule.subject)
        and any(not isinstance(peer, Workloads) or picks(peer) for peer in rule.peers)
    ]
