"""A routing rule by a packet's mark, and a table in which everything is this host's own: what tproxy needs.

Source: linux/fib_rules.h, linux/rtnetlink.h, Documentation/networking/tproxy.rst.
"""

from __future__ import annotations

import errno
import socket
import struct

from casemate.host.netlink import attribute, attributes
from casemate.host.rtnetlink import NetlinkFailed, RouteSocket

_NEWRULE, _DELRULE, _GETRULE, _NEWROUTE, _DELROUTE = 32, 33, 34, 24, 25
_CREATE, _EXCL, _REPLACE, _ROOT_MATCH = 0x400, 0x200, 0x100, 0x300
_FRA_IIFNAME, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 3, 6, 10, 15, 16
_TO_TABLE = 1
_MAIN = 254
_RTA_OIF, _RTA_TABLE = 4, 15
_LOCAL, _SCOPE_HOST, _BOOT = 2, 254, 3


def _rule(mark: int, mask: int, table: int, priority: int, interface: str = "") -> bytes:
    header = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, _TO_TABLE, 0)
    if interface:
        header += attribute(_FRA_IIFNAME, interface.encode() + b"\0")
    for kind, number in ((_FRA_PRIORITY, priority), (_FRA_FWMARK, mark), (_FRA_FWMASK, mask), (_FRA_TABLE, table)):
        header += attribute(kind, struct.pack("=I", number))
    return header


def _route(sock: RouteSocket, table: int) -> bytes:
    loopback = sock.link("lo")
    assert loopback is not None
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, _BOOT, _SCOPE_HOST, _LOCAL, 0)
    body += attribute(_RTA_TABLE, struct.pack("=I", table))
    return body + attribute(_RTA_OIF, struct.pack("=i", loopback.index))


def rules(sock: RouteSocket) -> set[tuple[int, int, int]]:
    """(mark, mask, table) of every IPv4 rule that looks at marks."""
    found: set[tuple[int, int, int]] = set()
    header = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
    for answer in sock.request(_GETRULE, _ROOT_MATCH, header, "listing routing rules"):
        told = dict(attributes(answer[12:]))
        if _FRA_FWMARK in told and _FRA_TABLE in told:
            mask = told.get(_FRA_FWMASK, b"\xff\xff\xff\xff")
            numbers = struct.unpack("=III", told[_FRA_FWMARK] + mask + told[_FRA_TABLE])
            found.add((numbers[0], numbers[1], numbers[2]))
    return found


def ensure_local(mark: int, mask: int, table: int, priority: int) -> bool:
    """Packets with *mark* under *mask* are this host's own, whatever their destination; whether that had to be made.

    A rule before it (*priority* - 1) is for the question where a source would be reached, which the kernel asks with
    the mark too where ``src_valid_mark`` is set (by wg-quick, for all interfaces): it comes from the loopback, and is
    answered by the main table. Raises :class:`NetlinkFailed`.
    """
    with RouteSocket() as sock:
        if {(mark, mask, table), (mark, mask, _MAIN)} <= rules(sock):
            return False
        sock.request(_NEWROUTE, _CREATE | _REPLACE, _route(sock, table), f"routing table {table:#x}")
        for body in _rules(mark, mask, table, priority):
            try:
                sock.request(_NEWRULE, _CREATE | _EXCL, body, f"routing rule for {mark:#x}")
            except NetlinkFailed as error:
                if error.errno != errno.EEXIST:
                    raise
        return True


def _rules(mark: int, mask: int, table: int, priority: int) -> tuple[bytes, bytes]:
    return _rule(mark, mask, _MAIN, priority - 1, "lo"), _rule(mark, mask, table, priority)


def remove_local(mark: int, mask: int, table: int, priority: int) -> bool:
    """Undo :func:`ensure_local`; False where nothing was there."""
    gone = False
    with RouteSocket() as sock:
        for kind, body, what in (
            *((_DELRULE, rule, "rule") for rule in _rules(mark, mask, table, priority)),
            (_DELROUTE, _route(sock, table), "table"),
        ):  # fmt: skip
            try:
                sock.request(kind, 0, body, f"removing routing {what} {table:#x}")
            except NetlinkFailed as error:
                if error.errno not in (errno.ENOENT, errno.ESRCH):
                    raise
            else:
                gone = True
    return gone
