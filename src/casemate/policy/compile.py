"""Rules and identities to verdicts: for each pair of identities the whole port space, cut where the answer changes.

How it is fast. Rules stand in order of evaluation, so a set of rules is a number whose lowest bit is the first that
matches. For each identity four such numbers are kept: rules whose subject it is and rules of whose peers it is,
for both directions. The rules about a pair are one bitwise *and*; equal sets of rules give equal answers, so each
set is worked out once. Selectors are answered from an inverted index of labels. A change of one rule shifts bits
and works out again only the pairs that the rule is about.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from casemate.policy.cells import Cells, SideCells, combine, decide
from casemate.policy.decision import UNGOVERNED
from casemate.policy.errors import PolicyTooLarge
from casemate.policy.identity import Identity, Kind
from casemate.policy.labelindex import LabelIndex, peer_matches, slots_of
from casemate.policy.ports import LAST_PLACE, NamedPort
from casemate.policy.rules import Direction, Peer, Rule, RuleSet, Tier, Workloads
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

    def insert(self, at: int, below: int) -> None:
        """Make room at *at*; *below* has a bit for each place before it."""
        self.subject_egress = (self.subject_egress & below) | (self.subject_egress >> at << (at + 1))
        self.peer_egress = (self.peer_egress & below) | (self.peer_egress >> at << (at + 1))
        self.subject_ingress = (self.subject_ingress & below) | (self.subject_ingress >> at << (at + 1))
        self.peer_ingress = (self.peer_ingress & below) | (self.peer_ingress >> at << (at + 1))

    def remove(self, at: int, below: int) -> None:
        self.subject_egress = (self.subject_egress & below) | (self.subject_egress >> (at + 1) << at)
        self.peer_egress = (self.peer_egress & below) | (self.peer_egress >> (at + 1) << at)
        self.subject_ingress = (self.subject_ingress & below) | (self.subject_ingress >> (at + 1) << at)
        self.peer_ingress = (self.peer_ingress & below) | (self.peer_ingress >> (at + 1) << at)

    def clear(self, only: int) -> None:
        self.subject_egress &= only
        self.peer_egress &= only
        self.subject_ingress &= only
        self.peer_ingress &= only


class Changed(NamedTuple):
    """Pairs (numbers of source and destination) with what held before and what holds now; None: no such pair."""

    pairs: dict[Pair, tuple[Cells | None, Cells | None]]


def differences(old: Sequence[Rule], new: Sequence[Rule]) -> tuple[list[Rule], list[Rule]]:
    """Rules that are in *old* alone, and in *new* alone. Objects first: comparing values of all would take long."""
    before, after = set(map(id, old)), set(map(id, new))
    removed = [rule for rule in old if id(rule) not in after]
    added = [rule for rule in new if id(rule) not in before]
    equal = set(removed) & set(added)
    return [rule for rule in removed if rule not in equal], [rule for rule in added if rule not in equal]


def _names_a_port(rule: Rule) -> bool:
    return any(port.name for port in rule.ports or ())


class Compiler:
    """The verdicts of *rules* for *identities* (by number). Changing it gives what changed, and nothing else."""

    def __init__(self, rules: RuleSet, identities: Mapping[int, Identity]) -> None:
        self._check(len(rules.rules), len(identities))
        self.default = rules.default
        self.audited = rules.audited
        self._subjects: dict[Workloads, int] = {}
        self._peers: dict[tuple[Peer, ...], int] = {}
        self._single: dict[Peer, int] = {}
        self._load(rules.rules)
        self._index = LabelIndex()
        self._masks: dict[int, _Masks] = {}
        self._tiers: dict[int, frozenset[Tier]] = {}
        self.identities: dict[int, Identity] = {}
        self.pairs: dict[Pair, Cells] = {}
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
        self._match_all(number, identity)
        row = [(number, other) for other in self.identities]
        column = [(other, number) for other in self.identities if other != number]
        return self._work_out(row + column)

    def remove_identity(self, number: int) -> Changed:
        """Without *number*: its row and column are gone."""
        gone = [pair for other in self.identities for pair in ((number, other), (other, number))]
        self._index.remove(number)
        del self.identities[number], self._masks[number], self._tiers[number]
        return Changed({pair: (self.pairs.pop(pair), None) for pair in gone if pair in self.pairs})

    def replace(self, rules: RuleSet, changes: tuple[list[Rule], list[Rule]] | None = None) -> Changed:
        """With *rules* in place of what was: by what differs (*changes*, where known), or all anew where much does."""
        removed, added = differences(self._rules, rules.rules) if changes is None else changes
        same = rules.audited == self.audited and rules.default == self.default
        if same and len(removed) + len(added) <= MAX_STEPS:
            return self.change_rules(removed, added)
        self._check(len(rules.rules), len(self.identities))
        self.default, self.audited = rules.default, rules.audited
        self._load(rules.rules)
        for number, identity in self.identities.items():
            self._tiers[number] = self._audited_tiers(identity)
        self._fill()
        return self._work_out((s, d) for s in self.identities for d in self.identities)

    def change_rules(self, removed: Iterable[Rule], added: Iterable[Rule]) -> Changed:
        """Without the rules *removed*, with *added*; only pairs that one of those is about are new."""
        gone, new = sorted({rule.order for rule in removed}, reverse=True), {rule.order: rule for rule in added}
        self._check(len(self._rules) - len(gone) + len(new), len(self.identities))
        touched: set[Pair] = set()
        for at in [bisect_left(self._keys, order) for order in gone]:
            touched |= self._about(self._rules[at])
            successor = new.pop(self._keys[at], None)
            if successor is None:
                self._take_out(at)
            else:
                touched |= self._put_in(at, successor, instead=True)
        for rule in new.values():
            touched |= self._put_in(bisect_left(self._keys, rule.order), rule, instead=False)
        self._forget()
        return self._work_out(touched)

    def _take_out(self, at: int) -> None:
        self._named -= _names_a_port(self._rules[at])
        del self._rules[at], self._keys[at], self._parts[at]
        below = (1 << at) - 1
        for masks in self._masks.values():
            masks.remove(at, below)

    def _put_in(self, at: int, rule: Rule, *, instead: bool) -> set[Pair]:
        """*rule* at the place *at*, *instead* of the one there or before it; the pairs that it is about."""
        self._named += _names_a_port(rule) - (instead and _names_a_port(self._rules[at]))
        place = slice(at, at + instead)
        self._rules[place], self._keys[place], self._parts[place] = [rule], [rule.order], [self._parted(rule)]
        below, only = (1 << at) - 1, ~(1 << at)
        for masks in self._masks.values():
            if instead:
                masks.clear(only)
            else:
                masks.insert(at, below)
        for side, mask in zip((True, False), self._matching(rule), strict=True):
            for number in self._index.numbers(mask):
                self._mark(self._masks[number], rule, at, side, not side)
        return self._about(rule)

    def _check(self, rules: int, identities: int) -> None:
        if identities > MAX_IDENTITIES:
            raise PolicyTooLarge(f"{identities} identities on one node, allowed are {MAX_IDENTITIES}")
        if rules > MAX_RULES:
            raise PolicyTooLarge(f"{rules} rules in force, allowed are {MAX_RULES}")

    def _load(self, rules: Iterable[Rule]) -> None:
        self._rules: list[Rule] = list(rules)
        self._keys = [rule.order for rule in self._rules]
        self._subjects.clear()
        self._peers.clear()
        self._single.clear()
        self._lists: list[tuple[int, ...]] = []
        self._parts = [self._parted(rule) for rule in self._rules]
        self._named = sum(map(_names_a_port, self._rules))
        self._forget()

    def _parted(self, rule: Rule) -> tuple[int, int]:
        """Numbers for the rule's subject and peers, the same for equal ones: rules share a few of them."""
        if rule.peers not in self._peers:
            self._peers[rule.peers] = len(self._peers)
            self._lists.append(tuple(self._single.setdefault(peer, len(self._single)) for peer in rule.peers))
        return self._subjects.setdefault(rule.subject, len(self._subjects)), self._peers[rule.peers]

    def _match_all(self, number: int, identity: Identity) -> None:
        """The masks of one identity, asking each different subject and peer once."""
        subject = [known.matches(identity) for known in self._subjects]
        single = [peer_matches(known, identity) for known in self._single]
        peer = [any(single[at] for at in listed) for listed in self._lists]
        size = len(self._rules) // 8 + 1
        rows = [bytearray(size) for _ in range(4)]
        for at, (rule, (one, other)) in enumerate(zip(self._rules, self._parts, strict=True)):
            way = 0 if rule.direction is Direction.EGRESS else 2
            if subject[one]:
                rows[way][at >> 3] |= 1 << (at & 7)
            if peer[other]:
                rows[way + 1][at >> 3] |= 1 << (at & 7)
        masks = self._masks[number]
        masks.subject_egress, masks.peer_egress, masks.subject_ingress, masks.peer_ingress = (
            int.from_bytes(row, "little") for row in rows
        )

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
