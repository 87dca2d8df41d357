"""The search for paths across walls against going through every path there is."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.policy.addresses import BlockIndex
from casemate.policy.compile import Compiler
from casemate.policy.crossings import prove
from casemate.policy.identity import NOBODY, Endpoint, Identity, Kind, identity_of
from casemate.policy.labels import Operator, Requirement, Selector, labels
from casemate.policy.rules import Anyone, Direction, Rule, Tier, Workloads, rule_set
from casemate.policy.verdict import Action, Verdict
from casemate.policy.walls import Wall

MEMBERS = ("a", "b")


def pick(name: str) -> Workloads:
    return Workloads(Selector((Requirement("is", Operator.IN, frozenset({name})),)))


WALL = Wall("w", tuple((name, (pick(name),)) for name in MEMBERS))
#: Who may open a connection to whom; between members nothing, as the walls' own rules have it.
PAIRS = [
    ("a", "x"), ("y", "a"), ("a", "world"), ("x", "b"), ("b", "y"), ("b", "world"), ("x", "x"), ("y", "y"), ("x", "y"),
    ("x", "world"), ("world", "y"),
]  # fmt: skip
edges = st.integers(0, 2 ** len(PAIRS) - 1).map(lambda bits: {one for n, one in enumerate(PAIRS) if bits >> n & 1})
populations = st.tuples(st.integers(0, 2), st.integers(0, 2)).map(lambda n: ["a", "b", *["x"] * n[0], *["y"] * n[1]])


def compiled(joined: set[tuple[str, str]], ends: list[Endpoint]) -> tuple[Compiler, dict[int, int], dict[str, int]]:
    everyone, world = Workloads(), Anyone()
    rules = []
    for number, (source, destination) in enumerate(sorted(joined)):
        for way, subject, peer in ((Direction.EGRESS, source, destination), (Direction.INGRESS, destination, source)):
            if subject != "world":
                picked = (world,) if peer == "world" else (pick(peer),)
                rules.append(Rule(f"r{number}{way.value}", Tier.PROJECT, (int(peer == "world") * 2, "", number), way,
                                  pick(subject), picked, Action.ALLOW))  # fmt: skip
    # "Anyone" is pods too: what is not named among pods is closed before it.
    for way in Direction:
        rules.append(Rule(f"pods{way.value}", Tier.PROJECT, (1, "", 0), way, everyone, (everyone,), Action.DENY))
        rules.append(Rule(f"all{way.value}", Tier.PROJECT, (3, "", 0), way, everyone, (world,), Action.DENY))
    own = [identity_of(end, BlockIndex(())) for end in ends]
    numbers = NOBODY.allocate([*own, Identity(Kind.WORLD)]).numbers
    known = {dict(identity.labels).get("is", "world"): number for identity, number in numbers.items()}
    counts = Counter(numbers[identity] for identity in own)
    return Compiler(rule_set(rules), {number: one for one, number in numbers.items()}), dict(counts), known


def slow(compiler: Compiler, known: dict[str, int], ends: list[Endpoint]) -> tuple[set[tuple[str, str]], ...]:
    """Pairs of members that are joined through workloads, and those joined through the outside alone."""

    def joined(one: str, other: str) -> bool:
        for pair in ((known[one], known[other]), (known[other], known[one])):
            try:
                if any(cell.verdict < Verdict.HOLD for cell in compiler.cells(*pair)):
                    return True
            except KeyError:
                return False
        return False

    kinds = [dict(end.labels)["is"] for end in ends]
    free = [place for place, kind in enumerate(kinds) if kind not in MEMBERS]

    def word(place: int) -> str:
        return "world" if place < 0 else kinds[place]

    inside: set[tuple[str, str]] = set()
    outside: set[tuple[str, str]] = set()
    for found, steps in ((inside, free), (outside, [*free, -1])):
        for count in range(1, len(steps) + 1):
            for way in permutations(steps, count):
                if (found is inside and count < 2) or (found is outside and -1 not in way):
                    continue
                words = [word(place) for place in way]
                if all(joined(one, other) for one, other in pairwise(words)):
                    for at, one in enumerate(MEMBERS):
                        for other in MEMBERS[at + 1 :]:
                            if one in kinds and other in kinds:
                                for first, last in ((one, other), (other, one)):
                                    if joined(first, words[0]) and joined(words[-1], last):
                                        found.add((one, other))
    return inside, outside - inside


@settings(max_examples=400, deadline=None)
@given(edges, populations)
def test_found_is_what_is_there(joined: set[tuple[str, str]], kinds: list[str]) -> None:
    ends = [Endpoint(f"p/{n}", "p", labels({"is": kind})) for n, kind in enumerate(kinds)]
    compiler, counts, known = compiled(joined, ends)
    (proof,) = prove(compiler, (WALL,), counts)
    inside, outside = slow(compiler, known, ends)
    assert {(one.one, one.other) for one in proof.crossings if not one.outside} == inside
    assert {(one.one, one.other) for one in proof.crossings if one.outside} == outside
    for one in proof.crossings:
        assert one.hops
        assert one.describe(compiler)
