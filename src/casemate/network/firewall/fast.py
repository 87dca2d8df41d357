"""The short way of what is most of the traffic: first packets between two endpoints that an exact port allows. Pure.

One rule asks all that the long way asks (:mod:`casemate.network.firewall.rules`) and lets the packet through; whatever
it does not say yes to goes the long way. So it can be left out at any place and nothing changes but the time:

- it is a first packet of TCP by its flags, or one of UDP, that bears no mark (answers to referrals and kept
  connections do), and comes from a pod with its own hardware address;
- its connection's opener has not too many of them; where it leads (after translation) is in the pool of pods, so
  neither multicast, nor link-local, nor a metadata service;
- both ends of the tracked connection are endpoints, and for their identities, protocol and port the verdict is ALLOW.

Nothing is written into the connection's label.
"""

from __future__ import annotations

import ipaddress
import struct

from casemate.host import nft_expressions as e
from casemate.network.firewall.sets import ALLOW, PLAIN4

_TCP, _UDP = 6, 17
#: IANA's protocol assignments (RFC 6890): one cloud's metadata service is there.
_ASSIGNMENTS = ipaddress.IPv4Network("192.0.0.0/24")
#: Registers: the key is in 3 to 7, addresses from 12.
_KEY, _SOURCE, _DESTINATION, _PORT, _ADDRESS = 3, 4, 5, 7, 12


def serves(pool: ipaddress.IPv4Network) -> bool:
    """Whether no address of *pool* can be one that *fresh4* refuses: RFC 1918's; link-local is private to Python."""
    return pool.is_private and not pool.is_link_local and not pool.overlaps(_ASSIGNMENTS)


def rules(pool: ipaddress.IPv4Network) -> list[bytes]:
    """The rules for TCP and UDP."""
    begins = e.payload(e.TRANSPORT, 13, 1, 15) + e.masked(15, b"\x17", b"\x02")
    allow = e.verdict(e.GOTO, "allow")
    return [e.protocol(_TCP) + begins + _allowed(_TCP, pool) + allow, e.protocol(_UDP) + _allowed(_UDP, pool) + allow]


def _allowed(protocol: int, pool: ipaddress.IPv4Network) -> bytes:
    unmarked = e.meta(e.META_MARK, 15) + e.compare(15, bytes(4))
    source = e.tracked(e.CT_SRC_IP, _ADDRESS, e.ORIGINAL)
    destination = e.tracked(e.CT_SRC_IP, _ADDRESS + 1, e.REPLY)
    inside = e.mask(_ADDRESS + 1, pool.netmask.packed, 15) + e.compare(15, pool.network_address.packed)
    # A constant first, written over in part: why stands in casemate.network.firewall.rules.
    key = e.immediate(_KEY, bytes(12) + bytes([protocol, 0, 0, 0]))
    both = e.lookup("exact4", _ADDRESS, into=_SOURCE) + e.lookup("exact4", _ADDRESS + 1, into=_DESTINATION)
    port = e.tracked(e.CT_PROTO_SRC, _PORT, e.REPLY)
    allow = e.lookup("port", _KEY, into=1) + e.compare(1, struct.pack("=I", ALLOW))
    crowded = e.lookup("crowded4", _ADDRESS, absent=True)
    own = (
        e.meta(e.META_IIF, _ADDRESS - 1)
        + e.payload(e.LINK, 6, 6, _ADDRESS)
        + e.immediate(_ADDRESS + 2, PLAIN4 + bytes(3))
    )
    own += e.payload(e.NETWORK, 12, 4, _ADDRESS + 3) + e.lookup("own4", _ADDRESS - 1)
    return unmarked + destination + inside + source + crowded + key + both + port + allow + own
