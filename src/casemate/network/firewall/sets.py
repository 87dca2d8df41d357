"""The firewall's sets and maps, and their elements from plain numbers. Pure.

====================  ==========================================  =====================================================
map                   key                                         value
====================  ==========================================  =====================================================
exact4, exact6        an endpoint's address                       identity
viewed4, viewed6      viewer's address . address (timed)          identity that the address has for that viewer
world4, world6        0 . interval of addresses                   identity
port                  0 . source . destination . protocol . port  verdict
range                 the same, an interval of ports              verdict
port, protocol 255    the same                                    verdict for the rest of the port space
egress                0 . identity . 0 . 0                        the base that is asked where the pair has nothing
ingress               0 . 0 . identity . 0                        the same, of the destination
answers4, answers6    addresses . protocol . port (timed)         answers to referrals
verdicts, given       0 . verdict, by number                      the chain of that verdict (of an answer)
held4, held6          addresses whose new connections wait
crowded4, crowded6    pods with too many connections (timed)
from4                 a pod's interface . first byte of the IP header . the pod's address
own4                  the same with the pod's hardware address behind the interface
parts4, few4          a pod's address, with the rate of parts of packets (timed)
stamp                 number of the state in force
====================  ==========================================  =====================================================

Verdicts are numbers, and one small map turns them into chains: the kernel looks at every element of a map of verdicts
in each transaction that touches it. Identities stand in the order of the host's bytes, as marks do. ICMP's type stands
in the first byte of the port.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from casemate.host.nft_expressions import GOTO
from casemate.host.nft_netlink import SetSpec, element, goes_to, value

#: nft(8)'s numbers of types.
_IPV4, _IPV6, _ETHER, _PROTOCOL, _SERVICE, _MARK, _INTERFACE = 7, 8, 9, 12, 13, 19, 20
_IDENTITY = (_MARK, 4)
#: Of the keys that begin with a 0; why they do stands in :mod:`casemate.network.firewall.rules`.
_PLACE = (_IDENTITY, _IDENTITY, _IDENTITY, (_PROTOCOL, 1), (_SERVICE, 2))

#: Verdicts by number, as `policy.verdict` has them: a test holds them equal.
ALLOW, AUDIT, REFER, HOLD, DENY = range(5)
#: What an accepting answer to a referral is among them.
ANSWERED = 5
#: Chains that verdicts go to. HOLD is laid over a pod by :mod:`casemate.hostd.holding`; no element has it.
CHAINS = {ALLOW: "allow", AUDIT: "audit", REFER: "refer", HOLD: "deny", DENY: "deny"}
ANSWER_CHAINS = {ANSWERED: "passed", DENY: "deny"}
#: The first byte of an IP header: version 4, no options.
PLAIN4 = b"\x45"
ICMP = 1
MAX_ICMP_TYPE = 255
#: In the place of a protocol: every one for which there is nothing else. No packet bears it (IANA: reserved).
PAIR = 255
#: Entries of the table that keeps the rate of referrals of each pod.
_RATES = 65_536
#: Pods on one host, twice over (a transaction that replaces all has both). A set with a size is one plain table of
#: hashes to the kernel, which takes less for each look than one that grows: every packet looks here.
_PODS = 65_536

IDENTITY_SETS: tuple[SetSpec, ...] = (
    SetSpec("exact4", ((_IPV4, 4),), data=_IDENTITY),
    SetSpec("exact6", ((_IPV6, 16),), data=_IDENTITY),
    SetSpec("viewed4", ((_IPV4, 4), (_IPV4, 4)), data=_IDENTITY, timed=True),
    SetSpec("viewed6", ((_IPV6, 16), (_IPV6, 16)), data=_IDENTITY, timed=True),
    SetSpec("world4", (_IDENTITY, (_IPV4, 4)), data=_IDENTITY, interval=True),
    SetSpec("world6", (_IDENTITY, (_IPV6, 16)), data=_IDENTITY, interval=True),
    SetSpec("port", _PLACE, data=_IDENTITY),
    SetSpec("range", _PLACE, data=_IDENTITY, interval=True),
    SetSpec("egress", (_IDENTITY,) * 4, data=_IDENTITY),
    SetSpec("ingress", (_IDENTITY,) * 4, data=_IDENTITY),
)
OTHER_SETS: tuple[SetSpec, ...] = (
    SetSpec("answers4", ((_IPV4, 4), (_IPV4, 4), (_PROTOCOL, 1), (_SERVICE, 2)), data=_IDENTITY, timed=True),
    SetSpec("answers6", ((_IPV6, 16), (_IPV6, 16), (_PROTOCOL, 1), (_SERVICE, 2)), data=_IDENTITY, timed=True),
    SetSpec("rate4", ((_IPV4, 4),), timed=True, dynamic=True, size=_RATES),
    SetSpec("rate6", ((_IPV6, 16),), timed=True, dynamic=True, size=_RATES),
    SetSpec("held4", ((_IPV4, 4),)),
    SetSpec("held6", ((_IPV6, 16),)),
    SetSpec("crowded4", ((_IPV4, 4),), timed=True),
    SetSpec("crowded6", ((_IPV6, 16),), timed=True),
    SetSpec("from4", ((_INTERFACE, 4), (_PROTOCOL, 1), (_IPV4, 4)), size=_PODS),
    SetSpec("own4", ((_INTERFACE, 4), (_ETHER, 6), (_PROTOCOL, 1), (_IPV4, 4)), size=_PODS),
    SetSpec("parts4", ((_IPV4, 4),), timed=True, dynamic=True, size=_RATES),
    SetSpec("few4", ((_IPV4, 4),), timed=True, dynamic=True, size=_RATES),
    SetSpec("metadata4", ((_IPV4, 4),)),
    SetSpec("verdicts", (_IDENTITY, _IDENTITY), verdicts=True),
    SetSpec("stamp", (_IDENTITY,)),
    SetSpec("given", (_IDENTITY, _IDENTITY), verdicts=True),
)
ALL_SETS = IDENTITY_SETS + OTHER_SETS
#: Maps whose elements go by themselves. On kernels before 6.3 they cannot be taken out earlier in a transaction.
TIMED = frozenset(("viewed4", "viewed6"))

_VALUES = {number: value(struct.pack("=I", number)) for number in (*CHAINS, ANSWERED)}
_place = struct.Struct("=4xIIB3x2s2x").pack
_identity = struct.Struct("=I").pack


class Row(NamedTuple):
    """An element and the set that it is of."""

    name: str
    element: bytes


def verdict_row(  # noqa: PLR0917 - the fields of one record, in its order
    table: int, source: int, destination: int, protocol: int, first: int, last: int, verdict: int
) -> Row:
    """An element of ``port`` (*table* 0) or ``range`` (1), or (2) of ``port`` for all the rest of a pair."""
    if table == 2:
        return Row("port", element(_place(source, destination, PAIR, bytes(2)), data=_VALUES[verdict]))
    key = _place(source, destination, protocol, _port(protocol, first, 0))
    if table == 0:
        return Row("port", element(key, data=_VALUES[verdict]))
    end = _place(source, destination, protocol, _port(protocol, last, 255))
    return Row("range", element(key, end=end, data=_VALUES[verdict]))


def _port(protocol: int, port: int, low: int) -> bytes:
    return bytes([port, low]) if protocol == ICMP else port.to_bytes(2, "big")


def address_row(exact: bool, first: bytes, last: bytes, *, viewer: bytes, number: int, lifetime_ms: int = 0) -> Row:
    """An element of the maps from address to identity; addresses are 4 or 16 bytes, *viewer* may be empty."""
    version = "4" if len(first) == 4 else "6"
    data = value(_identity(number))
    if viewer:
        return Row(f"viewed{version}", element(viewer + first, data=data, timeout_ms=lifetime_ms))
    if exact:
        return Row(f"exact{version}", element(first, data=data))
    return Row(f"world{version}", element(bytes(4) + first, end=bytes(4) + last, data=data))


def base_rows(number: int, egress: int, ingress: int) -> tuple[Row, Row]:
    """The two elements of one identity's bases."""
    key = _identity(number)
    return (
        Row("egress", element(bytes(4) + key + bytes(8), data=value(_identity(egress)))),
        Row("ingress", element(bytes(8) + key + bytes(4), data=value(_identity(ingress)))),
    )


def answer_row(
    source: bytes, destination: bytes, protocol: int, port: int, *, accept: bool = True, lifetime_ms: int = 0
) -> Row:
    """A cached answer to referrals; *port* is ICMP's type for ICMP."""
    if len(source) == 4 and lifetime_ms:
        head, middle = _ANSWER4[accept]
        number = port << 8 if protocol == ICMP else port
        return Row("answers4", _answer4(head, source, destination, protocol, number, middle, lifetime_ms))
    return Row(
        "answers4" if len(source) == 4 else "answers6",
        _answer(source, destination, protocol, port, accept=accept, lifetime_ms=lifetime_ms),
    )


def _answer(source: bytes, destination: bytes, protocol: int, port: int, *, accept: bool, lifetime_ms: int) -> bytes:
    place = bytes([protocol, 0, 0, 0]) + _port(protocol, port, 0) + bytes(2)
    return element(source + destination + place, data=_VALUES[ANSWERED if accept else DENY], timeout_ms=lifetime_ms)


#: A flood's answers are 20,000 a second: what is the same in all of them is put together once. What stands before the
#: addresses and between port and time, by whether it lets pass.
_ANSWER4 = {
    accept: (whole[:12], whole[28:44])
    for accept in (True, False)
    for whole in (_answer(bytes(4), bytes(4), 0, 0, accept=accept, lifetime_ms=1),)
}
_answer4 = struct.Struct("!12s4s4sB3xH2x16sQ").pack


def address_set_row(name: str, address: bytes, lifetime_ms: int = 0) -> Row:
    """An element of ``held`` or ``crowded``."""
    return Row(f"{name}{'4' if len(address) == 4 else '6'}", element(address, timeout_ms=lifetime_ms))


def source_rows(index: int, mac: bytes, address: bytes) -> tuple[Row, Row]:
    """A pod's interface by its *index*, and the hardware address and the address that it may send from."""
    interface, plain = struct.pack("=I", index), PLAIN4 + bytes(3) + address
    return Row("from4", element(interface + plain)), Row("own4", element(interface + mac + bytes(2) + plain))


def metadata_row(address: bytes) -> Row:
    return Row("metadata4", element(address))


def stamp_row(generation: int) -> Row:
    return Row("stamp", element(_identity(generation & 0xFFFFFFFF)))


def verdict_rows() -> list[Row]:
    """The elements of ``verdicts`` and ``given``, which never change."""
    return [
        Row(name, element(bytes(4) + _identity(number), data=goes_to(GOTO, chain)))
        for name, chains in (("verdicts", CHAINS), ("given", ANSWER_CHAINS))
        for number, chain in chains.items()
    ]
