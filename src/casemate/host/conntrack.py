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

from casemate.host.netns import in_own_thread
from casemate.host.rtnetlink import NetlinkFailed, RouteSocket, attribute, attributes

_GET, _DELETE, _DUMP, _NESTED = 1 << 8 | 1, 1 << 8 | 2, 0x300, 0x8000
_ORIGINAL, _REPLY, _FILTER = 1, 2, 25
_TUPLE_IP, _IP_SOURCE = 1, 1
#: struct nfgenmsg: AF_INET, version 0, no resource.
_HEADER = struct.pack("=BBH", 2, 0, 0)


class _ConntrackSocket(RouteSocket):
    protocol = 12  # NETLINK_NETFILTER


async def forget(address: str) -> int:
    """Delete the connections that *address* began or answers; how many. In a thread: a long table takes a while."""
    return await in_own_thread(lambda: _forget(ipaddress.IPv4Address(address).packed))


def _forget(packed: bytes) -> int:
    count = 0
    with _ConntrackSocket() as netlink:
        for direction in (_ORIGINAL, _REPLY):
            for original in _matching(netlink, direction, packed):
                body = _HEADER + attribute(_ORIGINAL | _NESTED, original)
                try:
                    netlink.request(_DELETE, 0, body, "forgetting a connection")
                except NetlinkFailed as error:
                    if error.errno != errno.ENOENT:  # it ended by itself
                        raise
                else:
                    count += 1
    return count


def _matching(netlink: RouteSocket, direction: int, packed: bytes) -> list[bytes]:
    """The original tuples of the connections whose *direction* has the source address *packed*."""
    wanted = attribute(_TUPLE_IP | _NESTED, attribute(_IP_SOURCE, packed))
    flags = attribute(direction, struct.pack("=I", 1))  # CTA_FILTER_F_CTA_IP_SRC
    other = attribute(3 - direction, struct.pack("=I", 0))
    body = _HEADER + attribute(direction | _NESTED, wanted) + attribute(_FILTER | _NESTED, flags + other)
    found: list[bytes] = []
    for answer in netlink.request(_GET, _DUMP, body, "listing connections"):
        with contextlib.suppress(KeyError, ValueError):
            row = dict(attributes(answer[4:]))
            addresses = dict(attributes(dict(attributes(row[direction]))[_TUPLE_IP]))
            if addresses[_IP_SOURCE] == packed:
                found.append(row[_ORIGINAL])
    return found
