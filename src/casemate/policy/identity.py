"""Endpoints, and the identity that each has: the set of what policy may look at, as a number.

Pods of equal labels share one identity. Outside addresses have identities too: what blocks they are in, and under
which names a pod's own answers gave them. Numbers are allocated once and stay; a number that nobody holds is not
given out again until all have been (a packet on its way, or a log, may still name it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from casemate.policy.addresses import Address, BlockIndex
from casemate.policy.errors import IdentitiesExhausted
from casemate.policy.labels import Labels
from casemate.policy.ports import NamedPort, Protocol

#: 0 is nobody; below 256 is kept for identities that code names.
FIRST_NUMBER = 256
#: 24 bits leave the upper byte of a 32-bit mark free; the upper half of them numbers bases (see casemate.policy.bases).
FIRST_BASE = 1 << 23
LAST_NUMBER = FIRST_BASE - 1


class Kind(Enum):
    POD = "pod"
    NODE = "node"
    WORLD = "world"

    # Members are single objects; Enum's own hash is Python code, and these are hashed a million times a compile.
    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of connections. *name* is stable over restarts (``project/workload``); *dns* are names that led here."""

    name: str
    project: str = ""
    labels: Labels = ()
    project_labels: Labels = ()
    ports: tuple[NamedPort, ...] = ()
    addresses: tuple[Address, ...] = ()
    kind: Kind = Kind.POD
    dns: frozenset[str] = frozenset()
    #: A referral looks for its two ends half a dozen times.
    _hash: int = field(default=0, init=False, repr=False, compare=False)

    def __hash__(self) -> int:
        if not self._hash:
            object.__setattr__(self, "_hash", hash((self.name, self.labels, self.addresses, self.dns)) or 1)
        return self._hash


@dataclass(frozen=True, slots=True)
class Identity:
    """All that a rule can see of an endpoint; *blocks* are keys of groups that hold its address."""

    kind: Kind
    project: str = ""
    labels: Labels = ()
    project_labels: Labels = ()
    ports: tuple[NamedPort, ...] = ()
    blocks: frozenset[str] = frozenset()
    dns: frozenset[str] = frozenset()

    def describe(self) -> str:
        if self.kind is Kind.POD:
            shown = ",".join(f"{key}={value}" for key, value in self.labels)
            return f"{self.project}/{shown or '(no labels)'}"
        return f"{self.kind.value}({','.join(sorted(self.dns)) or f'{len(self.blocks)} blocks'})"


@dataclass(frozen=True, slots=True)
class Connection:
    """A new connection, as its first packet asks for it; *port* is the destination's, or ICMP's type."""

    source: Endpoint
    destination: Endpoint
    protocol: Protocol
    port: int

    def ends(self, egress: bool) -> tuple[Endpoint, Endpoint]:
        """Subject and peer of a rule of that direction."""
        return (self.source, self.destination) if egress else (self.destination, self.source)

    def describe(self) -> str:
        return f"{self.source.name} to {self.destination.name} {self.protocol.name.lower()}/{self.port}"


def identity_of(endpoint: Endpoint, index: BlockIndex) -> Identity:
    """The identity of *endpoint* under the blocks that the rules in force name."""
    blocks: frozenset[str] = frozenset()
    for address in endpoint.addresses:
        blocks |= index.groups_of(address)
    ports = tuple(sorted(endpoint.ports, key=lambda p: (p.name, p.protocol.value, p.number)))
    return Identity(
        endpoint.kind, endpoint.project, endpoint.labels, endpoint.project_labels, ports, blocks, endpoint.dns
    )


@dataclass(frozen=True, slots=True)
class Allocation:
    """Which identity has which number, and the next one to give. A value: allocating gives another."""

    numbers: Mapping[Identity, int]
    next_number: int = FIRST_NUMBER

    def allocate(self, wanted: Iterable[Identity], *, last_number: int = LAST_NUMBER) -> Allocation:
        """With numbers for all of *wanted*; those that have one keep it. Raises :class:`IdentitiesExhausted`."""
        new = sorted({one for one in wanted if one not in self.numbers}, key=_order)
        if not new:
            return self
        numbers = dict(self.numbers)
        taken = set(numbers.values())
        if len(taken) + len(new) > last_number - FIRST_NUMBER + 1:
            raise IdentitiesExhausted(
                f"{len(taken) + len(new)} identities are wanted, allowed are {last_number - FIRST_NUMBER + 1}"
            )
        at = self.next_number
        for identity in new:
            while at in taken or at > last_number:
                at = FIRST_NUMBER if at > last_number else at + 1
            numbers[identity] = at
            at += 1
            taken.add(numbers[identity])
        return Allocation(numbers, at)

    def release(self, gone: Iterable[Identity]) -> Allocation:
        """Without the numbers of *gone*."""
        dropped = set(gone)
        return Allocation({i: n for i, n in self.numbers.items() if i not in dropped}, self.next_number)


def _order(identity: Identity) -> tuple[object, ...]:
    ports = tuple((p.name, p.protocol.value, p.number) for p in identity.ports)
    return (identity.kind.value, identity.project, identity.labels, identity.project_labels, ports,
            sorted(identity.blocks), sorted(identity.dns))  # fmt: skip


NOBODY = Allocation({})
