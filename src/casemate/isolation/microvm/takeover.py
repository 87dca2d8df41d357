"""A network namespace that an engine has prepared, taken over by a guest.

The guest's card is a tap in that namespace, joined to the engine's interface by traffic control; the guest gets what
the interface has: hardware address, MTU, addresses, routes, permanent neighbours. Whatever the engine does outside
(published ports, filters on its veth's other end, CNI plug-ins) holds as before, as packets pass the namespace.

Read when the container starts: some engines plumb the interface between create and start.
"""

from __future__ import annotations

import operator
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from casemate.host import netns, trafficcontrol, tun
from casemate.host.netlink import attributes
from casemate.host.rtnetlink import Link, NetlinkFailed, RouteSocket
from casemate.isolation.microvm import argv, frames
from casemate.isolation.microvm.errors import NetworkFailed
from casemate.isolation.microvm.frames import Field, Tag
from casemate.spec.errors import CasemateError

TAP = "casemate0"
_TAPS = (TAP, *(f"casemate{number}" for number in range(1, argv.MOST_CARDS)))
_GETADDR, _GETROUTE, _GETNEIGH, _DUMP = 22, 26, 30, 0x300
_MAIN_TABLE, _UNICAST, _PERMANENT, _LINK_SCOPE = 254, 1, 0x80, 253
_PROTOCOL_KERNEL = 2
_IFF_LOOPBACK = 8
#: Bound on what one guest is told; an engine sets a handful.
MAX_ENTRIES = 128
_FAMILIES: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 16}


@dataclass(frozen=True, slots=True)
class Address:
    """An address (4 or 16 bytes) and its prefix length."""

    packed: bytes
    bits: int


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table through the interface; *gateway* empty: on the link."""

    destination: bytes
    bits: int
    gateway: bytes


@dataclass(frozen=True, slots=True)
class Neighbour:
    packed: bytes
    mac: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """One interface of a namespace, and what is set on it."""

    link: Link
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]
    neighbours: tuple[Neighbour, ...]

    def fields(self) -> list[Field]:
        """What NETWORK says of it; routes on the link before those that lead through them."""
        found = [
            Field(Tag.MAC, bytes.fromhex(self.link.mac.replace(":", ""))),
            frames.u32(Tag.MTU, self.link.mtu_bytes),
        ]
        found += [Field(Tag.ADDRESS, one.packed + bytes([one.bits])) for one in self.addresses]
        for one in sorted(self.routes, key=lambda route: bool(route.gateway)):
            by = one.gateway or bytes(len(one.destination))
            found.append(Field(Tag.ROUTE, bytes([one.bits, bool(one.gateway)]) + one.destination + by))
        return found + [Field(Tag.NEIGHBOUR, one.packed + one.mac) for one in self.neighbours]


async def cards(netns_fd: int) -> int:
    """How many cards a guest wants for the namespace: one for each interface that is up, at least one.

    Raises :class:`NetworkFailed` for more than a machine has places for.
    """

    def work() -> list[str]:
        with RouteSocket() as routes:
            return [one.name for one in _interfaces(routes)]

    names = await netns.inside(netns_fd, work)
    if len(names) > argv.MOST_CARDS:
        words = ", ".join(names)[:200]
        raise NetworkFailed(
            f"the network namespace has {len(names)} interfaces ({words}); a guest has {argv.MOST_CARDS}"
        )
    return max(1, len(names))


def _interfaces(routes: RouteSocket) -> list[Link]:
    found = [one for one in routes.links() if one.name not in ("lo", *_TAPS) and one.up]
    return sorted(found, key=operator.attrgetter("index"))


async def open_taps(netns_fd: int, count: int) -> list[int]:
    """The guest's taps in the namespace, up, with nothing joined to them yet; the caller closes them."""

    def work() -> list[int]:
        opened: list[int] = []
        try:
            with RouteSocket() as routes:
                for name in _TAPS[:count]:
                    opened.append(tun.open_tap(name))
                    link = routes.link(name)
                    if link is not None:
                        routes.set_up(link.index)
            return opened
        except BaseException:
            for number in opened:
                os.close(number)
            raise

    try:
        return await netns.inside(netns_fd, work)
    except (OSError, NetlinkFailed) as error:
        words = error.detail if isinstance(error, CasemateError) else error.strerror
        raise NetworkFailed(f"tap {TAP} in the engine's network namespace: {words}", interface=TAP) from error


async def adopt_tap(name: str, netns_fd: int) -> None:
    """Make the tap *name* of this namespace, which a waiting machine holds, the guest's tap in the other one."""

    def move() -> None:
        with RouteSocket() as routes:
            link = routes.link(name)
            if link is None:
                raise NetworkFailed(f"tap {name} is gone", interface=name)
            routes.move(link.index, netns_fd, TAP)

    def raise_it() -> None:
        with RouteSocket() as routes:
            link = routes.link(TAP)
            if link is None:
                raise NetworkFailed(f"tap {TAP} is not where it was moved to", interface=TAP)
            routes.set_up(link.index)

    try:
        await netns.in_own_thread(move)
        await netns.inside(netns_fd, raise_it)
    except (OSError, NetlinkFailed) as error:
        words = error.detail if isinstance(error, CasemateError) else error.strerror
        raise NetworkFailed(
            f"moving tap {name} into the engine's network namespace: {words}", interface=name
        ) from error


async def take(netns_fd: int) -> list[Found]:
    """Join the namespace's interfaces to the taps; what the guest is to have, one a card. Empty: loopback alone."""

    def work() -> list[Found]:
        with RouteSocket() as routes:
            links = _interfaces(routes)
            taps = [link for name in _TAPS if (link := routes.link(name)) is not None]
            if len(links) > len(taps) > 0:
                names = ", ".join(one.name for one in links)
                raise NetworkFailed(
                    f"the network namespace has {len(links)} interfaces ({names}), and had {len(taps)} when the "
                    "container was created: a guest has as many cards as there were then"
                )
            found = [observe(routes, link) for link, _ in zip(links, taps, strict=False)]
            for link, tap in zip(links, taps, strict=False):
                trafficcontrol.join(routes, link.index, tap.index)
            return found

    return await netns.inside(netns_fd, work)


def observe(routes: RouteSocket, link: Link) -> Found:
    """Addresses, routes and neighbours of *link*. :class:`NetworkFailed` for more than :data:`MAX_ENTRIES`."""
    header = struct.pack("=BBHi", 0, 0, 0, 0)
    addresses = read_addresses(routes.request(_GETADDR, _DUMP, header, "listing addresses"), link.index)
    body = struct.pack("=BBBBBBBBI", 0, 0, 0, 0, 0, 0, 0, 0, 0)
    found = read_routes(routes.request(_GETROUTE, _DUMP, body, "listing routes"), link.index)
    body = struct.pack("=BBHiHBB", 0, 0, 0, 0, 0, 0, 0)
    neighbours = read_neighbours(routes.request(_GETNEIGH, _DUMP, body, "listing neighbours"), link.index)
    for what, entries in (("addresses", addresses), ("routes", found), ("neighbours", neighbours)):
        if len(entries) > MAX_ENTRIES:
            raise NetworkFailed(f"{link.name} has {len(entries)} {what}, allowed are {MAX_ENTRIES}")
    return Found(link, addresses, found, neighbours)


def read_addresses(answers: Sequence[bytes], index: int) -> tuple[Address, ...]:
    """Those of the interface *index*; link-local IPv6 ones are the guest's own to make."""
    found = []
    for answer in answers:
        family, bits, _, scope, of = struct.unpack_from("=BBBBi", answer)
        given = dict(attributes(answer[8:]))
        packed = given.get(2) or given.get(1) or b""  # IFA_LOCAL, else IFA_ADDRESS
        if of != index or _FAMILIES.get(family) != len(packed):
            continue
        if family == socket.AF_INET6 and scope == _LINK_SCOPE:
            continue
        found.append(Address(packed, bits))
    return tuple(found)


def read_routes(answers: Sequence[bytes], index: int) -> tuple[Route, ...]:
    """Unicast routes of the main table through *index*, but for those that the kernel makes with an address."""
    found = []
    for answer in answers:
        family, bits, _, _, table, protocol, _, kind, _ = struct.unpack_from("=8BI", answer)
        given = dict(attributes(answer[12:]))
        size = _FAMILIES.get(family)
        if size is None or table != _MAIN_TABLE or kind != _UNICAST or protocol == _PROTOCOL_KERNEL:
            continue
        if 4 not in given or struct.unpack("=i", given[4])[0] != index:
            continue
        found.append(Route(given.get(1, bytes(size)), bits, given.get(5, b"")))
    return tuple(found)


def read_neighbours(answers: Sequence[bytes], index: int) -> tuple[Neighbour, ...]:
    """The permanent ones: what was learnt the guest learns by itself."""
    found = []
    for answer in answers:
        family, _, _, of, state, _, _ = struct.unpack_from("=BBHiHBB", answer)
        given = dict(attributes(answer[12:]))
        packed, mac = given.get(1, b""), given.get(2, b"")
        if of == index and state & _PERMANENT and _FAMILIES.get(family) == len(packed) and len(mac) == 6:
            found.append(Neighbour(packed, mac))
    return tuple(found)
