"""Spares a pod's plain packets most of the guard: a BPF program at the interface's ingress, which knows its address.

The program asks what the first rule of the guard asks (:mod:`casemate.network.firewall.guard`), and says yes by the
packet's priority; the guard lets on what bears it. It drops nothing and counts nothing: all else goes to the guard as
it came. Where the program is not there, no packet is let through that would not be, and every one is looked at.

Nobody else can have a packet come with this priority: Linux makes it 0 where a packet crosses to the other end of a
pair (``____dev_forward_skb``), and what a machine writes to its tap is a new packet. Nobody meets it later: what is
forwarded gets the priority of its type of service (``ip_forward``), and on arrival it means nothing. Pure.
"""

from __future__ import annotations

import socket
import struct
import sys

from casemate.host import bpf
from casemate.host import nft_expressions as e

#: As the marks of :mod:`casemate.network.firewall.rules`: an exact value, no bit.
SPARED = 0x0CA5E004
#: What the names of our programs begin with, of every version; and this version's, before the digits of an address. It
#: gets another number when the program is changed.
OURS = "casem"
PREFIX = f"{OURS}1_"
#: At the place of one that was taken away: says nothing of any packet.
NOTHING = f"{PREFIX}none"
_IPV4, _ETHERNET, _HEADER = 0x0800, 14, 20
_PACKET, _DATA, _END, _VALUE = 1, 2, 3, 4


def name(address: bytes) -> str:
    """What the program of *address* (4 bytes) is called."""
    return PREFIX + address.hex()


def program(address: bytes) -> bytes:
    """The instructions for the interface of the pod with *address* (4 bytes).

    Said yes to is what is for the host's own hardware address, has no VLAN tag, and is IPv4 with no options, of this
    address, to no multicast (224.0.0.0/3), and no part of a packet. A header that does not lie in the packet's first
    piece is not looked for: other pieces may be memory that the pod can still write to.
    """
    source = int.from_bytes(address, sys.byteorder)
    at = _ETHERNET
    return bpf.program(
        (
            bpf.load(_VALUE, _PACKET, bpf.PROTOCOL, 4),
            bpf.leave_if(_VALUE, "!=", socket.htons(_IPV4)),
            bpf.load(_VALUE, _PACKET, bpf.VLAN_PRESENT, 4),
            bpf.leave_if(_VALUE, "!=", 0),
            bpf.load(_VALUE, _PACKET, bpf.PACKET_TYPE, 4),
            bpf.leave_if(_VALUE, "!=", 0),  # PACKET_HOST
            bpf.load(_DATA, _PACKET, bpf.DATA, 4),
            bpf.load(_END, _PACKET, bpf.DATA_END, 4),
            *bpf.leave_if_short(_DATA, _END, at + _HEADER, _VALUE),
            bpf.load(_VALUE, _DATA, at, 1),
            bpf.leave_if(_VALUE, "!=", 0x45),
            bpf.load(_VALUE, _DATA, at + 6, 2),
            bpf.leave_if(_VALUE, "&", socket.htons(0x3FFF)),
            bpf.load(_VALUE, _DATA, at + 12, 4),
            bpf.leave_if(_VALUE, "!=", source),
            bpf.load(_VALUE, _DATA, at + 16, 1),
            bpf.leave_if(_VALUE, ">=", 0xE0),
            bpf.put(_VALUE, SPARED),
            bpf.store(_PACKET, bpf.PRIORITY, _VALUE),
        ),
        bpf.NEXT,
    )


def nothing() -> bytes:
    """The instructions of :data:`NOTHING`."""
    return bpf.program((), bpf.NEXT)


def rule() -> bytes:
    """Lets on what a program said yes to."""
    return e.meta(e.META_PRIORITY, 0) + e.compare(0, struct.pack("=I", SPARED)) + e.verdict(e.ACCEPT)
