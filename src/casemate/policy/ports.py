"""Protocols and ports as one line of numbers.

The compiler cuts and compares port spaces a great deal; a protocol and a port are therefore one number, the place
``slot * 65536 + port``, and a set of ports is a few intervals of it. ICMP's "port" is its type (RFC 792, RFC 4443).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from casemate.policy.errors import PolicyInvalid

SPAN = 65536
Interval = tuple[int, int]


class Protocol(Enum):
    """IANA protocol numbers; OTHER stands for all that carry no port that we know."""

    TCP = 6
    UDP = 17
    SCTP = 132
    ICMP = 1
    OTHER = 0

    # Members are single objects; Enum's own hash is Python code, and these are hashed a million times a compile.
    __hash__ = object.__hash__

    @property
    def slot(self) -> int:
        return _SLOTS[self]


_ORDER = (Protocol.TCP, Protocol.UDP, Protocol.SCTP, Protocol.ICMP, Protocol.OTHER)
_SLOTS = {protocol: slot for slot, protocol in enumerate(_ORDER)}
LAST_PLACE = len(_ORDER) * SPAN - 1
WHOLE: tuple[Interval, ...] = ((0, LAST_PLACE),)
#: Protocols whose ports a rule may name.
WITH_PORTS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)


def place(protocol: Protocol, port: int) -> int:
    return _SLOTS[protocol] * SPAN + port


def split(first: int, last: int) -> Iterable[tuple[Protocol, int, int]]:
    """The interval of places, as protocol, first and last port."""
    while first <= last:
        slot = first // SPAN
        end = min(last, slot * SPAN + SPAN - 1)
        yield _ORDER[slot], first - slot * SPAN, end - slot * SPAN
        first = end + 1


@dataclass(frozen=True, slots=True)
class NamedPort:
    """A port that a pod's container declares by name."""

    name: str
    protocol: Protocol
    number: int


@dataclass(frozen=True, slots=True)
class PortMatch:
    """Ports *first* to *last* of *protocol*, or what the destination calls *name* (None: in any protocol)."""

    protocol: Protocol | None
    first: int = 0
    last: int = SPAN - 1
    name: str = ""

    def intervals(self, named: Iterable[NamedPort]) -> tuple[Interval, ...]:
        """The places that this is at a destination with these *named* ports; none where it has not that name."""
        if self.name:
            return tuple(
                (place(port.protocol, port.number), place(port.protocol, port.number))
                for port in named
                if port.name == self.name and self.protocol in (None, port.protocol)
            )
        assert self.protocol is not None
        return ((place(self.protocol, self.first), place(self.protocol, self.last)),)

    def covers(self, protocol: Protocol, port: int, named: Iterable[NamedPort]) -> bool:
        if self.name:
            return any(
                p.name == self.name
                and p.protocol is protocol
                and p.number == port
                and self.protocol in (None, protocol)
                for p in named
            )
        return self.protocol is protocol and self.first <= port <= self.last

    def describe(self) -> str:
        kind = self.protocol.name.lower() if self.protocol else "any"
        if self.name:
            return f"{kind}/{self.name}"
        if (self.first, self.last) == (0, SPAN - 1):
            return kind
        return f"{kind}/{self.first}" if self.first == self.last else f"{kind}/{self.first}-{self.last}"


def parse_port(text: str, what: str = "port") -> tuple[Protocol, int]:
    """``tcp/5432`` as it stands in commands. Raises :class:`PolicyInvalid`."""
    kind, _, number = text.partition("/")
    try:
        protocol = Protocol[kind.upper()]
    except KeyError:
        protocol = Protocol.OTHER
    if protocol is Protocol.ICMP and not number:
        return protocol, 8
    if protocol is Protocol.OTHER or not (number.isascii() and number.isdigit() and len(number) <= 5):
        raise PolicyInvalid(f"{what} {text[:60]!r} is not PROTOCOL/NUMBER with tcp, udp, sctp or icmp")
    if int(number) >= SPAN or (protocol is Protocol.ICMP and int(number) > 255):
        raise PolicyInvalid(f"{what} {text[:60]!r} is outside 0..{255 if protocol is Protocol.ICMP else SPAN - 1}")
    return protocol, int(number)


def merged(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """Sorted, and without overlap or touching ends."""
    out: list[Interval] = []
    for first, last in sorted(intervals):
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(last, out[-1][1]))
        else:
            out.append((first, last))
    return tuple(out)
