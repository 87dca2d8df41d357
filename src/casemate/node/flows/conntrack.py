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

#: Attribute header, nested IP (header, source, destination), nested protocol (header, number, both ports).
_FAST = struct.Struct("=HH HH HH4s HH4s HH HHBxxx HH2sxx HH2sxx")
_FAST_SHAPE = (20, 0x8001, 8, 1, 8, 2, 28, 0x8002, 5, 1, 6, 2, 6, 3)
_TUPLE_BYTES = _FAST.size
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


class Ended(NamedTuple):
    """Counters of both directions, and when the connection began and ended (ns since the epoch; 0: not noted)."""

    packets_out: int = 0
    bytes_out: int = 0
    packets_in: int = 0
    bytes_in: int = 0
    began_ns: int = 0
    ended_ns: int = 0


def parse(data: bytes) -> Seen | None:
    """The event in *data*, one netlink message; None for anything else. Raises ``ValueError`` for a broken one."""
    kind = int.from_bytes(data[4:6], "little")
    if kind not in (NEW, DESTROY) or len(data) < _HEADERS_BYTES + 4:
        return None
    if len(data) >= _HEADERS_BYTES + 2 * _TUPLE_BYTES:
        first = _fast(data, _HEADERS_BYTES, 0x8001)
        if first is not None:
            second = _fast(data, _HEADERS_BYTES + _TUPLE_BYTES, 0x8002)
            if second is not None:
                end = _HEADERS_BYTES + _TUPLE_BYTES
                return Seen(kind == NEW, data[_HEADERS_BYTES:end], first, second, end + _TUPLE_BYTES)
    return _slow(data, kind == NEW)


def _fast(data: bytes, at: int, kind: int) -> Tuple | None:
    (size, found, a, b, c, d, source, e, f, destination, g, h, i, j, protocol, k, m, source_port, n, o, port) = (
        _FAST.unpack_from(data, at)
    )
    if (size, found) != (_TUPLE_BYTES, kind) or (a, b, c, d, e, f, g, h, i, j, k, m, n, o) != _FAST_SHAPE:
        return None
    return Tuple(source, destination, protocol, int.from_bytes(source_port, "big"), int.from_bytes(port, "big"))


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
