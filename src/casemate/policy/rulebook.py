"""Rules in slots, and for each identity the sets of rules that are about it; a set is a number, a bit for a slot.

The rules about a pair are one bitwise *and*. A rule keeps its slot while it lives, so a change touches only the
identities that it is about; the order of evaluation is looked up for the few rules that a set still holds.

Selectors are asked both ways from indexes: whom does this rule pick (:class:`~casemate.policy.labelindex.LabelIndex`),
and which rules pick this identity. What a peer or subject without a selector of its own picks ("all pods of project
x", "any") is kept once for a zone, not for each identity in it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from casemate.policy.identity import Identity, Kind
from casemate.policy.labelindex import LabelIndex, peer_matches, places
from casemate.policy.labels import Labels, Operator
from casemate.policy.rules import Anyone, Blocks, Direction, Names, Peer, Rule, Workloads

PeerT = TypeVar("PeerT", Workloads, Peer)
Shelves = defaultdict[object, dict[PeerT, None]]
_WAYS = {Direction.EGRESS: 0, Direction.INGRESS: 1}


class Masks:
    """Rules whose subject it is, and of whose peers it is: a set for each direction (0 egress, 1 ingress)."""

    __slots__ = ("peer", "subject")

    def __init__(self) -> None:
        self.subject = [0, 0]
        self.peer = [0, 0]


class Zone(NamedTuple):
    """All that a selector without requirements can see of an identity."""

    kind: Kind
    project: str
    project_labels: Labels


def zone_of(identity: Identity) -> Zone:
    return Zone(identity.kind, identity.project, identity.project_labels)


def names_a_port(rule: Rule) -> bool:
    return any(port.name for port in rule.ports or ())


def particular_peers(rule: Rule) -> tuple[Peer, ...]:
    """The peers of *rule* that a zone does not answer for; a named port is another for each destination."""
    return rule.peers if names_a_port(rule) else tuple(peer for peer in rule.peers if not _is_zonal(peer))


def _is_zonal(peer: Peer) -> bool:
    return isinstance(peer, Anyone) or (isinstance(peer, Workloads) and not peer.selector.requirements)


class Rulebook:
    """The rules in force and the identities that they are about."""

    def __init__(self, rules: Iterable[Rule], identities: Iterable[tuple[int, Identity]]) -> None:
        self.index = LabelIndex()
        self.identities: dict[int, Identity] = {}
        self.zones: dict[Zone, Masks] = {}
        self._masks: dict[int, Masks] = {}
        self._lives: Counter[Zone] = Counter()
        self._rules: list[Rule | None] = []
        self._orders: list[tuple[object, ...]] = []
        self._slots: dict[tuple[object, ...], int] = {}
        self._free: list[int] = []
        #: Slots of rules with a peer that a zone does not answer for, and how many name a port.
        self.precise = 0
        self.named = 0
        self._picks = _Picks()
        #: Whom selectors pick, while the identities are the same.
        self._picked: dict[Workloads | tuple[Peer, ...], list[int]] = {}
        for number, identity in identities:
            self._admit(number, identity)
        self._load(list(rules))

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def names(self) -> tuple[Names, ...]:
        """The peers of rules that are names of the outside."""
        return tuple(self._picks.names)

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(rule for _, rule in sorted((o, r) for o, r in zip(self._orders, self._rules, strict=True) if r))

    def at(self, order: tuple[object, ...]) -> Rule | None:
        """The rule of that place in the order."""
        slot = self._slots.get(order)
        return None if slot is None else self._rules[slot]

    def in_order(self, mask: int) -> list[Rule]:
        """The rules of the set *mask*, as they are evaluated."""
        slots = places(mask)
        slots.sort(key=self._orders.__getitem__)
        return [rule for slot in slots if (rule := self._rules[slot])]

    def subject(self, number: int, way: int) -> int:
        """The rules of direction *way* whose subject the identity is."""
        return self._masks[number].subject[way] | self.zones[zone_of(self.identities[number])].subject[way]

    def peer(self, number: int, way: int) -> int:
        """Those of whose peers it is."""
        return self._masks[number].peer[way] | self.zones[zone_of(self.identities[number])].peer[way]

    def particular(self, number: int, way: int) -> int:
        """Those of whose peers it is by more than its zone."""
        return self._masks[number].peer[way]

    def subjects_of(self, rule: Rule) -> list[int]:
        found = self._picked.get(rule.subject)
        if found is None:
            found = self._picked[rule.subject] = self.index.numbers(self.index.workloads(rule.subject))
        return found

    def peers_of(self, rule: Rule) -> list[int]:
        """The identities that *rule* names in particular."""
        peers = particular_peers(rule)
        found = self._picked.get(peers)
        if found is None:
            found = self._picked[peers] = self.index.numbers(self.index.peers(peers))
        return found

    def put(self, rule: Rule) -> None:
        """*rule* comes into force. One of its order must not be there."""
        slot = self._free.pop() if self._free else len(self._rules)
        if slot == len(self._rules):
            self._rules.append(None)
            self._orders.append(())
        self._rules[slot], self._orders[slot] = rule, rule.order
        self._slots[rule.order] = slot
        self._turn(rule, slot, on=True)

    def _load(self, rules: list[Rule]) -> None:
        """:meth:`put` for all of *rules*, where none is there yet: each set is written once, not once a rule."""
        self._rules = list(rules)
        self._orders = [rule.order for rule in rules]
        self._slots = {order: slot for slot, order in enumerate(self._orders)}
        subjects, peers = (defaultdict[tuple[int, int], list[int]](list) for _ in range(2))
        precise: list[int] = []
        for slot, rule in enumerate(rules):
            particular, way = particular_peers(rule), _WAYS[rule.direction]
            self.named += names_a_port(rule)
            if particular:
                precise.append(slot)
                for number in self.peers_of(rule):
                    peers[number, way].append(slot)
            if rule.subject.selector.requirements:
                for number in self.subjects_of(rule):
                    subjects[number, way].append(slot)
            self._picks.turn(rule, particular, slot, on=True)
        self.precise = _set_of(precise)
        for (number, way), slots in subjects.items():
            self._masks[number].subject[way] = _set_of(slots)
        for (number, way), slots in peers.items():
            self._masks[number].peer[way] = _set_of(slots)
        for zone in self.zones:
            self._mark_zone_whole(zone)

    def _mark_zone_whole(self, zone: Zone) -> None:
        """What of all rules holds for a *zone* that is new."""
        found: dict[tuple[bool, int], list[int]] = {(which, way): [] for which in (False, True) for way in (0, 1)}
        for slot, rule in enumerate(self._rules):
            if rule is not None:
                for is_peer in _about(zone, rule):
                    found[is_peer, _WAYS[rule.direction]].append(slot)
        masks = self.zones[zone]
        for way in (0, 1):
            masks.subject[way], masks.peer[way] = _set_of(found[False, way]), _set_of(found[True, way])

    def take(self, rule: Rule) -> None:
        """*rule* is no longer in force."""
        slot = self._slots.pop(rule.order)
        self._turn(rule, slot, on=False)
        self._rules[slot] = None
        self._free.append(slot)

    def enter(self, number: int, identity: Identity) -> None:
        """An identity more."""
        self._admit(number, identity)
        masks = self._masks[number]
        for slot in self._picks.subjects(identity):
            if rule := self._rules[slot]:
                masks.subject[_WAYS[rule.direction]] |= 1 << slot
        for slot in self._picks.peers(identity):
            if rule := self._rules[slot]:
                masks.peer[_WAYS[rule.direction]] |= 1 << slot

    def leave(self, number: int) -> None:
        self._picked.clear()
        self.index.remove(number)
        zone = zone_of(self.identities.pop(number))
        del self._masks[number]
        self._lives[zone] -= 1
        if not self._lives[zone]:
            del self._lives[zone], self.zones[zone]

    def _admit(self, number: int, identity: Identity) -> None:
        self._picked.clear()
        self.identities[number] = identity
        self.index.add(number, identity)
        self._masks[number] = Masks()
        zone = zone_of(identity)
        self._lives[zone] += 1
        if zone not in self.zones:
            self.zones[zone] = Masks()
            self._mark_zone_whole(zone)

    def _turn(self, rule: Rule, slot: int, *, on: bool) -> None:
        way, bit = _WAYS[rule.direction], 1 << slot
        peers = particular_peers(rule)
        self.named += (1 if on else -1) * names_a_port(rule)
        if peers:
            self.precise = self.precise | bit if on else self.precise & ~bit
            for number in self.peers_of(rule):
                masks = self._masks[number].peer
                masks[way] = masks[way] | bit if on else masks[way] & ~bit
        if rule.subject.selector.requirements:
            for number in self.subjects_of(rule):
                masks = self._masks[number].subject
                masks[way] = masks[way] | bit if on else masks[way] & ~bit
        for zone in self.zones:
            self._mark_zone(zone, rule, slot, on=on)
        self._picks.turn(rule, peers, slot, on=on)

    def _mark_zone(self, zone: Zone, rule: Rule, slot: int, *, on: bool) -> None:
        way, masks = _WAYS[rule.direction], self.zones[zone]
        for is_peer in _about(zone, rule):
            held, bit = (masks.peer if is_peer else masks.subject), 1 << slot
            held[way] = held[way] | bit if on else held[way] & ~bit


def _about(zone: Zone, rule: Rule) -> Iterator[bool]:
    """Whether *rule* has the whole *zone* for a subject (False), for a peer (True)."""
    stand_in = Identity(zone.kind, zone.project, (), zone.project_labels)
    if not rule.subject.selector.requirements and rule.subject.matches(stand_in):
        yield False
    if not names_a_port(rule) and any(_is_zonal(peer) and peer_matches(peer, stand_in) for peer in rule.peers):
        yield True


def _set_of(slots: Iterable[int]) -> int:
    """The set of these *slots*, in time that grows with the largest: bit by bit it would with their product."""
    held = sorted(slots)
    if not held:
        return 0
    data = bytearray(held[-1] // 8 + 1)
    for slot in held:
        data[slot >> 3] |= 1 << (slot & 7)
    return int.from_bytes(data, "little")


class _Picks:
    """Which rules (slots) pick an identity: selectors filed under a label that they ask for."""

    def __init__(self) -> None:
        self._subject_slots: dict[Workloads, set[int]] = {}
        self._peer_slots: dict[Peer, set[int]] = {}
        self._subjects: Shelves[Workloads] = defaultdict(dict)
        self._peers: Shelves[Peer] = defaultdict(dict)
        self.names: dict[Names, None] = {}

    def turn(self, rule: Rule, peers: tuple[Peer, ...], slot: int, *, on: bool) -> None:
        if rule.subject.selector.requirements:
            _file(self._subject_slots, self._subjects, rule.subject, slot, on=on)
        for peer in dict.fromkeys(peers):
            _file(self._peer_slots, self._peers, peer, slot, on=on)
            if isinstance(peer, Names):
                if peer in self._peer_slots:
                    self.names[peer] = None
                else:
                    del self.names[peer]

    def subjects(self, identity: Identity) -> Iterator[int]:
        for key in (*identity.labels, None):
            for workloads in self._subjects.get(key, ()):
                if workloads.matches(identity):
                    yield from self._subject_slots[workloads]

    def peers(self, identity: Identity) -> Iterator[int]:
        for key in (*identity.labels, *identity.blocks, None):
            for peer in self._peers.get(key, ()):
                if peer_matches(peer, identity):
                    yield from self._peer_slots[peer]


def _file(
    slots: dict[PeerT, set[int]], shelves: Shelves[PeerT], picked: PeerT, slot: int, *, on: bool
) -> None:  # fmt: skip
    held = slots.get(picked)
    if on and held is not None:
        held.add(slot)
        return
    if on:
        slots[picked] = {slot}
        for key in _filed_under(picked):
            shelves[key][picked] = None
        return
    assert held is not None, picked
    held.discard(slot)
    if not held:
        del slots[picked]
        for key in _filed_under(picked):
            del shelves[key][picked]


def _filed_under(picked: Peer) -> tuple[object, ...]:
    """What an identity must have one of to be picked; (None,) where that is not so simple."""
    match picked:
        case Workloads():
            for requirement in picked.selector.requirements:
                if requirement.operator is Operator.IN:
                    return tuple((requirement.key, value) for value in requirement.values)
        case Blocks():
            return (picked.group.key,)
        case _:
            pass
    return (None,)
