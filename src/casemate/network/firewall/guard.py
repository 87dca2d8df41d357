"""What a packet from a pod must be before any policy is asked: its own addresses, no options, nowhere forbidden. Pure.

Every packet that comes in meets one rule, before connection tracking: hardware address, the first byte of the IP
header (version 4, no options) and source address are one key of ``own4``, and the destination is no multicast. What
this rule does not let on is looked at closely where it came from a pod, to be counted by its reason.

Where a pod's packet may not go is looked at where a connection begins, after translation (a published port may lead
anywhere): see *fresh4*.
"""

from __future__ import annotations

from casemate.host import nft_expressions as e
from casemate.network.firewall.sets import PLAIN4
from casemate.network.flowlog import GUARD_WORDS, PREFIX, VERDICT_COPY_BYTES

#: What is dropped before any policy and told to who watches, so many times a second at most. Not what bears another's
#: address: who sent it cannot be read off it.
GUARDS, GUARDS_TOLD = tuple(sorted(GUARD_WORDS)), 200
CHAINS = ("fresh4", "guard4", "odd4", *(f"drop_{name}" for name in GUARDS))
_V4, _ICMP = 2, 1


def ours(key: int, prefix: str) -> bytes:
    """Goes on where the interface (*key*: that it came by, or leaves by) is a pod's."""
    return e.meta(key, 0) + e.compare(0, prefix.encode())


def counted(name: str, code: int, chain: str = "") -> bytes:
    return e.count(name) + e.verdict(code, chain)


def dropped(name: str) -> bytes:
    return e.verdict(e.GOTO, f"drop_{name}")


def chains(prefix: str, gateway: bytes, log_group: int) -> dict[str, list[bytes]]:
    v4 = bytes([_V4])
    hardware, source = e.payload(e.LINK, 6, 6, 0), e.payload(e.NETWORK, 12, 4, 3)
    first, destination = e.payload(e.NETWORK, 0, 1, 2), e.payload(e.NETWORK, 16, 4, 0)
    several = destination + e.mask(0, b"\xe0\0\0\0")
    return {
        "guard": [
            hardware + first + source + e.lookup("own4", 0) + several + e.compare(0, b"\xe0\0\0\0", e.NEQ)
            + e.verdict(e.ACCEPT),
            ours(e.META_IIFNAME, prefix) + e.verdict(e.GOTO, "guard4"),
        ],
        "guard4": [
            e.meta(e.META_NFPROTO, 0) + e.compare(0, v4, e.NEQ) + counted("ipv6", e.DROP),
            hardware + e.immediate(2, PLAIN4 + bytes(3)) + source + e.lookup("own4", 0) + e.verdict(e.GOTO, "odd4"),
            counted("spoofed", e.DROP),
        ],
        "odd4": [
            # 224.0.0.0/3: multicast, reserved, broadcast.
            first + e.compare(2, PLAIN4) + several + e.compare(0, b"\xe0\0\0\0") + dropped("multicast"),
            dropped("options"),
        ],
        "fresh4": [
            # An ICMP error is let through as part of the connection that it is about: a pod may say one of what was
            # sent to itself, and not of others' connections. Inside it is that packet, from its 8th byte on.
            e.state(e.STATE_RELATED) + e.protocol(_ICMP) + hardware + e.immediate(2, PLAIN4 + bytes(3))
            + e.payload(e.TRANSPORT, 8 + 16, 4, 3) + e.lookup("own4", 0, absent=True) + counted("spoofed", e.DROP),
            destination + e.lookup("metadata4", 0) + dropped("metadata"),
            destination + e.compare(0, gateway, e.NEQ)
            + e.masked(0, b"\xff\xff\0\0", bytes([169, 254, 0, 0])) + dropped("link_local"),
            several + e.compare(0, b"\xe0\0\0\0") + dropped("multicast"),
        ],
    } | {
        f"drop_{name}": [
            e.limit(GUARDS_TOLD, GUARDS_TOLD) + e.log(log_group, f"{PREFIX}guard:{name}", VERDICT_COPY_BYTES),
            counted(name, e.DROP),
        ]
        for name in GUARDS
    }  # fmt: skip
