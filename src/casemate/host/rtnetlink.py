"""Links, addresses, routes and neighbours over a small rtnetlink codec of our own.

Why our own: `pyroute2` costs 24 MiB and 130 ms at import, `ip` 2 ms for each change (decision 0021). Only the messages
that pods need are there (:mod:`casemate.host.route_messages`). Each request carries NLM_F_ACK and is answered; an
answer that is cut short or unknown is an error. Sources: rtnetlink(7), linux/if_link.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from casemate.host import route_messages as messages
from casemate.host.netlink import attribute, attributes
from casemate.host.route_messages import Message, mac_bytes
from casemate.spec.errors import CasemateError

_NETLINK_EXT_ACK, _SOL_NETLINK = 11, 270
_REQUEST, _ACK, _ROOT_MATCH = 1, 4, 0x300
_DUMP_INTERRUPTED = 0x10
_ERROR, _DONE = 2, 3
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_GETROUTE = 26
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_NET_NS_FD = 1, 3, 4, 28
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
        """See :func:`casemate.host.route_messages.veth`."""
        ends = {"peer_name": peer_name, "peer_mac": peer_mac}
        self.run(messages.veth(name, mac, **ends, mtu_bytes=mtu_bytes, peer_netns_fd=peer_netns_fd))

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
        self.run(messages.up(index))

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
        try:
            (answers,) = self.run(messages.get(name))
        except NetlinkFailed as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _link(answers[0]) if answers else None

    def links(self, prefix: str = "") -> list[Link]:
        """The interfaces whose names begin with *prefix*."""
        body = struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0)
        answers = self.request(_GETLINK, _ROOT_MATCH, body, "listing interfaces", changing=True)
        found = {link.index: link for link in map(_link, answers)}
        return [link for link in found.values() if link.name.startswith(prefix)]

    def add_address(self, index: int, address: str, prefix_length: int = 32, *, link_scope: bool = False) -> None:
        """See :func:`casemate.host.route_messages.address`."""
        self.run(messages.address(index, address, prefix_length, link_scope=link_scope))

    def add_route(self, destination: str, index: int, *, gateway: str | None = None, source: str | None = None) -> None:
        """See :func:`casemate.host.route_messages.route`."""
        self.run(messages.route(destination, index, gateway=gateway, source=source))

    def add_neighbour(self, index: int, address: str, mac: str) -> None:
        """See :func:`casemate.host.route_messages.neighbour`."""
        self.run(messages.neighbour(index, address, mac))

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

    def run(self, *wanted: Message) -> list[list[bytes]]:
        """Send *wanted* at once; the bodies of each one's answers. Raises :class:`NetlinkFailed` for the first that was
        refused: the kernel goes on with those after it all the same."""
        answers: dict[int, list[bytes]] = {}
        data = b""
        for one in wanted:
            self._sequence = (self._sequence + 1) & 0xFFFFFFFF
            answers[self._sequence] = []
            flags = one.flags | _REQUEST | _ACK
            data += struct.pack("=IHHII", 16 + len(one.body), one.kind, flags, self._sequence, 0) + one.body
            data += b"\0" * (-len(data) % 4)
        doing = dict(zip(answers, (one.what for one in wanted), strict=True))
        failed: NetlinkFailed | None = None
        left = set(answers)
        try:
            self._socket.send(data)
            while left:
                for kind, flags, sequence, body in _messages(self._socket.recv(_RECEIVE_BYTES), doing):
                    if kind != _ERROR:
                        answers[sequence].append(body)
                        continue
                    left.discard(sequence)
                    number = -struct.unpack_from("=i", body)[0]
                    if number and failed is None:
                        failed = NetlinkFailed(doing[sequence], number, _extended(body, flags))
        except TimeoutError as error:
            raise NetlinkFailed(wanted[0].what, errno.ETIMEDOUT) from error
        except OSError as error:
            raise NetlinkFailed(wanted[0].what, error.errno or errno.EIO) from error
        if failed is not None:
            raise failed
        return list(answers.values())

    def request(self, kind: int, flags: int, body: bytes, what: str, *, changing: bool = False) -> list[bytes]:
        """Send one message; the bodies of its answers. Raises :class:`NetlinkFailed`.

        A list that others changed while it was read is read again: on a host where pods come and go that is often. With
        *changing* the answer, where each try was interrupted, is all that they found: what stood all the while is in
        it, what came and went may be, and a thing can be there several times, the latest last.
        """
        seen: list[bytes] = []
        for _ in range(_TRIES):
            answers = self._request(kind, flags, body, what)
            if not self._interrupted:
                return answers
            seen += answers
        if changing:
            return seen
        raise NetlinkFailed(what, errno.EAGAIN, f"the list changed {_TRIES} times while it was read")

    def _request(self, kind: int, flags: int, body: bytes, what: str) -> list[bytes]:
        """The same, once; ``_interrupted`` says whether a list changed while it was read."""
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
        return answers

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


def _messages(data: bytes, wanted: Mapping[int, str]) -> Iterator[tuple[int, int, int, bytes]]:
    """Kind, flags, sequence number and body of the messages in a datagram that answer one of *wanted*."""
    offset = 0
    while offset + 16 <= len(data):
        size, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data, offset)
        if size < 16 or offset + size > len(data):
            raise NetlinkFailed(next(iter(wanted.values())), errno.EBADMSG)
        if sequence in wanted:  # others are late answers to what timed out
            yield kind, flags, sequence, data[offset + 16 : offset + size]
        offset += (size + 3) & ~3


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
