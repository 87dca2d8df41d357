"""Rules and identities to verdicts: for each pair of identities the whole port space, cut where the answer changes.

How it is fast. Rules stand in order of evaluation, so a set of rules is a number whose lowest bit is the first that
matches. For each identity four such numbers are kept: rules whose subject it is and rules of whose peers it is,
for both directions. The rules about a pair are one bitwise *and*; equal sets of rules give equal answers, so each
set is worked out once. Selectors are answered from an inverted index of labels. A change of one rule shifts bits
and works out again only the pairs that the rule is about.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from casemate.policy.cells import Cells, SideCells, combine, decide
from casemate.policy.decision import UNGOVERNED
from casemate.policy.errors import PolicyTooLarge
from casemate.policy.identity import Identity, Kind
from casemate.policy.labelindex import LabelIndex, slots_of
from casemate.policy.ports import LAST_PLACE, NamedPort
from casemate.policy.rules import Direction, Rule, RuleSet, Tier
from casemate.policy.verdict import Verdict

#: Pairs are worked out one by one; past this the map would not fit the kernel's memory either.
MAX_IDENTITIES = 4096
MAX_RULES = 200_000
#: More changed rules than this are cheaper worked out all anew.
MAX_STEPS = 200
_OUTSIDE: SideCells = ((0, LAST_PLACE, Verdict.ALLOW, UNGOVERNED),)
Pair = tuple[int, int]


class _Masks:
    """For one identity: rules by place in the order, as bits."""

    __slots__ = ("peer_egress", "peer_ingress", "subject_egress", "subject_ingress")

    def __init__(self) -> None:
        self.subject_egress = self.peer_egress = self.subject_ingress = self.peer_ingress = 0

    def insert(self, at: int) -> None:
        for name in self.__slots__:
            mask = getattr(self, name)
            setattr(self, name, (mask & ((1 << at) - 1)) | (mask >> at << (at + 1)))

    def remove(self, at: int) -> None:
        for name in self.__slots__:
            mask = getattr(self, name)
            setattr(self, name, (mask & ((1 << at) - 1)) | (mask >> (at + 1) << at))


class Changed(NamedTuple):
    """Pairs (numbers of source and destination) with what held before and what holds now; None: no such pair."""

    pairs: dict[Pair, tuple[Cells | None, Cells | None]]


class Compiler:
    """The verdicts of *rules* for *identities* (by number). Changing it gives what changed, and nothing else."""

    def __init__(self, rules: RuleSet, identities: Mapping[int, Identity]) -> None:
        self._check(len(rules.rules), len(identities))
        self.default = rules.default
        self.audited = rules.audited
        self._rules: list[Rule] = list(rules.rules)
        self._keys = [rule.order for rule in self._rules]
        self._index = LabelIndex()
        self._masks: dict[int, _Masks] = {}
        self._tiers: dict[int, frozenset[Tier]] = {}
        self.identities: dict[int, Identity] = {}
        self.pairs: dict[Pair, Cells] = {}
        self._forget()
        for number, identity in identities.items():
            self._enter(number, identity)
        self._fill()
        self._work_out((s, d) for s in self.identities for d in self.identities)

    @property
    def rules(self) -> RuleSet:
        return RuleSet(tuple(self._rules), self.audited, self.default)

    def cells(self, source: int, destination: int) -> Cells:
        """The port space of a pair; KeyError for a pair that has none (unknown, or both outside)."""
        return self.pairs[source, destination]

    def add_identity(self, number: int, identity: Identity) -> Changed:
        """With *identity* as *number*: one row and one column are worked out."""
        self._check(len(self._rules), len(self.identities) + 1)
        self._enter(number, identity)
        masks = self._masks[number]
        for at, rule in enumerate(self._rules):
            self._mark(masks, rule, at, rule.subject.matches(identity), self._index.peers_match(rule, identity))
        row = [(number, other) for other in self.identities]
        column = [(other, number) for other in self.identities if other != number]
        return self._work_out(row + column)

    def remove_identity(self, number: int) -> Changed:
        """Without *number*: its row and column are gone."""
        gone = [pair for other in self.identities for pair in ((number, other), (other, number))]
        self._index.remove(number)
        del self.identities[number], self._masks[number], self._tiers[number]
        return Changed({pair: (self.pairs.pop(pair), None) for pair in gone if pair in self.pairs})

    def replace(self, rules: RuleSet) -> Changed:
        """With *rules* in place of what was: by what differs, or all anew where much does."""
        new = {rule.id: rule for rule in rules.rules}
        removed = [rule.id for rule in self._rules if new.get(rule.id) is not rule and new.get(rule.id) != rule]
        kept = {rule.id for rule in self._rules}.difference(removed)
        added = [rule for rule in rules.rules if rule.id not in kept]
        same = rules.audited == self.audited and rules.default == self.default
        if same and len(removed) + len(added) <= MAX_STEPS:
            return self.change_rules(removed, added)
        self._check(len(rules.rules), len(self.identities))
        self.default, self.audited = rules.default, rules.audited
        self._rules = list(rules.rules)
        self._keys = [rule.order for rule in self._rules]
        for number, identity in self.identities.items():
            self._tiers[number] = self._audited_tiers(identity)
        self._forget()
        self._fill()
        return self._work_out((s, d) for s in self.identities for d in self.identities)

    def change_rules(self, removed: Iterable[str], added: Iterable[Rule]) -> Changed:
        """Without the rules whose ids are *removed*, with *added*; only pairs that one of those is about are new."""
        gone, new = set(removed), list(added)
        self._check(len(self._rules) - len(gone) + len(new), len(self.identities))
        touched: set[Pair] = set()
        for at in reversed([at for at, rule in enumerate(self._rules) if rule.id in gone]):
            touched |= self._about(self._rules[at])
            del self._rules[at], self._keys[at]
            for masks in self._masks.values():
                masks.remove(at)
        for rule in new:
            at = bisect_left(self._keys, rule.order)
            self._rules.insert(at, rule)
            self._keys.insert(at, rule.order)
            for masks in self._masks.values():
                masks.insert(at)
            subjects, peers = self._matching(rule)
            for number in self.identities:
                slot = 1 << self._index.slot(number)
                self._mark(self._masks[number], rule, at, bool(subjects & slot), bool(peers & slot))
            touched |= self._about(rule)
        self._forget()
        return self._work_out(touched)

    def _check(self, rules: int, identities: int) -> None:
        if identities > MAX_IDENTITIES:
            raise PolicyTooLarge(f"{identities} identities on one node, allowed are {MAX_IDENTITIES}")
        if rules > MAX_RULES:
            raise PolicyTooLarge(f"{rules} rules in force, allowed are {MAX_RULES}")

    def _enter(self, number: int, identity: Identity) -> None:
        self.identities[number] = identity
        self._index.add(number, identity)
        self._masks[number] = _Masks()
        self._tiers[number] = self._audited_tiers(identity)

    def _audited_tiers(self, identity: Identity) -> frozenset[Tier]:
        return frozenset(tier for audit in self.audited if audit.subject.matches(identity) for tier in audit.tiers)

    def _matching(self, rule: Rule) -> tuple[int, int]:
        return self._index.workloads(rule.subject), self._index.peers(rule)

    def _about(self, rule: Rule) -> set[Pair]:
        subjects, peers = (self._index.numbers(mask) for mask in self._matching(rule))
        if rule.direction is Direction.EGRESS:
            return {(s, p) for s in subjects for p in peers}
        return {(p, s) for s in subjects for p in peers}

    @staticmethod
    def _mark(masks: _Masks, rule: Rule, at: int, subject: bool, peer: bool) -> None:
        if rule.direction is Direction.EGRESS:
            masks.subject_egress |= subject << at
            masks.peer_egress |= peer << at
        else:
            masks.subject_ingress |= subject << at
            masks.peer_ingress |= peer << at

    def _fill(self) -> None:
        """Every identity's masks, written bit by bit into byte arrays (shifts of long numbers would be slow)."""
        size = len(self._rules) // 8 + 1
        names = {(d, side): f"{side}_{d.value}" for d in Direction for side in ("subject", "peer")}
        columns = {name: [bytearray(size) for _ in range(self._index.size)] for name in names.values()}
        for at, rule in enumerate(self._rules):
            byte, bit = at >> 3, 1 << (at & 7)
            for side, mask in zip(("subject", "peer"), self._matching(rule), strict=True):
                column = columns[names[rule.direction, side]]
                for slot in slots_of(mask):
                    column[slot][byte] |= bit
        for number, masks in self._masks.items():
            slot = self._index.slot(number)
            for name, column in columns.items():
                setattr(masks, name, int.from_bytes(column[slot], "little"))

    def _forget(self) -> None:
        self._sides: dict[tuple[int, frozenset[Tier], tuple[NamedPort, ...]], SideCells] = {}
        self._same: dict[SideCells, SideCells] = {}
        self._joined: dict[tuple[int, int], Cells] = {}
        self._named = any(port.name for rule in self._rules for port in rule.ports or ())

    def _side(self, mask: int, number: int, ports: tuple[NamedPort, ...]) -> SideCells:
        key = (mask, self._tiers[number], ports)
        found = self._sides.get(key)
        if found is None:
            worked_out = decide(self._in_order(mask), self._tiers[number], ports, self.default)
            # Equal answers are one object: pairs are joined, and compared, by identity.
            found = self._sides[key] = self._same.setdefault(worked_out, worked_out)
        return found

    def _in_order(self, mask: int) -> Iterator[Rule]:
        while mask:
            lowest = mask & -mask
            mask ^= lowest
            yield self._rules[lowest.bit_length() - 1]

    def _work_out(self, pairs: Iterable[Pair]) -> Changed:
        changed: dict[Pair, tuple[Cells | None, Cells | None]] = {}
        pod = {number: identity.kind is Kind.POD for number, identity in self.identities.items()}
        for pair in pairs:
            source, destination = pair
            if not (pod[source] or pod[destination]):
                continue
            ports = self.identities[destination].ports if self._named else ()
            one, other = self._masks[source], self._masks[destination]
            egress = ingress = _OUTSIDE
            if pod[source]:
                egress = self._side(one.subject_egress & other.peer_egress, source, ports)
            if pod[destination]:
                ingress = self._side(other.subject_ingress & one.peer_ingress, destination, ports)
            cells = self._joined.get((id(egress), id(ingress)))
            if cells is None:
                cells = self._joined[id(egress), id(ingress)] = combine(egress, ingress)
            old = self.pairs.get(pair)
            if old is not cells and old != cells:
                self.pairs[pair] = cells
                changed[pair] = (old, cells)
        return Changed(changed)
