"""The compiled verdicts against the reference evaluator; and each change against compiling anew."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.policy.random_policies import connections, endpoints, networks_of, probes, rule_sets

from casemate.policy.addresses import BlockIndex
from casemate.policy.cells import Cells, cell_at
from casemate.policy.compile import Compiler
from casemate.policy.identity import NOBODY, Endpoint, Kind, identity_of
from casemate.policy.lower import ask
from casemate.policy.plan import AddressElement, Planner, Transaction
from casemate.policy.ports import LAST_PLACE, Protocol, place
from casemate.policy.reference import evaluate
from casemate.policy.rules import RuleSet, block_groups
from casemate.policy.verdict import Verdict


@settings(max_examples=60, deadline=None)
@given(rule_sets(), networks_of(), probes)
def test_compiled_and_reference_agree(rules: RuleSet, ends: list[Endpoint], asked: list[tuple[Protocol, int]]) -> None:
    index = BlockIndex(block_groups(rules))
    identities = {end.name: identity_of(end, index) for end in ends}
    numbers = NOBODY.allocate(identities.values()).numbers
    compiler = Compiler(rules, {number: identity for identity, number in numbers.items()})
    for one in connections(ends, asked):
        pair = numbers[identities[one.source.name]], numbers[identities[one.destination.name]]
        cells = compiler.cells(*pair)
        assert (cells[0].first, cells[-1].last) == (0, LAST_PLACE)
        assert all(left.last + 1 == right.first for left, right in pairwise(cells))
        cell = cell_at(cells, place(one.protocol, one.port))
        assert cell.decision == evaluate(rules, one)
        assert cell.verdict is evaluate(rules, one).verdict


class Kernel:
    """The maps as a kernel keeps them: deleting what is not there, or adding what is, is an error."""

    def __init__(self) -> None:
        self.verdicts: dict[tuple[int, ...], Verdict] = {}
        self.addresses: set[AddressElement] = set()
        self.bases: dict[int, tuple[int, int]] = {}

    def commit(self, done: Transaction) -> None:
        for element in done.deletes:
            assert self.verdicts.pop(element.key) is element.verdict
        for number, *based in done.base_deletes:
            assert list(self.bases.pop(number)) == based
        for element in done.adds:
            assert element.key not in self.verdicts
            self.verdicts[element.key] = element.verdict
        for number, egress, ingress in done.base_adds:
            assert number not in self.bases
            self.bases[number] = (egress, ingress)
        assert set(done.address_deletes) <= self.addresses
        self.addresses -= set(done.address_deletes)
        assert not set(done.address_adds) & self.addresses
        self.addresses |= set(done.address_adds)

    def holds(self, start: Transaction) -> None:
        """The same as compiling anew gives, with other numbers for bases."""
        assert self.addresses == set(start.address_adds)
        assert self.bases.keys() == {number for number, _, _ in start.base_adds}
        theirs = {number: (egress, ingress) for number, egress, ingress in start.base_adds}
        same: dict[int, int] = {}
        for number, based in self.bases.items():
            for one, other in zip(based, theirs[number], strict=True):
                assert same.setdefault(one, other) == other
        assert len(set(same.values())) == len(same)
        renamed = {
            (key[0], same.get(key[1], key[1]), same.get(key[2], key[2]), *key[3:]): verdict
            for key, verdict in self.verdicts.items()
        }
        assert renamed == {element.key: element.verdict for element in start.adds}


def least(done: Transaction) -> None:
    """Nothing is taken out and put in again as it was."""
    assert not set(done.deletes) & set(done.adds)
    assert not set(done.address_deletes) & set(done.address_adds)
    assert not set(done.base_deletes) & set(done.base_adds)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("rules"), rule_sets(5)),
        st.tuples(st.just("put"), st.integers(0, 5).flatmap(lambda n: endpoints(f"e{n}"))),
        st.tuples(st.just("drop"), st.integers(0, 5)),
    ),
    max_size=6,
)


@settings(max_examples=30, deadline=None)
@given(rule_sets(6), networks_of(), steps, probes)
def test_every_change_leads_where_compiling_anew_leads(
    rules: RuleSet, ends: list[Endpoint], changes: list[tuple[str, object]], asked: list[tuple[Protocol, int]]
) -> None:
    planner = Planner(rules, ends)
    here = {end.name: end for end in ends}
    kernel = Kernel()
    kernel.commit(planner.start)
    for what, value in changes:
        match what, value:
            case "rules", RuleSet():
                rules = value
                done = planner.replace_rules(rules)
            case "put", Endpoint():
                here[value.name] = value
                done = planner.put(value)
            case "drop", int():
                if here.pop(f"e{value}", None) is None:
                    continue
                done = planner.drop(f"e{value}")
            case _:
                raise AssertionError(what)
        least(done)
        kernel.commit(done)
        kernel.holds(Planner(rules, here.values(), allocation=planner.allocation).start)
    for one in connections(list(here.values()), asked):
        if one.protocol is Protocol.ICMP and one.port > 255:
            continue
        pair = planner.number(one.source.name), planner.number(one.destination.name)
        judged = evaluate(rules, replace(one, port=0) if one.protocol is Protocol.OTHER else one)
        assert ask(kernel.verdicts, kernel.bases, pair, one.protocol, one.port) is judged.verdict


@settings(max_examples=20, deadline=None)
@given(rule_sets(6), networks_of(), endpoints("e1"))
def test_undo_leads_back(rules: RuleSet, ends: list[Endpoint], changed: Endpoint) -> None:
    planner = Planner(rules, ends)
    kernel = Kernel()
    kernel.commit(planner.start)
    done = planner.put(changed)
    kernel.commit(done)
    kernel.commit(done.undo())
    kernel.holds(planner.start)


@settings(max_examples=60, deadline=None)
@given(rule_sets(6), rule_sets(6), networks_of())
def test_tightened_pairs_are_those_where_something_passes_no_more(
    old: RuleSet, new: RuleSet, ends: list[Endpoint]
) -> None:
    """Judged place by place: at every border of every cell of both."""
    planner = Planner(old, ends)
    before = cells_of(planner)
    told = set(planner.replace_rules(new).tightened)
    for pair, cells in cells_of(planner).items():
        if pair not in before:
            continue
        places = {cell.first for cell in (*cells, *before[pair])}
        # ICMP has types to 255, and what has no ports one place: other borders there are nowhere in the kernel.
        real = {p for p in places if p < place(Protocol.ICMP, 256) or p == place(Protocol.OTHER, 0)}
        lost = any(cell_at(before[pair], p).verdict < Verdict.REFER <= cell_at(cells, p).verdict for p in real)
        if lost:
            assert told & {pair, (pair[0], 0), (0, pair[1]), (0, 0)}


def cells_of(planner: Planner) -> dict[tuple[int, int], Cells]:
    found = {}
    for source in planner.compiler.identities:
        for destination in planner.compiler.identities:
            with contextlib.suppress(KeyError):
                found[source, destination] = planner.compiler.cells(source, destination)
    return found


def test_world_has_no_side_of_its_own() -> None:
    outside = Endpoint("w", kind=Kind.WORLD)
    planner = Planner(RuleSet(), [outside])
    assert planner.start.adds == ()
    assert [element.exact for element in planner.start.address_adds] == [False, False]
