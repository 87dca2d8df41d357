"""Conntrack's events as values. Pure.

The kernel writes an event's two tuples first and always in the same way for TCP and UDP over IPv4, so one unpack
reads both; everything else is walked attribute by attribute. Source: linux/netfilter/nfnetlink_conntrack.h and
net/netfilter/nf_conntrack_netlink.c (ctnetlink_conntrack_event).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

#: NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW, IPCTNL_MSG_CT_DELETE.
NEW, DESTROY = 1 << 8, 1 << 8 | 2
_HEADERS_BYTES = 20
TCP, UDP, ICMP, ICMPV6, SCTP = 6, 17, 1, 58, 132
_WITH_PORTS = frozenset((TCP, UDP, SCTP, 33, 136))

#: Both tuples as they are for TCP, UDP and the like over IPv4: each is an attribute of 52 bytes, and nothing else is so
#: long. Header, source, destination, protocol, both ports; twice.
_FAST = struct.Struct(">" + 2 * "I4x4x4s4x4s4x4xB3x4xH2x4xH2x")
_FAST_ORIGINAL, _FAST_REPLY = 0x34000180, 0x34000280
_TUPLE_BYTES = 52
#: The same with the message's kind before it, for one look at an event; nearly every event is read so.
_QUICK = struct.Struct(_FAST.format.replace(">", ">4x2s14x"))
_QUICK_NEW, _QUICK_DESTROY = NEW.to_bytes(2, "little"), DESTROY.to_bytes(2, "little")
#: What follows when a connection was counted: identifier, status, timeout; counters of both directions; times.
_FAST_END = struct.Struct(">24x" + 3 * "I4xQ4xQ")
_FAST_END_SHAPE = (0x1C000980, 0x1C000A80, 0x1C001480)
_ATTRIBUTE = struct.Struct("=HH")
_U64 = struct.Struct("!Q")


class Tuple(NamedTuple):
    """One direction: packed addresses, IANA protocol number, ports (ICMP: identifier, and type << 8 | code)."""

    source: bytes
    destination: bytes
    protocol: int
    source_port: int
    port: int


class Seen(NamedTuple):
    """An event; *key* is the original tuple as the kernel wrote it, the same in both events of a connection."""

    is_new: bool
    key: bytes
    original: Tuple
    reply: Tuple
    rest: int  #: where the attributes behind the tuples begin


#: An event as :func:`quick` gives it: whether it is new, the key, then source, destination, protocol and ports of the
#: original direction, and who answers from which port; the attributes behind the tuples begin at :data:`QUICK_END`.
Quick = tuple[bool, bytes, bytes, bytes, int, int, int, bytes, int]
QUICK_END = _QUICK.size


class Ended(NamedTuple):
    """Counters of both directions, and when the connection began and ended (ns since the epoch; 0: not noted)."""

    packets_out: int = 0
    bytes_out: int = 0
    packets_in: int = 0
    bytes_in: int = 0
    began_ns: int = 0
    ended_ns: int = 0


def quick(data: bytes) -> Quick | None:
    """The event in *data* where it is of the usual form; None: ask :func:`parse`."""
    if len(data) < QUICK_END:
        return None
    (kind, one, source, destination, protocol, source_port, port, other, server, _, _, server_port, _) = (
        _QUICK.unpack_from(data)
    )
    is_new = kind == _QUICK_NEW
    if one != _FAST_ORIGINAL or other != _FAST_REPLY or not (is_new or kind == _QUICK_DESTROY):
        return None
    key = data[_HEADERS_BYTES : _HEADERS_BYTES + _TUPLE_BYTES]
    return is_new, key, source, destination, protocol, source_port, port, server, server_port


def parse(data: bytes) -> Seen | None:
    """The event in *data*, one netlink message; None for anything else. Raises ``ValueError`` for a broken one."""
    kind = int.from_bytes(data[4:6], "little")
    if kind not in (NEW, DESTROY) or len(data) < _HEADERS_BYTES + 4:
        return None
    if len(data) >= _HEADERS_BYTES + _FAST.size:
        (one, source, destination, protocol, source_port, port, other, source2, destination2, protocol2, source_port2,
         port2) = _FAST.unpack_from(data, _HEADERS_BYTES)  # fmt: skip
        if one == _FAST_ORIGINAL and other == _FAST_REPLY:
            return Seen(
                kind == NEW, data[_HEADERS_BYTES : _HEADERS_BYTES + _TUPLE_BYTES],
                Tuple(source, destination, protocol, source_port, port),
                Tuple(source2, destination2, protocol2, source_port2, port2), _HEADERS_BYTES + _FAST.size,
            )  # fmt: skip
    return _slow(data, kind == NEW)


def _slow(data: bytes, is_new: bool) -> Seen | None:
    original = reply = None
    key = b""
    at = _HEADERS_BYTES
    while at + 4 <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        kind &= 0x3FFF
        if size < 4 or at + size > len(data):
            raise ValueError(f"attribute of {size} bytes at {at} of {len(data)}")
        if kind == 1:
            key = data[at : at + size]
            original = _tuple(data, at + 4, at + size)
        elif kind == 2:
            reply = _tuple(data, at + 4, at + size)
        else:
            break
        at += (size + 3) & ~3
    if original is None or reply is None:
        return None
    return Seen(is_new, key, original, reply, at)


def _tuple(data: bytes, start: int, end: int) -> Tuple | None:
    source = destination = b""
    protocol, ports = -1, [0, 0]
    icmp = [0, 0, 0]
    for kind, low, high in _walk(data, start, end):
        if kind == 1:
            for inner, first, last in _walk(data, low, high):
                if inner in (1, 3):
                    source = data[first:last]
                elif inner in (2, 4):
                    destination = data[first:last]
        elif kind == 2:
            for inner, first, last in _walk(data, low, high):
                value = int.from_bytes(data[first:last], "big")
                if inner == 1:
                    protocol = value & 0xFF
                elif inner in (2, 3):
                    ports[inner - 2] = value & 0xFFFF
                elif 4 <= inner <= 6:
                    icmp[inner - 4] = value & 0xFFFF
                elif 7 <= inner <= 9:
                    icmp[inner - 7] = value & 0xFFFF
    if protocol < 0 or len(source) != len(destination) or len(source) not in (4, 16):
        return None
    if protocol in (ICMP, ICMPV6):
        return Tuple(source, destination, protocol, icmp[0], icmp[1] << 8 | icmp[2] & 0xFF)
    if protocol not in _WITH_PORTS:
        return Tuple(source, destination, protocol, 0, 0)
    return Tuple(source, destination, protocol, ports[0], ports[1])


def _walk(data: bytes, at: int, end: int) -> list[tuple[int, int, int]]:
    found = []
    while at + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < 4 or at + size > end:
            raise ValueError(f"attribute of {size} bytes at {at} of {end}")
        found.append((kind & 0x3FFF, at + 4, at + size))
        at += (size + 3) & ~3
    return found


def ending(data: bytes, at: int) -> Ended:
    """What the attributes of *data* from *at* on say of a connection that ended. Raises ``ValueError``."""
    if len(data) >= at + _FAST_END.size:
        one, packets_out, bytes_out, other, packets_in, bytes_in, third, began, ended = _FAST_END.unpack_from(data, at)
        if (one, other, third) == _FAST_END_SHAPE:
            return Ended(packets_out, bytes_out, packets_in, bytes_in, began, ended)
    counts = [0, 0, 0, 0]
    began = ended = 0
    for kind, low, high in _walk(data, at, len(data)):
        if kind in (9, 10):
            place = 2 * (kind - 9)
            for inner, first, last in _walk(data, low, high):
                if inner in (1, 2) and last - first == 8:
                    counts[place + inner - 1] = _U64.unpack_from(data, first)[0]
        elif kind == 20:
            for inner, first, last in _walk(data, low, high):
                if last - first == 8:
                    if inner == 1:
                        began = _U64.unpack_from(data, first)[0]
                    elif inner == 2:
                        ended = _U64.unpack_from(data, first)[0]
    return Ended(counts[0], counts[1], counts[2], counts[3], began, ended)
