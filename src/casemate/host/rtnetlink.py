"""Links, addresses, routes and neighbours over a small rtnetlink codec of our own.

Why our own: `pyroute2` costs 24 MiB and 130 ms at import, `ip` 2 ms for each change (decision 0021). Only the
messages that pods need are here. Each request carries NLM_F_ACK and is answered; an answer that is cut short
or unknown is an error. Sources: rtnetlink(7), linux/if_link.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from casemate.spec.errors import CasemateError

_NETLINK_EXT_ACK, _SOL_NETLINK = 11, 270
_REQUEST, _ACK, _ROOT_MATCH, _CREATE, _EXCL, _REPLACE = 1, 4, 0x300, 0x400, 0x200, 0x100
_DUMP_INTERRUPTED = 0x10
_ERROR, _DONE = 2, 3
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _NEWROUTE, _GETROUTE, _NEWNEIGH = 20, 24, 26, 28
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO = 1, 3, 4, 18
_IFLA_NET_NS_FD = 28
_NESTED = 0x8000
_IFF_UP = 1
_TIMEOUT_S = 5.0
_TRIES = 20
_RECEIVE_BYTES = 1 << 18
#: A dump of all links of a host with 10,000 pods takes some 15 MB; beyond this something is wrong.
_MAX_DUMP_BYTES = 256 << 20


class NetlinkFailed(CasemateError):
    code = "host.netlink_failed"
    title = "The kernel refused a change of the network"
    remedy = "`casemate system doctor` lists what of ours is in the kernel; `ip -d link` shows the rest."

    def __init__(self, what: str, number: int, words: str = "") -> None:
        self.errno = number
        name = errno.errorcode.get(number, str(number))
        super().__init__(f"{what}: {name}{f' ({words})' if words else ''}", errno=name)


@dataclass(frozen=True, slots=True)
class Link:
    """An interface: its index, name, MTU in bytes, hardware address and flags."""

    index: int
    name: str
    mtu_bytes: int
    mac: str
    up: bool


def attribute(kind: int, payload: bytes) -> bytes:
    """One netlink attribute, padded to 4 bytes."""
    return struct.pack("=HH", len(payload) + 4, kind) + payload + b"\0" * (-len(payload) % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in *data*; raises ``ValueError`` for a length that cannot be."""
    offset = 0
    while offset + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, offset)
        if size < 4 or offset + size > len(data):
            raise ValueError(f"netlink attribute of {size} bytes at {offset} of {len(data)}")
        yield kind & 0x3FFF, data[offset + 4 : offset + size]
        offset += (size + 3) & ~3


def mac_bytes(text: str) -> bytes:
    """The 6 bytes of ``aa:bb:cc:dd:ee:ff``."""
    data = bytes.fromhex(text.replace(":", ""))
    if len(data) != 6:
        raise ValueError(f"{text!r} is not a hardware address")
    return data


class RouteSocket:
    """A NETLINK_ROUTE socket of the network namespace in which it was made. Not for two threads at once."""

    protocol = 0  # NETLINK_ROUTE

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, self.protocol)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.bind((0, 0))
        self._sequence = 0
        self._interrupted = False

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_veth(
        self, name: str, mac: str, *, peer_name: str, peer_mac: str, mtu_bytes: int, peer_netns_fd: int
    ) -> None:
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
        self.request(_NEWLINK, _CREATE | _EXCL, body, f"adding veth {name}")

    def set_address(self, index: int, mac: str, mtu_bytes: int) -> None:
        """Give the interface *index* a hardware address and an MTU; it must be down."""
        body = struct.pack("=BBHiII", 0, 0, 0, index, 0, 0) + attribute(_IFLA_ADDRESS, mac_bytes(mac))
        body += attribute(_IFLA_MTU, struct.pack("=I", mtu_bytes))
        self.request(_NEWLINK, 0, body, f"hardware address of interface {index}")

    def rename(self, index: int, name: str) -> None:
        """Call the interface *index* *name*; it must be down."""
        body = struct.pack("=BBHiII", 0, 0, 0, index, 0, 0) + attribute(_IFLA_IFNAME, name.encode() + b"\0")
        self.request(_NEWLINK, 0, body, f"renaming interface {index} to {name}")

    def move(self, index: int, netns_fd: int, name: str) -> None:
        """Move the interface *index* into the network namespace *netns_fd*, where it is called *name* and is down."""
        body = struct.pack("=BBHiII", 0, 0, 0, index, 0, 0) + attribute(_IFLA_NET_NS_FD, struct.pack("=I", netns_fd))
        body += attribute(_IFLA_IFNAME, name.encode() + b"\0")
        self.request(_NEWLINK, 0, body, f"moving interface {index} to another namespace as {name}")

    def set_up(self, index: int) -> None:
        """Bring the interface *index* up."""
        self.request(_NEWLINK, 0, struct.pack("=BBHiII", 0, 0, 0, index, _IFF_UP, _IFF_UP), f"interface {index} up")

    def delete_link(self, name: str) -> bool:
        """Delete the interface *name* (and its peer); False when there is none."""
        body = struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0) + attribute(_IFLA_IFNAME, name.encode() + b"\0")
        try:
            self.request(_DELLINK, 0, body, f"deleting {name}")
        except NetlinkFailed as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    def link(self, name: str) -> Link | None:
        """The interface *name*, or None."""
        body = struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0) + attribute(_IFLA_IFNAME, name.encode() + b"\0")
        try:
            answers = self.request(_GETLINK, 0, body, f"reading {name}")
        except NetlinkFailed as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _link(answers[0]) if answers else None

    def links(self, prefix: str = "") -> list[Link]:
        """The interfaces whose names begin with *prefix*."""
        body = struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0)
        answers = self.request(_GETLINK, _ROOT_MATCH, body, "listing interfaces")
        return [link for link in map(_link, answers) if link.name.startswith(prefix)]

    def add_address(self, index: int, address: str, prefix_length: int = 32, *, link_scope: bool = False) -> None:
        """Give the interface *index* an address; repeated calls change nothing."""
        packed = ipaddress.IPv4Address(address).packed
        body = struct.pack("=BBBBi", socket.AF_INET, prefix_length, 0, 253 if link_scope else 0, index)
        body += attribute(2, packed) + attribute(1, packed)
        self.request(_NEWADDR, _CREATE | _REPLACE, body, f"address {address} on interface {index}")

    def add_route(self, destination: str, index: int, *, gateway: str | None = None, source: str | None = None) -> None:
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
        self.request(_NEWROUTE, _CREATE | _REPLACE, body, f"route to {destination} through interface {index}")

    def add_neighbour(self, index: int, address: str, mac: str) -> None:
        """A permanent neighbour entry: nobody asks by ARP, and nobody can answer for it."""
        body = struct.pack("=BBHiHBB", socket.AF_INET, 0, 0, index, 0x80, 0, 0)
        body += attribute(1, ipaddress.IPv4Address(address).packed) + attribute(2, mac_bytes(mac))
        self.request(_NEWNEIGH, _CREATE | _REPLACE, body, f"neighbour {address} on interface {index}")

    def default_route_index(self) -> int | None:
        """The interface of the IPv4 default route with the lowest metric in the main table, or None."""
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
        best: tuple[int, int] | None = None
        for answer in self.request(_GETROUTE, _ROOT_MATCH, body, "listing routes"):
            _family, destination_bits, _, _, table, _, _, kind = struct.unpack_from("=8B", answer)
            if destination_bits or table != 254 or kind != 1:
                continue
            found = dict(attributes(answer[12:]))
            index = struct.unpack("=i", found[4])[0] if 4 in found else 0
            metric = struct.unpack("=I", found[6])[0] if 6 in found else 0
            if index and (best is None or metric < best[0]):
                best = metric, index
        return None if best is None else best[1]

    def default_route_link(self) -> Link | None:
        """The interface that the IPv4 default route uses, or None where there is no default route."""
        index = self.default_route_index()
        if not index:
            return None
        try:
            answers = self.request(_GETLINK, 0, struct.pack("=BBHiII", 0, 0, 0, index, 0, 0), "reading an interface")
        except NetlinkFailed as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _link(answers[0]) if answers else None

    def request(self, kind: int, flags: int, body: bytes, what: str) -> list[bytes]:
        """Send one message; the bodies of its answers. Raises :class:`NetlinkFailed`.

        A list that others changed while it was read is read again: on a host where pods come and go that is often.
        """
        for _ in range(_TRIES):
            answers = self._request(kind, flags, body, what)
            if answers is not None:
                return answers
        raise NetlinkFailed(what, errno.EAGAIN, f"the list changed {_TRIES} times while it was read")

    def _request(self, kind: int, flags: int, body: bytes, what: str) -> list[bytes] | None:
        """The same; None where a list changed while it was read."""
        dump = flags & _ROOT_MATCH == _ROOT_MATCH
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        flags |= _REQUEST | (0 if dump else _ACK)
        header = struct.pack("=IHHII", 16 + len(body), kind, flags, self._sequence, 0)
        answers: list[bytes] = []
        left = _MAX_DUMP_BYTES
        self._interrupted = False
        try:
            self._socket.send(header + body)
            while True:
                data = self._socket.recv(_RECEIVE_BYTES)
                left -= len(data)
                if left < 0:
                    raise NetlinkFailed(what, errno.EMSGSIZE)
                # To the end in any case: the kernel sends no second list while the first goes on.
                if self._take(data, answers, what):
                    break
        except TimeoutError as error:
            raise NetlinkFailed(what, errno.ETIMEDOUT) from error
        except OSError as error:
            raise NetlinkFailed(what, error.errno or errno.EIO) from error
        return None if self._interrupted else answers

    def _take(self, data: bytes, answers: list[bytes], what: str) -> bool:
        """Read one datagram; True when it ended the answer."""
        offset = 0
        while offset + 16 <= len(data):
            size, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data, offset)
            if size < 16 or offset + size > len(data):
                raise NetlinkFailed(what, errno.EBADMSG)
            body = data[offset + 16 : offset + size]
            offset += (size + 3) & ~3
            if sequence != self._sequence:
                continue  # the late answer to a request that timed out
            if flags & _DUMP_INTERRUPTED:
                self._interrupted = True
            if kind == _DONE:
                return True
            if kind == _ERROR:
                number = -struct.unpack_from("=i", body)[0]
                if number:
                    raise NetlinkFailed(what, number, _extended(body, flags))
                return True
            answers.append(body)
        return False


def _extended(body: bytes, flags: int) -> str:
    """The kernel's own words in an error (NLMSGERR_ATTR_MSG), if there are any."""
    if not flags & 0x200:  # NLM_F_ACK_TLVS
        return ""
    skip = 4 + (16 if flags & 0x100 else struct.unpack_from("=I", body, 4)[0])
    try:
        return dict(attributes(body[(skip + 3) & ~3 :])).get(1, b"").rstrip(b"\0").decode("utf-8", "replace")
    except ValueError:
        return ""


def _link(body: bytes) -> Link:
    _, _, _, index, flags, _ = struct.unpack_from("=BBHiII", body)
    found = dict(attributes(body[16:]))
    return Link(
        index,
        found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace"),
        struct.unpack("=I", found.get(_IFLA_MTU, b"\0\0\0\0"))[0],
        found.get(_IFLA_ADDRESS, b"").hex(":"),
        bool(flags & _IFF_UP),
    )


def open_netns(path: str | os.PathLike[str]) -> int:
    """A descriptor of the network namespace pinned at *path*; the caller closes it."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
