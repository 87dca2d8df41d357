"""Which identities a selector picks, answered from an inverted index: a set of identities is a number, a bit each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache

from casemate.policy.identity import Identity
from casemate.policy.labels import Labels, Operator, Selector
from casemate.policy.rules import Anyone, Blocks, Names, Peer, Workloads

#: A set with more is gone through digit by digit; in one with fewer each is searched for.
MANY_BITS = 256


@lru_cache(maxsize=65536)
def slots_of(mask: int) -> tuple[int, ...]:
    """Places of the bits of *mask*, in order."""
    return tuple(places(mask))


def places(mask: int) -> list[int]:
    """The same as a list. The digits are searched as text: each bit taken from the number would copy all of it."""
    if mask.bit_count() > MANY_BITS:
        return [place for place, digit in enumerate(reversed(bin(mask)[2:])) if digit == "1"]
    digits = bin(mask)[:1:-1]
    found: list[int] = []
    at = digits.find("1")
    while at >= 0:
        found.append(at)
        at = digits.find("1", at + 1)
    return found


class _Pairs:
    """One set of labels (a pod's own, or its project's) of every identity."""

    def __init__(self) -> None:
        self.by_pair: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.by_key: defaultdict[str, int] = defaultdict(int)

    def turn(self, held: Labels, bit: int, on: bool) -> None:
        for key, value in held:
            for table, at in ((self.by_pair, (key, value)), (self.by_key, key)):
                table[at] = table[at] | bit if on else table[at] & ~bit  # type: ignore[index]

    def select(self, selector: Selector, every: int) -> int:
        mask = every
        for requirement in selector.requirements:
            match requirement.operator:
                case Operator.EXISTS:
                    mask &= self.by_key.get(requirement.key, 0)
                case Operator.DOES_NOT_EXIST:
                    mask &= ~self.by_key.get(requirement.key, 0)
                case Operator.IN | Operator.NOT_IN:
                    found = 0
                    for value in requirement.values:
                        found |= self.by_pair.get((requirement.key, value), 0)
                    mask &= found if requirement.operator is Operator.IN else ~found
        return mask


class LabelIndex:
    """Identities by number; slots are used again after a removal."""

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._free: list[int] = []
        self._identities: dict[int, Identity] = {}
        self._labels, self._project_labels = _Pairs(), _Pairs()
        self._tables: dict[str, defaultdict[object, int]] = {
            name: defaultdict(int) for name in ("kind", "project", "block", "dns")
        }
        self._every = 0
        self._known: dict[Peer, int] = {}

    @property
    def size(self) -> int:
        """One more than the largest slot ever used."""
        return len(self._slots) + len(self._free)

    def slot(self, number: int) -> int:
        return self._slots[number]

    def numbers(self, mask: int) -> list[int]:
        return [self._numbers[slot] for slot in slots_of(mask)] if mask else []

    def add(self, number: int, identity: Identity) -> None:
        slot = self._free.pop() if self._free else len(self._slots)
        self._slots[number], self._numbers[slot], self._identities[number] = slot, number, identity
        self._turn(identity, 1 << slot, True)

    def remove(self, number: int) -> None:
        slot = self._slots.pop(number)
        del self._numbers[slot]
        self._free.append(slot)
        self._turn(self._identities.pop(number), 1 << slot, False)

    def _turn(self, identity: Identity, bit: int, on: bool) -> None:
        self._known.clear()
        self._every = self._every | bit if on else self._every & ~bit
        self._labels.turn(identity.labels, bit, on)
        self._project_labels.turn(identity.project_labels, bit, on)
        for name, key in _keys(identity):
            table = self._tables[name]
            table[key] = table[key] | bit if on else table[key] & ~bit

    def workloads(self, wanted: Workloads) -> int:
        """The identities that *wanted* selects."""
        known = self._known.get(wanted)
        if known is not None:
            return known
        mask = self._tables["kind"].get(wanted.kind, 0)
        if wanted.project is not None:
            mask &= self._tables["project"].get(wanted.project, 0)
        if wanted.projects is not None:
            mask = self._project_labels.select(wanted.projects, mask)
        mask = self._labels.select(wanted.selector, mask)
        self._known[wanted] = mask
        return mask

    def peers(self, wanted: Iterable[Peer]) -> int:
        """The identities that one of *wanted* means."""
        mask = 0
        for peer in wanted:
            match peer:
                case Anyone():
                    return self._every
                case Workloads():
                    mask |= self.workloads(peer)
                case Blocks():
                    mask |= self._tables["block"].get(peer.group.key, 0)
                case Names():
                    for names, held in self._tables["dns"].items():
                        if isinstance(names, frozenset) and peer.covers(names):
                            mask |= held
        return mask


def _keys(identity: Identity) -> Iterator[tuple[str, object]]:
    yield "kind", identity.kind
    yield "project", identity.project
    for key in identity.blocks:
        yield "block", key
    if identity.dns:
        yield "dns", identity.dns


def peer_matches(peer: Peer, identity: Identity) -> bool:
    """Whether *identity* is one that *peer* means."""
    match peer:
        case Workloads():
            return peer.matches(identity)
        case Blocks():
            return peer.group.key in identity.blocks
        case Names():
            return peer.covers(identity.dns)
        case Anyone():
            return True
