"""Changes of links, addresses, routes and neighbours as rtnetlink's messages.

:class:`~casemate.host.rtnetlink.RouteSocket` sends them, several at once. Sources: rtnetlink(7), linux/if_link.h,
linux/rtnetlink.h, linux/ip.h.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from casemate.host.netlink import attribute

_CREATE, _EXCL, _REPLACE = 0x400, 0x200, 0x100
_NEWLINK, _GETLINK, _NEWADDR, _NEWROUTE, _NEWNEIGH = 16, 18, 20, 24, 28
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_AF_SPEC, _IFLA_NET_NS_FD = 1, 3, 4, 18, 26, 28
_IFLA_INET_CONF = 1
_NESTED = 0x8000
_IFF_UP = 1
#: What an interface does with IPv4: names below ``net/ipv4/conf`` and their numbers (IPV4_DEVCONF_*).
INET_CONF = {
    "forwarding": 1,
    "accept_redirects": 4,
    "send_redirects": 6,
    "rp_filter": 8,
    "arp_ignore": 19,
    "route_localnet": 26,
}


@dataclass(frozen=True, slots=True)
class Message:
    """One request, answered with an acknowledgement; *what* it does, for the error."""

    kind: int
    flags: int
    body: bytes
    what: str


def mac_bytes(text: str) -> bytes:
    """The 6 bytes of ``aa:bb:cc:dd:ee:ff``."""
    data = bytes.fromhex(text.replace(":", ""))
    if len(data) != 6:
        raise ValueError(f"{text!r} is not a hardware address")
    return data


def veth(name: str, mac: str, *, peer_name: str, peer_mac: str, mtu_bytes: int, peer_netns_fd: int) -> Message:
    """A veth pair: *name* here and *peer_name* in the namespace of *peer_netns_fd*, both down."""
    mtu = attribute(_IFLA_MTU, struct.pack("=I", mtu_bytes))
    peer = (
        struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0)
        + attribute(_IFLA_IFNAME, peer_name.encode() + b"\0")
        + attribute(_IFLA_ADDRESS, mac_bytes(peer_mac))
        + attribute(_IFLA_NET_NS_FD, struct.pack("=I", peer_netns_fd))
        + mtu
    )
    info = attribute(1, b"veth\0") + attribute(2 | _NESTED, attribute(1 | _NESTED, peer))
    body = (
        struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0)
        + attribute(_IFLA_IFNAME, name.encode() + b"\0")
        + attribute(_IFLA_ADDRESS, mac_bytes(mac))
        + mtu
        + attribute(_IFLA_LINKINFO | _NESTED, info)
    )
    return Message(_NEWLINK, _CREATE | _EXCL, body, f"adding veth {name}")


def get(name: str) -> Message:
    """Ask for the interface *name*."""
    body = struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0) + attribute(_IFLA_IFNAME, name.encode() + b"\0")
    return Message(_GETLINK, 0, body, f"reading {name}")


def inet(index: int, values: Mapping[str, int]) -> Message:
    """What the interface *index* does with IPv4, by names of :data:`INET_CONF`: all its sysctls by one message."""
    conf = b"".join(attribute(INET_CONF[name], struct.pack("=I", value)) for name, value in values.items())
    family = attribute(socket.AF_INET | _NESTED, attribute(_IFLA_INET_CONF | _NESTED, conf))
    body = struct.pack("=BBHiII", 0, 0, 0, index, 0, 0) + attribute(_IFLA_AF_SPEC | _NESTED, family)
    return Message(_NEWLINK, 0, body, f"{', '.join(values)} of interface {index}")


def up(index: int) -> Message:
    """Bring the interface *index* up."""
    return Message(_NEWLINK, 0, struct.pack("=BBHiII", 0, 0, 0, index, _IFF_UP, _IFF_UP), f"interface {index} up")


def address(index: int, text: str, prefix_length: int = 32, *, link_scope: bool = False) -> Message:
    """Give the interface *index* an address; repeated ones change nothing."""
    packed = ipaddress.IPv4Address(text).packed
    body = struct.pack("=BBBBi", socket.AF_INET, prefix_length, 0, 253 if link_scope else 0, index)
    body += attribute(2, packed) + attribute(1, packed)
    return Message(_NEWADDR, _CREATE | _REPLACE, body, f"address {text} on interface {index}")


def route(destination: str, index: int, *, gateway: str | None = None, source: str | None = None) -> Message:
    """A route to *destination* (``a.b.c.d/n``) through *index*; a *gateway* is taken to be on-link."""
    network = ipaddress.IPv4Network(destination)
    scope = 0 if gateway else 253  # universe, link
    flags = 4 if gateway else 0  # RTNH_F_ONLINK
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, network.prefixlen, 0, 0, 254, 4, scope, 1, flags)
    if network.prefixlen:
        body += attribute(1, network.network_address.packed)
    body += attribute(4, struct.pack("=i", index))
    if gateway:
        body += attribute(5, ipaddress.IPv4Address(gateway).packed)
    if source:
        body += attribute(7, ipaddress.IPv4Address(source).packed)
    return Message(_NEWROUTE, _CREATE | _REPLACE, body, f"route to {destination} through interface {index}")


def neighbour(index: int, text: str, mac: str) -> Message:
    """A permanent neighbour entry: nobody asks by ARP, and nobody can answer for it."""
    body = struct.pack("=BBHiHBB", socket.AF_INET, 0, 0, index, 0x80, 0, 0)
    body += attribute(1, ipaddress.IPv4Address(text).packed) + attribute(2, mac_bytes(mac))
    return Message(_NEWNEIGH, _CREATE | _REPLACE, body, f"neighbour {text} on interface {index}")
