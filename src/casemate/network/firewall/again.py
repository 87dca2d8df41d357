"""Chains that judge a connection again: its label bears the identities of its ends already, and they may be others now.

A rule can add bits to a connection's label and never take one away (nf_conntrack's ``nf_connlabels_replace`` with the
label as its own mask), so what is written there once stays. Here both identities are looked up in each rule instead,
and used as a key at once. That takes more for a packet; it is one packet of each open connection and change. Pure.
"""

from __future__ import annotations

import ipaddress

from casemate.host import nft_expressions as e
from casemate.network.firewall.sets import PAIR

_TCP, _UDP, _SCTP, _ICMP, _ICMP6 = 6, 17, 132, 1, 58
CHAINS = ("again", "again_port", "again_icmp", "again_other")
#: Registers: the key is in 3 to 7, a base's in 8 to 11; addresses from 12.
_KEY, _SOURCE, _DESTINATION, _PROTOCOL, _PORT, _BASE, _ADDRESS = 3, 4, 5, 6, 7, 8, 12
_TABLES = ("port", "range", "rest")


def chains(pool: ipaddress.IPv4Network) -> dict[str, list[bytes]]:
    """The rules of :data:`CHAINS`: by the kind of packet; then each way of finding both ends, and for each the verdict
    of the pair and of its bases. The first way that finds both holds.
    """
    places = {
        "again_port": e.meta(e.META_L4PROTO, _PROTOCOL) + e.tracked(e.CT_PROTO_SRC, _PORT, e.REPLY),
        "again_icmp": e.immediate(_PROTOCOL, bytes([_ICMP, 0, 0, 0])) + e.payload(e.TRANSPORT, 0, 1, _PORT),
        "again_other": e.immediate(_PROTOCOL, bytes(4)) + e.immediate(_PORT, bytes(4)),
    }
    rest = e.immediate(_PROTOCOL, bytes([PAIR, 0, 0, 0])) + e.immediate(_PORT, bytes(4))
    found: dict[str, list[bytes]] = {
        "again": [
            *(e.protocol(number) + e.verdict(e.GOTO, "again_port") for number in (_TCP, _UDP, _SCTP)),
            *(e.protocol(number) + e.verdict(e.GOTO, "again_icmp") for number in (_ICMP, _ICMP6)),
            e.verdict(e.GOTO, "again_other"),
        ]
    }
    for chain, place in places.items():
        rules = found[chain] = []
        for way in range(4):
            for based in (False, True):
                for table in _TABLES:
                    name, at = ("port", rest) if table == "rest" else (table, place)
                    rules.append(_both(way, pool, based=based) + at + _go(name))
            rules.append(_both(way, pool, based=False) + e.verdict(e.GOTO, "deny"))
        rules.append(e.verdict(e.GOTO, "deny"))
    return found


def _go(name: str) -> bytes:
    return e.immediate(0, bytes(8)) + e.lookup(name, _KEY, into=1) + e.lookup("verdicts", 0, verdict_map=True)


def _both(way: int, pool: ipaddress.IPv4Network, *, based: bool) -> bytes:
    """Goes on where the *way* finds both ends: their identities (*based*: the numbers of their bases) in the key."""
    pad = e.immediate(_KEY, bytes(16))
    if not based:
        return pad + _source(way, pool, _SOURCE) + _destination(way, pool, _DESTINATION)
    zeros = e.immediate(_BASE, bytes(16))
    egress = zeros + _source(way, pool, _BASE + 1) + e.lookup("egress", _BASE, into=_SOURCE)
    ingress = zeros + _destination(way, pool, _BASE + 2) + e.lookup("ingress", _BASE, into=_DESTINATION)
    return pad + egress + ingress


def _source(way: int, pool: ipaddress.IPv4Network, into: int) -> bytes:
    """The opener's identity: an endpoint's; by the last way, the outside's."""
    if way == 3:
        return _world(e.ORIGINAL, pool, into)
    return e.tracked(e.CT_SRC_IP, _ADDRESS, e.ORIGINAL) + e.lookup("exact4", _ADDRESS, into=into)


def _destination(way: int, pool: ipaddress.IPv4Network, into: int) -> bytes:
    """The other's: an endpoint's; what the opener was told under a name; the outside's."""
    if way == 2:
        return _world(e.REPLY, pool, into)
    other = e.tracked(e.CT_SRC_IP, _ADDRESS + 1, e.REPLY)
    if way == 1:
        viewer = e.tracked(e.CT_SRC_IP, _ADDRESS, e.ORIGINAL)
        return viewer + other + e.lookup("viewed4", _ADDRESS, into=into)
    return other + e.lookup("exact4", _ADDRESS + 1, into=into)


def _world(direction: int, pool: ipaddress.IPv4Network, into: int) -> bytes:
    """Not of the pool: an address of ours that nobody has must not pass for one of the outside."""
    address = e.immediate(_ADDRESS + 1, bytes(4)) + e.tracked(e.CT_SRC_IP, _ADDRESS + 2, direction)
    outside = e.mask(_ADDRESS + 2, pool.netmask.packed, _PORT)
    outside += e.compare(_PORT, pool.network_address.packed, e.NEQ)
    return address + outside + e.lookup("world4", _ADDRESS + 1, into=into)
