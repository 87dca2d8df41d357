"""Tracked connections of one address, forgotten when the address changes hands.

A UDP flow that goes on keeps its old translation for ever: packets for a port that is published anew would still
go to the pod that had it before. And a new pod must not get packets of its predecessor's connections.
Source: linux/netfilter/nfnetlink_conntrack.h; the filter by address exists since Linux 5.8, and is checked here too.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from casemate.host.netlink import attribute, attributes
from casemate.host.netns import in_own_thread
from casemate.host.rtnetlink import NetlinkFailed, RouteSocket

_GET, _DELETE, _DUMP, _NESTED = 1 << 8 | 1, 1 << 8 | 2, 0x300, 0x8000
_ORIGINAL, _REPLY, _FILTER = 1, 2, 25
_TUPLE_IP, _IP_SOURCE = 1, 1
_IP_SOURCE_V6 = 3
#: The kinds of the attributes that a listed connection begins with, as the kernel writes them.
_FIRST = tuple(struct.pack("=H", kind) for kind in (_ORIGINAL | _NESTED, _TUPLE_IP | _NESTED, _IP_SOURCE))
_SYSCTL = Path("/proc/sys/net/netfilter")
#: struct nfgenmsg: family, version 0, no resource.
_HEADER = struct.pack("=BBH", 2, 0, 0)
_HEADER_V6 = struct.pack("=BBH", 10, 0, 0)


class _ConntrackSocket(RouteSocket):
    protocol = 12  # NETLINK_NETFILTER


async def forget(address: str) -> int:
    """Delete the connections that *address* began or answers; how many. In a thread: a long table takes a while."""
    return await in_own_thread(lambda: _forget(ipaddress.IPv4Address(address).packed))


def fill() -> tuple[int, int]:
    """How many connections this namespace tracks, and how many the kernel tracks at most; zeros where it does not."""
    try:
        return int((_SYSCTL / "nf_conntrack_count").read_bytes()), int((_SYSCTL / "nf_conntrack_max").read_bytes())
    except FileNotFoundError:
        return 0, 0


def count_by_source() -> Counter[bytes]:
    """IPv4 connections by the address that began them; some microseconds for each, so for a thread."""
    counted: Counter[bytes] = Counter()
    with _ConntrackSocket() as netlink:
        for answer in netlink.request(_GET, _DUMP, _HEADER, "counting connections"):
            # nfgenmsg (4), then the headers of CTA_TUPLE_ORIG, CTA_TUPLE_IP and CTA_IP_V4_SRC (4 each), in that order.
            if answer[6:8] == _FIRST[0] and answer[10:12] == _FIRST[1] and answer[14:16] == _FIRST[2]:
                counted[answer[16:20]] += 1
    return counted


async def forget_pairs(pairs: Sequence[tuple[bytes, bytes]]) -> int:
    """Delete the connections that the first address of a pair began to the second (empty: any); how many."""
    return await in_own_thread(lambda: sum(_forget_pair(*pair) for pair in pairs))


def _forget(packed: bytes) -> int:
    with _ConntrackSocket() as netlink:
        return sum(
            _delete(netlink, [original for original, _ in _matching(netlink, direction, packed)], _HEADER)
            for direction in (_ORIGINAL, _REPLY)
        )


def _forget_pair(source: bytes, destination: bytes) -> int:
    if not source and not destination:
        return 0
    header = _HEADER if len(source or destination) == 4 else _HEADER_V6
    with _ConntrackSocket() as netlink:
        if source:
            found = _matching(netlink, _ORIGINAL, source)
            wanted = [original for original, answering in found if destination in (b"", answering)]
        else:
            wanted = [original for original, _ in _matching(netlink, _REPLY, destination)]
        return _delete(netlink, wanted, header)


def _delete(netlink: RouteSocket, originals: Sequence[bytes], header: bytes) -> int:
    count = 0
    for original in originals:
        try:
            netlink.request(_DELETE, 0, header + attribute(_ORIGINAL | _NESTED, original), "forgetting a connection")
        except NetlinkFailed as error:
            if error.errno != errno.ENOENT:  # it ended by itself
                raise
        else:
            count += 1
    return count


def _matching(netlink: RouteSocket, direction: int, packed: bytes) -> list[tuple[bytes, bytes]]:
    """Connections whose *direction* has the source address *packed*: the original tuple, and who answers."""
    kind, header = (_IP_SOURCE, _HEADER) if len(packed) == 4 else (_IP_SOURCE_V6, _HEADER_V6)
    wanted = attribute(_TUPLE_IP | _NESTED, attribute(kind, packed))
    flags = attribute(direction, struct.pack("=I", 1))  # CTA_FILTER_F_CTA_IP_SRC
    other = attribute(3 - direction, struct.pack("=I", 0))
    body = header + attribute(direction | _NESTED, wanted) + attribute(_FILTER | _NESTED, flags + other)
    found: list[tuple[bytes, bytes]] = []
    for answer in netlink.request(_GET, _DUMP, body, "listing connections"):
        with contextlib.suppress(KeyError, ValueError):
            row = dict(attributes(answer[4:]))
            if _source(row[direction], kind) == packed:
                found.append((row[_ORIGINAL], _source(row[_REPLY], kind)))
    return found


def _source(one: bytes, kind: int) -> bytes:
    return dict(attributes(dict(attributes(one))[_TUPLE_IP]))[kind]
