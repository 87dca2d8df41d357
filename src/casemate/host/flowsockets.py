"""Sockets on which the kernel tells of connections: conntrack's events, and copies of packets (NFLOG).

Opened with privilege, given to a process without: what comes out of them is parsed there. A socket of conntrack's
events carries a classic BPF program, locked, that keeps the host's own connections from whoever holds it: only those
with an end among the pods come through. Netlink checks the sender's own rights again for each command, so the holder
can read and change nothing.

Sources: linux/netfilter/nfnetlink_conntrack.h, nfnetlink_log.h, linux/filter.h (SKF_AD_NLATTR), netlink(7).
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from casemate.host.netlink import attribute
from casemate.host.rtnetlink import NetlinkFailed

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GROUP_NEW, _GROUP_DESTROY = 1, 3
_SO_RCVBUFFORCE, _SO_ATTACH_FILTER, _SO_LOCK_FILTER = 33, 26, 44
#: About 40,000 events of 768 bytes (the kernel counts a message with its bookkeeping): 0.8 s at 50,000 a second.
RECEIVE_BYTES = 32 << 20

# struct sock_filter: code, jump if true, jump if false, constant.
_LD_IMM, _LDX_IMM, _LD_WORD, _LD_IND, _TAX, _AND, _JEQ, _RET = 0x00, 0x01, 0x20, 0x40, 0x07, 0x54, 0x15, 0x06
_NLATTR, _NLATTR_NEST = 0xFFFFF000 + 12, 0xFFFFF000 + 16
_ALL = 0xFFFFFFFF
#: struct nlmsghdr and struct nfgenmsg.
_HEADERS_BYTES = 20
_TUPLE_ORIGINAL, _TUPLE_REPLY, _TUPLE_IP = 1, 2, 1
_IP_V4_SOURCE, _IP_V6_SOURCE = 1, 3

_LOG_CONFIG = 4 << 8 | 1
_REQUEST, _ACK, _ERROR = 1, 4, 2
_BIND, _COPY_PACKET = 1, 2
_FLAG_SEQUENCE = 1
#: The kernel gathers packets of a group into one message: at most so many bytes, packets, hundredths of a second.
_GATHER_BYTES, _GATHER_PACKETS, _GATHER_HUNDREDTHS = 128 << 10, 64, 1
_TIMEOUT_S = 2.0

_SYSCTLS = ("nf_conntrack_acct", "nf_conntrack_timestamp")


def switch_counting_on() -> list[str]:
    """Let conntrack count bytes and note times of the connections to come; what could not be switched, by name."""
    refused = []
    for name in _SYSCTLS:
        path = Path("/proc/sys/net/netfilter") / name
        try:
            if path.read_bytes().strip() == b"0":
                path.write_bytes(b"1")
        except OSError:
            refused.append(name)
    return refused


def connection_events(pools: Sequence[str]) -> socket.socket:
    """A socket that tells of new and ended connections with an end in one of *pools* (networks of pods)."""
    netlink = _netlink()
    try:
        attach_filter(netlink, filter_program([ipaddress.ip_network(pool) for pool in pools]))
        for group in (_GROUP_NEW, _GROUP_DESTROY):
            netlink.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except BaseException:
        netlink.close()
        raise
    return netlink


def packet_log(group: int, copy_bytes: int) -> socket.socket:
    """A socket that receives what rules log to *group*, the first *copy_bytes* of each packet, numbered.

    Raises :class:`NetlinkFailed` with ``EPERM`` (or ``EBUSY``) while another socket holds the group.
    """
    netlink = _netlink()
    try:
        netlink.settimeout(_TIMEOUT_S)
        header = struct.pack("!BBH", 0, 0, group)
        _ask(netlink, header + attribute(1, bytes([_BIND])), group)
        body = header
        body += attribute(2, struct.pack("!IBx", copy_bytes, _COPY_PACKET))
        body += attribute(3, struct.pack("!I", _GATHER_BYTES))
        body += attribute(4, struct.pack("!I", _GATHER_HUNDREDTHS))
        body += attribute(5, struct.pack("!I", _GATHER_PACKETS))
        body += attribute(6, struct.pack("!H", _FLAG_SEQUENCE))
        _ask(netlink, body, group)
        netlink.settimeout(None)
    except BaseException:
        netlink.close()
        raise
    return netlink


def _netlink() -> socket.socket:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
    netlink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BYTES)
    netlink.bind((0, 0))
    return netlink


def _ask(netlink: socket.socket, body: bytes, group: int) -> None:
    netlink.send(struct.pack("=IHHII", 16 + len(body), _LOG_CONFIG, _REQUEST | _ACK, group, 0) + body)
    while True:
        # A packet of the group may come before the answer does; it is lost to a log that only begins.
        data = netlink.recv(1 << 18)
        if struct.unpack_from("=H", data, 4)[0] == _ERROR:
            break
    number = -struct.unpack_from("=i", data, 16)[0]
    if number:
        raise NetlinkFailed(f"packet log group {group}", number, errno.errorcode.get(number, ""))


def filter_program(pools: Sequence[Network]) -> list[tuple[int, int, int, int]]:
    """A program that lets an event through when the source of either direction lies in one of *pools*.

    The source of the answers is where a connection really went, also behind a published port.
    """
    out: list[tuple[int, int, int, int]] = []
    for direction in (_TUPLE_ORIGINAL, _TUPLE_REPLY):
        for pool in pools:
            source = _IP_V4_SOURCE if pool.version == 4 else _IP_V6_SOURCE
            compare: list[tuple[int, int, int, int]] = []
            for index, (mask, value) in enumerate(_words(pool)):
                compare += [(_LD_IND, 0, 0, 4 + 4 * index), (_AND, 0, 0, mask), (_JEQ, 0, 0, value)]
            compare.append((_RET, 0, 0, _ALL))
            block = [
                (_LD_IMM, 0, 0, _HEADERS_BYTES), (_LDX_IMM, 0, 0, direction), (_LD_WORD, 0, 0, _NLATTR),
                (_JEQ, 0, 0, 0),
                (_LDX_IMM, 0, 0, _TUPLE_IP), (_LD_WORD, 0, 0, _NLATTR_NEST), (_JEQ, 0, 0, 0),
                (_LDX_IMM, 0, 0, source), (_LD_WORD, 0, 0, _NLATTR_NEST), (_JEQ, 0, 0, 0), (_TAX, 0, 0, 0),
                *compare,
            ]  # fmt: skip
            # Each test that fails leads behind the block: equal to 0 (no such attribute), or not the pool's.
            for at, (code, _, _, constant) in enumerate(block):
                if code == _JEQ:
                    behind = len(block) - at - 1
                    is_lookup = at < 10
                    block[at] = (code, behind, 0, constant) if is_lookup else (code, 0, behind, constant)
            out += block
    return [*out, (_RET, 0, 0, 0)]


def _words(pool: Network) -> list[tuple[int, int]]:
    """The masks and values of the address words that *pool* fixes."""
    mask, value = pool.netmask.packed, pool.network_address.packed
    words = []
    for at in range(0, len(mask), 4):
        one = int.from_bytes(mask[at : at + 4], "big")
        if one:
            words.append((one, int.from_bytes(value[at : at + 4], "big")))
    return words


def attach_filter(target: socket.socket, program: Sequence[tuple[int, int, int, int]]) -> None:
    """Attach a classic BPF *program* for good: whoever gets the socket cannot take it off."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: length, and the address of the instructions.
    target.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    )
    target.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)
