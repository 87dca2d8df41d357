"""Two interfaces joined by traffic control: what comes in at one goes out at the other, before any protocol sees it.

The way of Kata Containers ("tcfilter"): no bridge, so that hardware and network addresses may be the same on both
sides, and both interfaces stay where the engine's own rules know them. Sources: tc-mirred(8), tc-u32(8),
linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h.
"""

from __future__ import annotations

import errno
import struct

from casemate.host.netlink import attribute
from casemate.host.rtnetlink import NetlinkFailed, RouteSocket

_NEWQDISC, _NEWTFILTER = 36, 44
_CREATE, _EXCL = 0x400, 0x200
_NESTED = 0x8000
_INGRESS_HANDLE, _INGRESS_PARENT = 0xFFFF_0000, 0xFFFF_FFF1
_KIND, _OPTIONS = 1, 2
_U32_SELECTOR, _U32_ACTION = 5, 7
_MIRRED_PARAMETERS = 2
_STOLEN, _EGRESS_REDIRECT, _TERMINAL = 4, 1, 1
_ETH_P_ALL = 0x0003
_PRIORITY = 1


def join(routes: RouteSocket, one: int, other: int) -> None:
    """Redirect everything between the interfaces with the indexes *one* and *other*; may be repeated."""
    for source, target in ((one, other), (other, one)):
        if _add_ingress(routes, source):
            _add_redirect(routes, source, target)


def _message(index: int, handle: int, parent: int, information: int) -> bytes:
    return struct.pack("=BBHiIII", 0, 0, 0, index, handle, parent, information)


def _add_ingress(routes: RouteSocket, index: int) -> bool:
    """The queueing discipline that filters hang on; False when there was one."""
    body = _message(index, _INGRESS_HANDLE, _INGRESS_PARENT, 0) + attribute(_KIND, b"ingress\0")
    try:
        routes.request(_NEWQDISC, _CREATE | _EXCL, body, f"ingress of interface {index}")
    except NetlinkFailed as error:
        if error.errno == errno.EEXIST:
            return False
        raise
    return True


def _add_redirect(routes: RouteSocket, index: int, target: int) -> None:
    # One key with an empty mask: everything. struct tc_u32_sel and one struct tc_u32_key.
    selector = struct.pack("=BBBxHHhhI", _TERMINAL, 0, 1, 0, 0, 0, 0, 0) + struct.pack("=IIii", 0, 0, 0, 0)
    # struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex.
    mirred = struct.pack("=IIiiiiI", 0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, target)
    action = attribute(_KIND, b"mirred\0")
    action += attribute(_OPTIONS | _NESTED, attribute(_MIRRED_PARAMETERS, mirred))
    options = attribute(_U32_SELECTOR, selector)
    options += attribute(_U32_ACTION | _NESTED, attribute(1 | _NESTED, action))
    information = _PRIORITY << 16 | int.from_bytes(_ETH_P_ALL.to_bytes(2, "big"), "little")
    body = _message(index, 0, _INGRESS_HANDLE, information) + attribute(_KIND, b"u32\0")
    body += attribute(_OPTIONS | _NESTED, options)
    routes.request(_NEWTFILTER, _CREATE | _EXCL, body, f"redirect from interface {index} to {target}")
