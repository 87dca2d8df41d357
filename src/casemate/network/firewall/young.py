"""What is looked at in the first packets of a TCP connection alone, and by its mark: others pay nothing for it. Pure.

A connection that is let through begins *young*, by a bit of its mark. Its packets are let through by a rule of their
own, which looks for the first packet of a TLS handshake (for the name that it shows) and takes the bit away when it
has seen one, or when the connection is no more young. A table with a hook of its own for this took each packet of every
connection some 0.1 us (decision 0160).

TCP connections of pods that were closed are forgotten after seconds, not two minutes: their counters come with that,
and the kernel's table of connections holds fewer that are over. Not every kernel can.
"""

from __future__ import annotations

import struct

from casemate.host import nft_expressions as e
from casemate.host.nft_netlink import Batch
from casemate.network.flowlog import HELLO_COPY_BYTES

#: Of a connection's mark, between the verdict and the generation.
YOUNG = 4
CHAINS = ("young",)
CLOSED = "closed"
_TCP = 6
#: CTA_TIMEOUT_TCP_TIME_WAIT, CTA_TIMEOUT_TCP_CLOSE (linux/netfilter/nfnetlink_cttimeout.h)
_CLOSED_S = {7: 10, 8: 5}
#: The opener's own packets that are looked at: SYN, ACK, data (and some sent again). A power of two less one.
_LAST_PACKET = 7


def add_timeouts(batch: Batch) -> None:
    """The object that :func:`begins` names."""
    batch.new_timeouts(CLOSED, _TCP, _CLOSED_S)


def hello(log_group: int) -> bytes:
    """Copies the first packet of a TLS handshake to the log group, and goes on then.

    0x16: a handshake record; 0x03: the major version that every TLS has had (RFC 8446, 5.1).
    """
    return _by(e.ORIGINAL) + e.protocol(_TCP) + _record(log_group)


def _by(end: int) -> bytes:
    """Goes on where the packet is of the connection's opener, or of who answers."""
    return e.tracked(e.CT_DIRECTION, 0) + e.compare(0, bytes([end]))


def _record(log_group: int) -> bytes:
    begins_so = e.payload(e.INNER, 0, 2, 0) + e.compare(0, b"\x16\x03")
    return begins_so + e.log(log_group, "", HELLO_COPY_BYTES)


def chains(log_group: int) -> dict[str, list[bytes]]:
    """*young*: where packets of such connections, which are TCP's, are let through."""
    accept = e.verdict(e.ACCEPT)
    grown = e.clear_connection_mark(YOUNG) + accept
    return {"young": [_by(e.REPLY) + accept, is_old() + grown, _record(log_group) + grown, accept]}


def is_old() -> bytes:
    """Goes on where the opener has sent more than is looked at."""
    few = struct.pack("=Q", ~_LAST_PACKET & 0xFFFFFFFF_FFFFFFFF)
    return e.tracked(e.CT_PACKETS, 0, e.ORIGINAL) + e.masked(0, few, bytes(8), e.NEQ)


def begins(*, brief: bool) -> bytes:
    """Goes on for TCP alone, whose connections are forgotten soon (*brief*) when they are over."""
    return e.protocol(_TCP) + (e.time_out(CLOSED) if brief else b"")
