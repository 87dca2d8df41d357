"""Expressions of nf_tables rules as netlink bytes: what nft(8)'s language cannot say, and what is too slow through it.

A rule is a list of expressions that work on sixteen registers of four bytes. Here identities of both ends are looked
up into neighbouring registers and used as one key, which the nft program has no words for. Pure. Source:
linux/netfilter/nf_tables.h; registers NFT_REG32_00 on, so that fields of a key lie side by side.
"""

from __future__ import annotations

import struct

from casemate.host.netlink import attribute

_NESTED = 0x8000
ACCEPT, DROP = 1, 0
JUMP, GOTO = -3, -4
EQ, NEQ = 0, 1
LINK, NETWORK, TRANSPORT, INNER = 0, 1, 2, 3
META_PRIORITY, META_MARK, META_IIF, META_IIFNAME, META_OIFNAME, META_NFPROTO, META_L4PROTO = 2, 3, 4, 6, 7, 15, 16
CT_STATE, CT_DIRECTION, CT_STATUS, CT_MARK, CT_PROTO_SRC, CT_PROTO_DST, CT_LABELS, CT_PACKETS = (
    0,
    1,
    2,
    3,
    11,
    12,
    13,
    14,
)
CT_SRC_IP, CT_SRC_IP6 = 19, 21
ORIGINAL, REPLY = 0, 1
STATE_INVALID, STATE_ESTABLISHED, STATE_RELATED, STATE_NEW = 1, 2, 4, 8
RESET, ICMPX_ADMIN_PROHIBITED = 1, 3
OBJECT_COUNTER, OBJECT_TIMEOUT = 1, 7


def register(number: int) -> int:
    """The kernel's number of the 4-byte register *number*, 0 to 15."""
    assert 0 <= number < 16, number
    return 8 + number


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(parts))


def u32(kind: int, value: int) -> bytes:
    """An attribute with a number, as nf_tables wants them: big-endian."""
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def expression(name: str, *parts: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *parts))


def value_data(kind: int, data: bytes) -> bytes:
    """*data* as the value of attribute *kind* (NFTA_DATA_VALUE)."""
    return nested(kind, attribute(1, data))


def verdict_data(kind: int, code: int, chain: str = "") -> bytes:
    """A verdict as the value of attribute *kind*: ACCEPT, DROP, or JUMP and GOTO with their chain."""
    return nested(kind, nested(2, u32(1, code), text(2, chain) if chain else b""))


def verdict(code: int, chain: str = "") -> bytes:
    return expression("immediate", u32(1, 0), verdict_data(2, code, chain))


def immediate(into: int, data: bytes) -> bytes:
    """*data* (4 to 16 bytes) into the register *into* and those after it."""
    return expression("immediate", u32(1, register(into)), value_data(2, data))


def compare(at: int, data: bytes, op: int = EQ) -> bytes:
    return expression("cmp", u32(1, register(at)), u32(2, op), value_data(3, data))


def mask(at: int, data: bytes, into: int | None = None) -> bytes:
    """The register *at* and-ed with *data*."""
    return expression(
        "bitwise", u32(1, register(at)), u32(2, register(at if into is None else into)), u32(3, len(data)),
        value_data(4, data), value_data(5, bytes(len(data))),
    )  # fmt: skip


def masked(at: int, data: bytes, wanted: bytes, op: int = EQ) -> bytes:
    """Goes on where the register *at*, and-ed with *data*, is (or, NEQ, is not) *wanted*."""
    return mask(at, data) + compare(at, wanted, op)


def lookup(name: str, at: int, *, into: int | None = None, verdict_map: bool = False, absent: bool = False) -> bytes:
    """Looks the registers from *at* up in a set or map; the rule ends where nothing (or, *absent*, something) is."""
    parts = [text(1, name), u32(2, register(at))]
    if into is not None:
        parts.append(u32(3, register(into)))
    if verdict_map:
        parts.append(u32(3, 0))
    if absent:
        parts.append(u32(5, 1))
    return expression("lookup", *parts)


def payload(base: int, offset: int, size: int, into: int) -> bytes:
    """*size* bytes of the packet's header."""
    return expression("payload", u32(1, register(into)), u32(2, base), u32(3, offset), u32(4, size))


def meta(key: int, into: int) -> bytes:
    return expression("meta", u32(1, register(into)), u32(2, key))


def set_mark(value: int) -> bytes:
    """The packet's mark, by way of register 0."""
    return immediate(0, struct.pack("=I", value)) + expression("meta", u32(2, META_MARK), u32(3, register(0)))


def tracked(key: int, into: int, direction: int | None = None) -> bytes:
    """A field of the packet's tracked connection."""
    way = b"" if direction is None else attribute(3, bytes([direction]))
    return expression("ct", u32(1, register(into)), u32(2, key), way)


def add_labels(at: int) -> bytes:
    """The 16 bytes in four registers into the label of the tracked connection: bits are added, and none is taken."""
    return expression("ct", u32(2, CT_LABELS), u32(4, register(at)))


def set_connection_mark(value: int) -> bytes:
    """The mark of the tracked connection, by way of register 0."""
    return immediate(0, struct.pack("=I", value)) + expression("ct", u32(2, CT_MARK), u32(4, register(0)))


def state(bits: int) -> bytes:
    """Goes on where the connection is in one of the states *bits*; by way of register 15."""
    return tracked(CT_STATE, 15) + masked(15, struct.pack("=I", bits), bytes(4), NEQ)


def protocol(number: int, op: int = EQ) -> bytes:
    """Goes on where the transport protocol is *number*; by way of register 15."""
    return meta(META_L4PROTO, 15) + compare(15, bytes([number]), op)


def count(name: str) -> bytes:
    """The named counter *name* counts the packet."""
    return expression("objref", u32(1, OBJECT_COUNTER), text(2, name))


def time_out(name: str) -> bytes:
    """The connection that begins gets the named timeouts *name*."""
    return expression("objref", u32(1, OBJECT_TIMEOUT), text(2, name))


def clear_connection_mark(bits: int) -> bytes:
    """*bits* out of the tracked connection's mark, by way of register 0."""
    kept = mask(0, struct.pack("=I", ~bits & 0xFFFFFFFF))
    return tracked(CT_MARK, 0) + kept + expression("ct", u32(2, CT_MARK), u32(4, register(0)))


def log(group: int, prefix: str, snap_bytes: int) -> bytes:
    """A copy of the packet's first *snap_bytes*, under *prefix*, to the netlink log group *group*."""
    words = text(2, prefix) if prefix else b""
    return expression("log", attribute(1, struct.pack("!H", group)), words, u32(3, snap_bytes))


def reject_reset() -> bytes:
    return expression("reject", u32(1, RESET), attribute(2, b"\0"))


def reject_prohibited() -> bytes:
    """ICMP's, or ICMPv6's, "administratively prohibited"."""
    return expression("reject", u32(1, 2), attribute(2, bytes([ICMPX_ADMIN_PROHIBITED])))


def limit_over(count: int, burst: int, *, unit_s: int = 1) -> bytes:
    """A limit that goes on only beyond *count* packets in a second (or *unit_s*)."""
    return expression(
        "limit", attribute(1, struct.pack("!Q", count)), attribute(2, struct.pack("!Q", unit_s)), u32(3, burst),
        u32(4, 0), u32(5, 1),
    )  # fmt: skip


def limit(per_second: int, burst: int) -> bytes:
    """A limit that goes on up to *per_second* packets."""
    return expression(
        "limit", attribute(1, struct.pack("!Q", per_second)), attribute(2, struct.pack("!Q", 1)), u32(3, burst),
        u32(4, 0), u32(5, 0),
    )  # fmt: skip


def for_each(name: str, at: int, timeout_ms: int, inner: bytes) -> bytes:
    """*inner* (a limit) with a state of its own for each value of the register *at*, kept in the set *name*."""
    return expression(
        "dynset", text(1, name), u32(3, 1), u32(4, register(at)), attribute(6, struct.pack("!Q", timeout_ms)),
        nested(7, *_inside(inner)),
    )  # fmt: skip


def _inside(one: bytes) -> tuple[bytes, ...]:
    """The contents of an expression that was built as an element of a list."""
    return (one[4:],)


def queue(number: int) -> bytes:
    """To the packet queue *number*; nobody reads it: dropped."""
    return expression("queue", attribute(1, struct.pack("!H", number)), attribute(2, struct.pack("!H", 1)))


def queue_by_target(number: int) -> bytes:
    """The same by xtables' target NFQUEUE, revision 3, for kernels without nftables' own expression.

    nft(8) lists such a rule as ``queue`` and cannot load that listing again.
    """
    info = struct.pack("=HHHxx", number, 1, 0)
    return expression("target", text(1, "NFQUEUE"), u32(2, 3), attribute(3, info))
