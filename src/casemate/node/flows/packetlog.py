"""Copies of packets from NFLOG: the log's own fields, then the packet's headers. Pure, and hostile input throughout.

Nothing here believes a length. Sources: linux/netfilter/nfnetlink_log.h; RFC 791, 8200 (4), 9293, 768.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from casemate.node.flows.conntrack import ICMP, ICMPV6, SCTP, TCP, UDP, Tuple

#: NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET.
_PACKET = 4 << 8
_HEADERS_BYTES = 20
_MARK, _PAYLOAD, _PREFIX, _SEQUENCE = 2, 9, 10, 12
_ATTRIBUTE = struct.Struct("=HH")
_MESSAGE = struct.Struct("=IH")
#: Hop-by-hop, routing, fragment, destination options (RFC 8200, 4.1); more than a few in one packet are an attack.
_EXTENSIONS = frozenset((0, 43, 44, 60))
_MAX_EXTENSIONS = 8


class Logged(NamedTuple):
    """One packet of the log: its number in the group (for counting what was lost), the rule's prefix, the bytes."""

    sequence: int
    prefix: bytes
    mark: int
    packet: bytes


def parse(data: bytes) -> Iterator[Logged]:
    """The packets in one datagram of the kernel. Raises ``ValueError`` where a length cannot be."""
    at = 0
    while at + 16 <= len(data):
        size, kind = _MESSAGE.unpack_from(data, at)
        if size < 16 or at + size > len(data):
            raise ValueError(f"message of {size} bytes at {at} of {len(data)}")
        if kind == _PACKET and size >= _HEADERS_BYTES:
            yield _logged(data, at + _HEADERS_BYTES, at + size)
        at += (size + 3) & ~3


def _logged(data: bytes, at: int, end: int) -> Logged:
    sequence, prefix, mark, packet = -1, b"", 0, b""
    while at + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < 4 or at + size > end:
            raise ValueError(f"attribute of {size} bytes at {at} of {end}")
        kind &= 0x3FFF
        if kind == _PAYLOAD:
            packet = data[at + 4 : at + size]
        elif kind == _PREFIX:
            prefix = data[at + 4 : at + size].rstrip(b"\0")
        elif kind == _SEQUENCE:
            sequence = int.from_bytes(data[at + 4 : at + size], "big")
        elif kind == _MARK:
            mark = int.from_bytes(data[at + 4 : at + size], "big")
        at += (size + 3) & ~3
    return Logged(sequence, prefix, mark, packet)


def headers(packet: bytes) -> tuple[Tuple, int] | None:
    """The addresses and ports of *packet*, and where the transport's content begins; None when it has none to show.

    A fragment that is not the first has no ports: they are 0.
    """
    if len(packet) < 20:
        return None
    if packet[0] >> 4 == 4:
        return _ipv4(packet)
    return _ipv6(packet) if packet[0] >> 4 == 6 else None


def _ipv4(packet: bytes) -> tuple[Tuple, int] | None:
    at = (packet[0] & 15) * 4
    if at < 20:
        return None
    is_later = int.from_bytes(packet[6:8], "big") & 0x1FFF
    return _transport(packet, (packet[12:16], packet[16:20]), packet[9], len(packet) if is_later else at)


def _ipv6(packet: bytes) -> tuple[Tuple, int] | None:
    if len(packet) < 40:
        return None
    protocol, at, is_later = packet[6], 40, False
    for _ in range(_MAX_EXTENSIONS):
        if protocol not in _EXTENSIONS or at + 8 > len(packet):
            break
        if protocol == 44:
            is_later = bool(int.from_bytes(packet[at + 2 : at + 4], "big") & 0xFFF8)
            size = 8
        else:
            size = (packet[at + 1] + 1) * 8
        protocol, at = packet[at], at + size
    if protocol in _EXTENSIONS:
        return None
    return _transport(packet, (packet[8:24], packet[24:40]), protocol, len(packet) if is_later else at)


def _transport(packet: bytes, ends: tuple[bytes, bytes], protocol: int, at: int) -> tuple[Tuple, int]:
    source, destination = ends
    if at + 4 > len(packet):
        return Tuple(source, destination, protocol, 0, 0), len(packet)
    if protocol in (TCP, UDP, SCTP):
        source_port = int.from_bytes(packet[at : at + 2], "big")
        port = int.from_bytes(packet[at + 2 : at + 4], "big")
        if protocol == TCP:
            size = (packet[at + 12] >> 4) * 4 if at + 13 <= len(packet) else len(packet)
            content = at + size if size >= 20 else len(packet)
        else:
            content = at + (8 if protocol == UDP else 12)
        return Tuple(source, destination, protocol, source_port, port), min(content, len(packet))
    if protocol in (ICMP, ICMPV6):
        return Tuple(source, destination, protocol, 0, packet[at] << 8 | packet[at + 1]), min(at + 8, len(packet))
    return Tuple(source, destination, protocol, 0, 0), at
