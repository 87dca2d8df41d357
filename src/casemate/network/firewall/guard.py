"""What a packet from a pod must be before any policy is asked: its own addresses, no options, nowhere forbidden. Pure.

Every packet that comes in meets one rule, before parts are joined and connections tracked: the interface, the first
byte of the IP header (version 4, no options) and the source address are one key of ``from4``, the destination is no
multicast, and it is no part of a packet. What this rule does not let on is looked at closely where it came from a
pod, to be counted by its reason.

Where a connection begins, after translation (a published port may lead anywhere), is looked at where the packet may
not go, and whether it bears the pod's hardware address: see *fresh4*. Nobody reads that address in later packets, and
to look at it costs as much as the rest of the rule.

*Parts* of packets wait in a memory of the host's until the rest is there, and that is bounded for all together: who
sends beginnings alone would fill it. So a pod may send so many, all pods together so many, and each a few whatever the
others send. When the memory fills (*strained*) a part of it is divided among those who send parts: a pod may send
so few that until they are forgotten it cannot hold more there than its share.
"""

from __future__ import annotations

from typing import NamedTuple

from casemate.host import nft_expressions as e
from casemate.network.firewall.sets import PLAIN4
from casemate.network.flowlog import GUARD_WORDS, PREFIX, VERDICT_COPY_BYTES

#: What is dropped before any policy and told to who watches, so many times a second at most. Not what bears another's
#: address: who sent it cannot be read off it.
GUARDS, GUARDS_TOLD = tuple(sorted(GUARD_WORDS)), 200
CHAINS = ("fresh4", "guard4", "odd4", "parts", *(f"drop_{name}" for name in GUARDS))
#: Parts of packets that a pod may send in a second, and at once; that all pods may send together; and that each may
#: send beyond that. What comes in 0.35 s, until hostd sees it, is half of the 4 MiB that Linux has for it, and all of
#: it when 30 pods begin at the same time.
PARTS, PARTS_TOGETHER, PARTS_EACH = (1000, 256), (2000, 256), (8, 24)
#: What one of 1,500 bytes takes there, how long the kernel keeps it, and what of the memory is divided.
PART_BYTES, PARTS_KEPT_S, _DIVIDED = 2304, 30, 3 / 8
#: Strained, of one alone: 64 KiB in parts, and 544 parts in those 30 s.
_MOST = (960, 64)
_PARTS_FORGET_MS, _MINUTE_S = 60_000, 60
_V4, _ICMP = 2, 1


def ours(key: int, prefix: str) -> bytes:
    """Goes on where the interface (*key*: that it came by, or leaves by) is a pod's."""
    return e.meta(key, 0) + e.compare(0, prefix.encode())


def counted(name: str, code: int, chain: str = "") -> bytes:
    return e.count(name) + e.verdict(code, chain)


def dropped(name: str) -> bytes:
    return e.verdict(e.GOTO, f"drop_{name}")


class Share(NamedTuple):
    """Parts of packets that a pod may send in a minute, and at once."""

    per_minute: int
    burst: int


def share(memory_bytes: int, pods: int) -> Share:
    """A pod's, when *pods* send parts and the memory for them fills."""
    most = int(memory_bytes * _DIVIDED) // PART_BYTES // pods
    burst = min(max(most // 8, 1), _MOST[1])
    return Share(min(max((most - burst) * _MINUTE_S // PARTS_KEPT_S, 1), _MOST[0]), burst)


def parts(strained: Share | None = None) -> list[bytes]:
    """The rules of *parts*."""
    source, accept = e.payload(e.NETWORK, 12, 4, 0), e.verdict(e.ACCEPT)

    def over(name: str, rate: bytes) -> bytes:
        return source + e.for_each(name, 0, _PARTS_FORGET_MS, rate) + dropped("parts")

    if strained is not None:
        return [over("parts4", e.limit_over(*strained, unit_s=_MINUTE_S)), accept]
    return [
        over("parts4", e.limit_over(*PARTS)),
        e.limit(*PARTS_TOGETHER) + accept,
        over("few4", e.limit_over(*PARTS_EACH)),
        accept,
    ]


def chains(prefix: str, gateway: bytes, log_group: int) -> dict[str, list[bytes]]:
    v4, plain = bytes([_V4]), PLAIN4 + bytes(3)
    interface, hardware = e.meta(e.META_IIF, 0), e.payload(e.LINK, 6, 6, 1)
    first, destination = e.payload(e.NETWORK, 0, 1, 1), e.payload(e.NETWORK, 16, 4, 0)
    several = destination + e.mask(0, b"\xe0\0\0\0")
    # Number, flags and place of a part, together: four bytes are masked at once. Neither "more" nor a place.
    part = e.payload(e.NETWORK, 4, 4, 0) + e.mask(0, b"\0\0\x3f\xff")
    return {
        "guard": [
            interface + first + e.payload(e.NETWORK, 12, 4, 2) + e.lookup("from4", 0)
            + several + e.compare(0, b"\xe0\0\0\0", e.NEQ) + part + e.compare(0, bytes(4)) + e.verdict(e.ACCEPT),
            ours(e.META_IIFNAME, prefix) + e.verdict(e.GOTO, "guard4"),
        ],
        "guard4": [
            e.meta(e.META_NFPROTO, 0) + e.compare(0, v4, e.NEQ) + counted("ipv6", e.DROP),
            interface + hardware + e.immediate(3, plain) + e.payload(e.NETWORK, 12, 4, 4) + e.lookup("own4", 0)
            + e.verdict(e.GOTO, "odd4"),
            counted("spoofed", e.DROP),
        ],
        "odd4": [
            # 224.0.0.0/3: multicast, reserved, broadcast.
            first + e.compare(1, PLAIN4) + several + e.compare(0, b"\xe0\0\0\0") + dropped("multicast"),
            first + e.compare(1, PLAIN4) + e.verdict(e.GOTO, "parts"),
            dropped("options"),
        ],
        "parts": parts(),
        "fresh4": [
            interface + hardware + e.immediate(3, plain) + e.payload(e.NETWORK, 12, 4, 4)
            + e.lookup("own4", 0, absent=True) + counted("spoofed", e.DROP),
            # An ICMP error is let through as part of the connection that it is about: a pod may say one of what was
            # sent to itself, and not of others' connections. Inside it is that packet, from its 8th byte on.
            e.state(e.STATE_RELATED) + e.protocol(_ICMP) + interface + hardware + e.immediate(3, plain)
            + e.payload(e.TRANSPORT, 8 + 16, 4, 4) + e.lookup("own4", 0, absent=True) + counted("spoofed", e.DROP),
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
