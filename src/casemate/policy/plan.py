"""Endpoints and rules to transactions on the kernel's maps: what is to be taken out and put in, all at once.

:class:`Planner` holds what should be in the kernel. Each change (a pod comes, goes, is relabelled or put in
quarantine; a document is applied) gives the smallest :class:`Transaction` that brings the kernel from before to after;
the caller commits it whole, and on failure plans its undo.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from casemate.policy.addresses import Address, BlockIndex
from casemate.policy.bases import Pair
from casemate.policy.compile import Changed, Compiler, differences
from casemate.policy.identity import FIRST_BASE, NOBODY, Allocation, Endpoint, Identity, Kind, identity_of
from casemate.policy.lower import Element, Runs, lower
from casemate.policy.rules import Blocks, Rule, RuleSet, block_groups
from casemate.policy.verdict import Verdict
from casemate.spec.errors import Conflict


class AddressElement(NamedTuple):
    """Addresses *first* to *last* have identity *number*; for one *viewer*'s connections only, where it is set.

    An endpoint's own address is *exact*, and its map is asked first; the outside's are intervals of another map.
    """

    exact: bool
    version: int
    first: int
    last: int
    viewer: str
    number: int

    def describe(self) -> str:
        first, last = (_address(self.version, at) for at in (self.first, self.last))
        shown = str(first) if first == last else f"{first}-{last}"
        return f"address {shown}{f' seen by {self.viewer}' if self.viewer else ''}: {self.number}"


def _address(version: int, number: int) -> Address:
    return ipaddress.IPv4Address(number) if version == 4 else ipaddress.IPv6Address(number)


class BaseElement(NamedTuple):
    """What identity *number* has in common with many others, as two numbers of the same verdict maps.

    Where no map has an element for (source, destination), the kernel asks the same three maps once more for
    (*egress* of the source, *ingress* of the destination). So a pair that is like most others needs no element.
    Numbers of bases are from ``1 << 23`` on, those of identities below.
    """

    number: int
    egress: int
    ingress: int

    def describe(self) -> str:
        return f"base of {self.number}: egress {self.egress}, ingress {self.ingress}"


@dataclass(frozen=True, slots=True)
class Transaction:
    """Deletes, then adds, in one commit. An element whose value changes is in both.

    *tightened* are pairs of identities that may do less than before: their open connections are looked up anew.
    0 in such a pair stands for every identity. *moved* are addresses whose identity changed: so are theirs.
    """

    reason: str
    deletes: tuple[Element, ...] = ()
    adds: tuple[Element, ...] = ()
    address_deletes: tuple[AddressElement, ...] = ()
    address_adds: tuple[AddressElement, ...] = ()
    tightened: tuple[Pair, ...] = ()
    moved: tuple[str, ...] = ()
    base_deletes: tuple[BaseElement, ...] = ()
    base_adds: tuple[BaseElement, ...] = ()

    @property
    def size(self) -> int:
        parts = (self.deletes, self.adds, self.address_deletes, self.address_adds, self.base_deletes, self.base_adds)
        return sum(map(len, parts))

    def undo(self) -> Transaction:
        return Transaction(
            f"undo: {self.reason}", self.adds, self.deletes, self.address_adds, self.address_deletes, (), self.moved,
            self.base_adds, self.base_deletes,
        )  # fmt: skip

    def describe(self) -> list[str]:
        """A line each, in the order of the commit."""
        return [
            *(f"delete {element.describe()}" for element in self.address_deletes),
            *(f"delete {element.describe()}" for element in self.deletes),
            *(f"delete {element.describe()}" for element in self.base_deletes),
            *(f"add {element.describe()}" for element in self.adds),
            *(f"add {element.describe()}" for element in self.base_adds),
            *(f"add {element.describe()}" for element in self.address_adds),
        ]


class Planner:
    """What should be in the kernel, for *rules* and no endpoint yet; *start* has what that takes.

    *allocation* are the numbers of an earlier life (kept by the caller, so that they stay).
    """

    def __init__(
        self,
        rules: RuleSet,
        endpoints: Iterable[Endpoint] = (),
        *,
        allocation: Allocation = NOBODY,
        absent: Verdict = Verdict.DENY,
    ) -> None:
        self._absent = absent
        self._rules = rules
        self._groups = {group.key for group in block_groups(rules)}
        self._index = BlockIndex(block_groups(rules))
        self._ends: dict[str, tuple[Endpoint, str]] = {}
        self._owners: dict[tuple[str, Address], str] = {}
        for end in endpoints:
            self._own(end, "")
            self._ends[end.name] = (end, "")
        self._identity = {name: identity_of(end, self._index) for name, (end, _) in self._ends.items()}
        world = self._world()
        self.allocation = allocation.allocate([*self._identity.values(), *world])
        self._uses = Counter(self._identity.values()) + Counter(dict.fromkeys(world, 1))
        numbers = {self.allocation.numbers[identity]: identity for identity in self._uses}
        self._compiler = Compiler(rules, numbers)
        self._addresses = self._address_elements()
        self.start = self.whole("start")

    def _lowered(self, pair: Pair, cut: Runs | None) -> list[Element]:
        """The elements of *pair*. One of identities says all: past it stand the bases. One of bases is the last."""
        if cut is None:
            return []
        return lower(*pair, cut, self._absent if pair[0] >= FIRST_BASE else None)

    @property
    def compiler(self) -> Compiler:
        return self._compiler

    @property
    def rules(self) -> RuleSet:
        return self._rules

    def whole(self, reason: str = "whole") -> Transaction:
        """All that should be in the kernel now, as one transaction from nothing."""
        adds = [element for pair, cut in self._compiler.elements.items() for element in self._lowered(pair, cut)]
        bases = sorted(BaseElement(number, *based) for number, based in self._compiler.based.items())
        addresses = tuple(sorted(self._addresses))
        return Transaction(reason, adds=tuple(adds), address_adds=addresses, base_adds=tuple(bases))

    def end(self, name: str) -> Endpoint | None:
        """The endpoint *name*, as it was put last."""
        found = self._ends.get(name)
        return found[0] if found else None

    def owner(self, address: Address, viewer: str = "") -> Endpoint | None:
        """Whose *address* is, for *viewer*'s connections where it is set."""
        name = self._owners.get((viewer, address))
        return self.end(name) if name is not None else None

    def number(self, name: str) -> int:
        """The identity's number of the endpoint *name*."""
        return self.allocation.numbers[self._identity[name]]

    def elements_of(self, name: str) -> tuple[AddressElement, ...]:
        """The address elements of the endpoint *name*."""
        return tuple(self._elements_of(name))

    def number_at(self, address: Address, viewer: str = "") -> int:
        """The identity's number that the kernel finds for *address*, when *viewer* opens the connection to it."""
        name = self._owners.get((viewer, address)) if viewer else None
        if name is None:
            name = self._owners.get(("", address))
        if name is not None:
            return self.number(name)
        return self.allocation.numbers[Identity(Kind.WORLD, blocks=self._index.groups_of(address))]

    def put(self, endpoint: Endpoint, *, viewer: str = "") -> Transaction:
        """*endpoint* comes, or changes. *viewer* (an address): an outside name, for the pod whose answer led there."""
        self._own(endpoint, viewer)
        old_end = self._ends.get(endpoint.name)
        old = self._identity.get(endpoint.name)
        new = identity_of(endpoint, self._index)
        before = set(self._elements_of(endpoint.name))
        self._ends[endpoint.name], self._identity[endpoint.name] = (endpoint, viewer), new
        changed = Changed()
        if old != new:
            changed.merge(self._use(new))
            if old is not None:
                changed.merge(self._leave(old))
        after = set(self._elements_of(endpoint.name))
        moved = () if old_end is None or old == new else tuple(str(a) for a in endpoint.addresses)
        return self._transaction(f"endpoint {endpoint.name}", changed, before, after, moved)

    def drop(self, name: str) -> Transaction:
        """The endpoint *name* goes; its number stays given until :meth:`forget_unused`."""
        before = set(self._elements_of(name))
        end, viewer = self._ends.pop(name)
        for address in end.addresses:
            del self._owners[viewer, address]
        changed = self._leave(self._identity.pop(name))
        return self._transaction(f"endpoint {name} is gone", changed, before, set(), tuple(map(str, end.addresses)))

    def _own(self, endpoint: Endpoint, viewer: str) -> None:
        """Note whose its addresses are. One address has one owner, or the kernel's map would say what came last."""
        for address in endpoint.addresses:
            owner = self._owners.get((viewer, address), endpoint.name)
            if owner != endpoint.name:
                raise Conflict(f"address {address} of {endpoint.name} belongs to {owner}")
        old, seen_by = self._ends.get(endpoint.name, (endpoint, viewer))
        for address in old.addresses:
            self._owners.pop((seen_by, address), None)
        for address in endpoint.addresses:
            self._owners[viewer, address] = endpoint.name

    def forget_unused(self) -> None:
        """Numbers that nobody holds may be given again."""
        self.allocation = self.allocation.release(self.allocation.numbers.keys() - self._uses.keys())

    def replace_rules(
        self, rules: RuleSet, reason: str = "policy", differ: tuple[list[Rule], list[Rule]] | None = None
    ) -> Transaction:
        """*rules* in place of those in force; *differ*: which go and which come, where the caller knows."""
        removed, added = differ or differences(self._rules.rules, rules.rules)
        cut = any(isinstance(peer, Blocks) for rule in (*removed, *added) for peer in rule.peers)
        changed = Changed()
        before: set[AddressElement] = set()
        after: set[AddressElement] = set()
        moved: list[str] = []
        if cut and {group.key for group in block_groups(rules)} != self._groups:
            moved = self._cut_anew(rules, changed)
            before, self._addresses = self._addresses, self._address_elements()
            after = set(self._addresses)
        self._rules = rules
        changed.merge(self._compiler.replace(rules, (removed, added)))
        return self._transaction(reason, changed, before - after, after - before, tuple(moved))

    def _cut_anew(self, rules: RuleSet, changed: Changed) -> list[str]:
        """The address space under other blocks: who is in which has changed."""
        world = self._world()
        self._groups = {group.key for group in block_groups(rules)}
        self._index = BlockIndex(block_groups(rules))
        fresh = {name: identity_of(end, self._index) for name, (end, _) in self._ends.items()}
        moved = [
            str(a) for name, i in fresh.items() if i != self._identity[name] for a in self._ends[name][0].addresses
        ]
        old = Counter(self._identity.values()) + Counter(dict.fromkeys(world, 1))
        new = Counter(fresh.values()) + Counter(dict.fromkeys(self._world(), 1))
        self._identity = fresh
        for identity in new.keys() - old.keys():
            changed.merge(self._use(identity))
        for identity in old.keys() - new.keys():
            self._uses[identity] = 1
            changed.merge(self._leave(identity))
        self._uses = new
        return moved

    def _world(self) -> list[Identity]:
        """An identity for each different set of blocks that outside addresses are in."""
        found = {groups for version in (4, 6) for _, _, groups in self._index.cells(version)}
        return [Identity(Kind.WORLD, blocks=groups) for groups in found]

    def _use(self, identity: Identity) -> Changed:
        self._uses[identity] += 1
        if self._uses[identity] > 1:
            return Changed()
        self.allocation = self.allocation.allocate([identity])
        return self._compiler.add_identity(self.allocation.numbers[identity], identity)

    def _leave(self, identity: Identity) -> Changed:
        self._uses[identity] -= 1
        if self._uses[identity] > 0:
            return Changed()
        del self._uses[identity]
        return self._compiler.remove_identity(self.allocation.numbers[identity])

    def _elements_of(self, name: str) -> Iterable[AddressElement]:
        if name in self._ends:
            (end, viewer), number = self._ends[name], self.number(name)
            for address in end.addresses:
                yield AddressElement(True, address.version, int(address), int(address), viewer, number)

    def _address_elements(self) -> set[AddressElement]:
        found = {element for name in self._ends for element in self._elements_of(name)}
        for version in (4, 6):
            for first, last, groups in self._index.cells(version):
                number = self.allocation.numbers[Identity(Kind.WORLD, blocks=groups)]
                found.add(AddressElement(False, version, first, last, "", number))
        return found

    def _transaction(
        self, reason: str, changed: Changed, gone: set[AddressElement], come: set[AddressElement],
        moved: tuple[str, ...],
    ) -> Transaction:  # fmt: skip
        deletes: list[Element] = []
        adds: list[Element] = []
        for pair, (old, new) in changed.pairs.items():
            before, after = set(self._lowered(pair, old)), set(self._lowered(pair, new))
            deletes += before - after
            adds += after - before
        bases = [(number, old, new) for number, (old, new) in changed.bases.items() if old != new]
        self._addresses -= gone
        self._addresses |= come
        return Transaction(
            reason, tuple(sorted(deletes)), tuple(sorted(adds)), tuple(sorted(gone - come)), tuple(sorted(come - gone)),
            tuple(sorted(changed.tightened)), moved,
            tuple(sorted(BaseElement(number, *old) for number, old, _ in bases if old)),
            tuple(sorted(BaseElement(number, *new) for number, _, new in bases if new)),
        )  # fmt: skip
