"""What is in force: the documents' rules, and before them those of quarantines and walls. Pure.

Quarantines and walls go by labels that only Casemate gives (``casemate/quarantine``, ``casemate/wall.NAME``), so a
workload comes under them by one change of its identity, and no label of a user's takes it out. Their rules stand in
a tier before every document's, which no audit mode reaches.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from casemate.node.policy.endpoints import QUARANTINE, WALL
from casemate.policy.identity import Endpoint
from casemate.policy.labels import EVERYTHING, Operator, Requirement, Selector
from casemate.policy.parse import MAX_RULES, Document, Policies
from casemate.policy.ports import PortMatch
from casemate.policy.rules import Anyone, Direction, Order, Peer, Rule, RuleSet, Tier, Workloads
from casemate.policy.verdict import Action
from casemate.policy.walls import Wall

QUARANTINE_RULE = "Quarantine"
WALL_RULE = "Wall"
#: The value of a wall's label where a workload is in two members at once: nobody may talk to it.
BOTH = "in-two-members"
#: Before every document's rule: their priorities begin at 0. What a quarantine lets through leads across no wall.
_WALL_RANK = -2
_QUARANTINE_RANK = -1
#: More changed rules than this are put in order all anew.
MAX_PATCHED = 200


@dataclass(frozen=True, slots=True)
class Passage:
    """What a quarantine lets through: with *peers*, at *ports* (None: all), in these directions."""

    peers: tuple[Peer, ...]
    ports: tuple[PortMatch, ...] | None
    directions: tuple[Direction, ...]


def quarantine_rules(exceptions: Mapping[int, Iterable[Passage]]) -> list[Rule]:
    """The rules of the quarantines with these numbers: what each lets through, then nothing for any of them."""
    if not exceptions:
        return []
    rules: list[Rule] = []
    for number in sorted(exceptions):
        subject = Workloads(Selector((Requirement(QUARANTINE, Operator.IN, frozenset({str(number)})),)))
        for place, one in enumerate(exceptions[number]):
            for direction in one.directions:
                rule_id = f"{QUARANTINE_RULE}/{number}:allow[{place}]:{direction.value}"
                rank = (_QUARANTINE_RANK, f"{number:09d}", place)
                rules.append(Rule(rule_id, Tier.GUARD, rank, direction, subject, one.peers, Action.ALLOW, one.ports))
                # The other side: a peer that is a pod must let it in too, or the exception would be none.
                for at, peer in enumerate(one.peers):
                    if isinstance(peer, Workloads):
                        other = Direction.INGRESS if direction is Direction.EGRESS else Direction.EGRESS
                        rules.append(
                            Rule(f"{rule_id}:peer[{at}]", Tier.GUARD, rank, other, peer, (subject,), Action.ALLOW,
                                 one.ports)
                        )  # fmt: skip
    held = Workloads(Selector((Requirement(QUARANTINE, Operator.EXISTS),)))
    for direction in Direction:
        rank = (_QUARANTINE_RANK, "~", 0)
        rules.append(Rule(f"{QUARANTINE_RULE}:{direction.value}", Tier.GUARD, rank, direction, held, (Anyone(),),
                          Action.DENY, name="quarantine"))  # fmt: skip
    return rules


def wall_label(wall: Wall) -> str:
    return f"{WALL}{wall.name}"


def wall_labels(walls: Iterable[Wall], endpoint: Endpoint) -> dict[str, str]:
    """The labels by which walls' rules know that *endpoint* belongs to members."""
    found: dict[str, str] = {}
    for wall in walls:
        held = wall.members_of(endpoint)
        if held:
            found[wall_label(wall)] = held[0] if len(held) == 1 else BOTH
    return found


def wall_rules(walls: Iterable[Wall], *, refer: bool = True) -> list[Rule]:
    """Between members of different names nothing; between a member and who is none, the history decides (refer).

    What other rules forbid is not asked about. Only the opener's side is needed: both are pods, and the stricter side
    holds. Without *refer*: what the walls forbid whatever the history is.
    """
    rules: list[Rule] = []
    for wall in walls:
        label = wall_label(wall)
        outside = Workloads(Selector((Requirement(label, Operator.DOES_NOT_EXIST),)))
        inside = Workloads(Selector((Requirement(label, Operator.EXISTS),)))

        def add(what: tuple[str, int], subject: Workloads, peer: Peer, action: Action, wall: str = wall.name) -> None:
            rule_id, rank = f"{WALL_RULE}/{wall}:{what[0]}", (_WALL_RANK, wall, what[1])
            rules.append(
                Rule(rule_id, Tier.GUARD, rank, Direction.EGRESS, subject, (peer,), action, name=f"wall {wall}",
                     least=action is Action.REFER)
            )  # fmt: skip

        torn = Workloads(Selector((Requirement(label, Operator.IN, frozenset({BOTH})),)))
        add(("both", 0), torn, Workloads(EVERYTHING), Action.DENY)
        add(("to-both", 0), Workloads(EVERYTHING), torn, Action.DENY)
        for place, (member, _) in enumerate(wall.members, 1):
            own = Workloads(Selector((Requirement(label, Operator.IN, frozenset({member})),)))
            others = Selector(
                (Requirement(label, Operator.EXISTS), Requirement(label, Operator.NOT_IN, frozenset({member})))
            )
            add((f"between[{member}]", place), own, Workloads(others), Action.DENY)
        if not refer:
            continue
        last = len(wall.members) + 1
        add(("first-contact", last), outside, inside, Action.REFER)
        add(("first-contact-back", last), inside, outside, Action.REFER)
    return rules


def standing(own: RuleSet, walls: Iterable[Wall]) -> RuleSet:
    """The documents' rules *own* and what walls forbid without asking: what paths across walls are looked for in."""
    first = sorted(wall_rules(walls, refer=False), key=lambda rule: rule.order)
    return RuleSet((*first, *own.rules), own.audited, own.default)


def effective(
    policies: Policies, minute_of_week: int, default: Action, exceptions: Mapping[int, Iterable[Passage]]
) -> tuple[RuleSet, RuleSet]:
    """(what the kernel is given, what the documents say alone)."""
    own = policies.in_force(minute_of_week, default)
    above = [*quarantine_rules(exceptions), *wall_rules(policies.walls)]
    if not above:
        return own, own
    first = sorted(above, key=lambda rule: rule.order)
    return RuleSet((*first, *own.rules), own.audited, own.default), own


def asked(own: RuleSet, exceptions: Mapping[int, Iterable[Passage]]) -> RuleSet:
    """What a referred connection is judged by, the walls' history aside: quarantines, then the documents."""
    above = sorted(quarantine_rules(exceptions), key=lambda rule: rule.order)
    return RuleSet((*above, *own.rules), own.audited, own.default) if above else own


@dataclass(frozen=True, slots=True)
class Patch:
    """Another set of documents, where little is different: both lists of rules, and what differs."""

    rules: RuleSet
    own: RuleSet
    removed: list[Rule]
    added: list[Rule]


def patched(rules: RuleSet, own: RuleSet, gone: Iterable[Document], come: Iterable[Document]) -> Patch | None:
    """The documents *gone* out of what is in force and *come* into it, each rule found by its place in the order.

    None where it is not so simple: hours, audited segments, walls, many rules. *rules* and *own* are what
    :func:`effective` gave before.
    """
    touched = [*gone, *come]
    removed = [rule for one in gone for rule in one.parsed.rules]
    added = [rule for one in come for rule in one.parsed.rules]
    if len(removed) + len(added) > MAX_PATCHED or any(
        one.parsed.audited or one.parsed.walls or any(rule.windows for rule in one.parsed.rules) for one in touched
    ):
        return None
    if len(own.rules) - len(removed) + len(added) > MAX_RULES:
        return None
    ordered = list(own.rules)
    for rule in removed:
        place = bisect_left(ordered, rule.order, key=_order)
        if place == len(ordered) or ordered[place] is not rule:
            return None
        del ordered[place]
    for rule in added:
        insort(ordered, rule, key=_order)
    above = rules.rules[: len(rules.rules) - len(own.rules)]
    after = RuleSet(tuple(ordered), own.audited, own.default)
    whole = RuleSet((*above, *ordered), own.audited, own.default) if above else after
    return Patch(whole, after, removed, added)


def _order(rule: Rule) -> Order:
    return rule.order
