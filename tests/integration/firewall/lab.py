"""The firewall's table in a network namespace of a test's own, with packets made by hand.

::

    A (pods that ask) --- cm-a [ router: the table ] cm-b --- B (pods that are asked)
                               [                   ] out0 --- W (the outside)

Every pod's address is a source on A's side and a destination on B's: one pair of interfaces stands for any number of
pods. A packet bears its number in the IP header's identification: thousands are sent and then looked for at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from casemate.host import netns, rtnetlink, syscalls
from casemate.host.nfqueue import PacketQueue
from casemate.network.firewall import sets
from casemate.network.firewall.kernel import Change, Kernel
from casemate.network.firewall.rules import TableSpec
from casemate.network.firewall.sets import Row

T = TypeVar("T")
POOL = ipaddress.IPv4Network("192.168.0.0/16")
GATEWAY = bytes([169, 254, 1, 1])
OUTSIDE = "198.51.100.7"
MAC_A, MAC_B, MAC_W = "0e:01:00:00:00:0a", "0e:01:00:00:00:0b", "0e:01:00:00:00:0c"
ROUTER_MAC = "0e:00:00:00:00:01"
TCP, UDP, SCTP, ICMP = 6, 17, 132, 1
SYN, ACK = 2, 16
#: The kernel passes a packet on within microseconds; this is for a busy machine.
QUIET_S = 0.05


def inside(fd: int, function: Callable[[], T]) -> T:
    return asyncio.run(netns.inside(fd, function))


def new_namespace() -> int:
    """A descriptor of a new network namespace."""

    def body() -> int:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return asyncio.run(netns.in_own_thread(body))


def _sysctl(name: str, value: str) -> None:
    Path(f"/proc/sys/{name}").write_text(value)


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(slots=True)
class Packet:
    """An IPv4 packet by its fields; *port* is ICMP's type for ICMP. *options* and *fragment* are for bad ones."""

    source: str
    destination: str
    protocol: int = TCP
    port: int = 80
    source_port: int = 40_000
    flags: int = SYN
    sequence: int = 1000
    number: int = 0
    ttl: int = 64
    options: bytes = b""
    fragment: int = 0
    payload: bytes = b""
    acknowledged: int = 0

    def bytes(self) -> bytes:
        source, destination = (socket.inet_aton(one) for one in (self.source, self.destination))
        body = self._transport(source, destination)
        words = 5 + len(self.options) // 4
        head = struct.pack("!BBHHHBBH4s4s", 0x40 | words, 0, words * 4 + len(body), self.number, self.fragment,
                           self.ttl, self.protocol, 0, source, destination) + self.options  # fmt: skip
        return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body

    def _transport(self, source: bytes, destination: bytes) -> bytes:
        if self.protocol == TCP:
            body = struct.pack("!HHIIBBHHH", self.source_port, self.port, self.sequence, self.acknowledged, 0x50,
                               self.flags, 65535, 0, 0) + self.payload  # fmt: skip
            at = 16
        elif self.protocol == UDP:
            body = struct.pack("!HHHH", self.source_port, self.port, 8 + len(self.payload), 0) + self.payload
            at = 6
        elif self.protocol == ICMP:
            body = struct.pack("!BBHHH", self.port, 0, 0, self.source_port, 1) + self.payload
            value = checksum(body)
            return body[:2] + struct.pack("!H", value) + body[4:]
        elif self.protocol == SCTP:
            # An INIT chunk; connection tracking here is told not to check its CRC32c.
            chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)
            return struct.pack("!HHII", self.source_port, self.port, 0, 0) + chunk
        else:
            return self.payload or bytes(8)
        pseudo = source + destination + struct.pack("!BBH", 0, self.protocol, len(body))
        return body[:at] + struct.pack("!H", checksum(pseudo + body)) + body[at + 2 :]


@dataclass(slots=True)
class Wire:
    """A raw socket at a namespace's end of a link."""

    raw: socket.socket
    mac: bytes

    def send(self, packets: Iterable[Packet], mac: bytes | None = None) -> None:
        head = rtnetlink.mac_bytes(ROUTER_MAC) + (mac or self.mac) + b"\x08\0"
        for packet in packets:
            self.raw.send(head + packet.bytes())

    def frames(self, quiet_s: float = QUIET_S) -> Iterator[bytes]:
        """IPv4 packets that come in, until none comes for *quiet_s*."""
        while select.select([self.raw], [], [], quiet_s)[0]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, where = self.raw.recvfrom(65536)
                    if where[2] != socket.PACKET_OUTGOING and data[12:14] == b"\x08\0":
                        yield data[14:]

    def numbers(self, quiet_s: float = QUIET_S) -> set[tuple[int, int]]:
        """Number and protocol of the packets that came: the router's own ICMP bears numbers of its own."""
        return {(packet[4] << 8 | packet[5], packet[9]) for packet in self.frames(quiet_s)}


@dataclass(slots=True)
class Lab:
    """The namespaces, the table, and a raw socket at each end."""

    router: int
    a: Wire
    b: Wire
    w: Wire
    kernel: Kernel
    fds: list[int] = field(default_factory=list)
    indexes: dict[str, int] = field(default_factory=dict)
    last_number: int = 0

    def close(self) -> None:
        self.kernel.close()
        for wire in (self.a, self.b, self.w):
            wire.raw.close()
        for number in self.fds:
            os.close(number)

    def make(self, rows: Iterable[Row] = (), generation: int = 1) -> None:
        """The table anew."""
        asyncio.run(self.kernel.make(list(rows), generation))

    def change(self, change: Change) -> None:
        asyncio.run(self.kernel.change(change))

    def route(self, addresses: Iterable[str], interface: str = "cm-b", mac: str = MAC_B) -> None:
        """Pods' addresses lead to B (or another *interface*, where *mac* is)."""

        def body() -> None:
            with rtnetlink.RouteSocket() as host:
                link = host.link(interface)
                assert link is not None
                for one in addresses:
                    host.add_route(f"{one}/32", link.index)
                    host.add_neighbour(link.index, one, mac)

        inside(self.router, body)

    def hardware(self, addresses: Iterable[str]) -> list[Row]:
        """Each of *addresses* may send from A and from B."""
        rows: list[Row] = []
        for one in addresses:
            rows += [*self.source("cm-a", MAC_A, one), *self.source("cm-b", MAC_B, one)]
        return rows

    def source(self, interface: str, mac: str, address: str) -> tuple[Row, ...]:
        """*address* may send from *interface*, with the hardware address *mac*."""
        return sets.source_rows(self.indexes[interface], rtnetlink.mac_bytes(mac), socket.inet_aton(address))

    def passes(self, packets: list[Packet], *, at: Wire | None = None, via: Wire | None = None) -> list[bool]:
        """Which of *packets* from A (or *via*) came out at B (or *at*)."""
        wire = at or self.b
        found: set[tuple[int, int]] = set()
        # Numbers go on from call to call: what comes late is not taken for another. What the router itself sends
        # (resets) bears 0.
        for packet in packets:
            self.last_number = self.last_number % 65_535 + 1
            packet.number = self.last_number
        for start in range(0, len(packets), 200):
            (via or self.a).send(packets[start : start + 200])
            found |= wire.numbers(0.002 if start + 200 < len(packets) else QUIET_S)
        return [(packet.number, packet.protocol) in found for packet in packets]

    def connect(self, source: str, destination: str, port: int = 80, source_port: int = 40_000) -> bool:
        """A whole TCP handshake from A to B; whether its first packet and its answer passed."""
        self.route([source], "cm-a", MAC_A)
        begin = Packet(source, destination, TCP, port, source_port)
        answer = Packet(destination, source, TCP, source_port, port, SYN | ACK, 5000, acknowledged=1001)
        passed = self.passes([begin]) == [True] and self.passes([answer], via=self.b, at=self.a) == [True]
        self.passes([Packet(source, destination, TCP, port, source_port, ACK, 1001, acknowledged=5001)])
        return passed

    def flush_connections(self) -> None:
        def body() -> None:
            with contextlib.closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)) as netlink:
                netlink.send(struct.pack("=IHHIIBBH", 20, 1 << 8 | 2, 5, 1, 0, 0, 0, 0))
                netlink.recv(4096)

        inside(self.router, body)

    def queue(self, offset: int = 0) -> PacketQueue:
        return inside(self.router, lambda: PacketQueue(self.kernel.spec.queue + offset, 1024))


def new_lab(*, only_published: bool = False) -> Lab:
    """*only_published*: W reaches no pod, as it is where pods run; there is no translation here."""

    router, *ends = (new_namespace() for _ in range(4))
    fds = [router, *ends]

    def connect() -> None:
        with rtnetlink.RouteSocket() as host:
            host.set_up(1)
            for name, mac, end, address in (
                ("cm-a", MAC_A, ends[0], "169.254.1.1"),
                ("cm-b", MAC_B, ends[1], "169.254.1.1"),
                ("out0", MAC_W, ends[2], "198.51.100.1"),
            ):
                host.add_veth(name, ROUTER_MAC, peer_name="eth0", peer_mac=mac, mtu_bytes=1500, peer_netns_fd=end)
                link = host.link(name)
                assert link is not None
                for setting in ("rp_filter", "send_redirects", "accept_local"):
                    _sysctl(f"net/ipv4/conf/{name}/{setting}", "0")
                host.set_up(link.index)
                host.add_address(link.index, address)
                if name == "out0":
                    host.add_route("198.51.100.0/24", link.index)
                    host.add_neighbour(link.index, OUTSIDE, MAC_W)
                    host.add_route("0.0.0.0/0", link.index, gateway=OUTSIDE)
        _sysctl("net/ipv4/conf/all/rp_filter", "0")
        _sysctl("net/ipv4/ip_forward", "1")
        with contextlib.suppress(OSError):
            _sysctl("net/netfilter/nf_conntrack_checksum", "0")

    def end(mac: str) -> Callable[[], Wire]:
        def body() -> Wire:
            with rtnetlink.RouteSocket() as host:
                link = host.link("eth0")
                assert link is not None
                host.set_up(link.index)
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
            raw.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)
            raw.bind(("eth0", 3))
            return Wire(raw, rtnetlink.mac_bytes(mac))

        return body

    inside(router, connect)
    wires = [inside(one, end(mac)) for one, mac in zip(ends, (MAC_A, MAC_B, MAC_W), strict=True)]

    def table() -> Kernel:
        spec = TableSpec("casemate", "cm-", POOL, GATEWAY, 20_000, 209, only_published=only_published, hello_group=210)
        kernel = Kernel(spec)
        kernel.probe()
        return kernel

    indexes = inside(router, lambda: {name: socket.if_nametoindex(name) for name in ("cm-a", "cm-b", "out0")})
    lab = Lab(router, *wires, inside(router, table), fds, indexes)
    # The links are up when the kernel has said so at both ends.
    deadline = time.monotonic() + 5.0
    lab.route(["192.168.255.254"])
    while not lab.passes([Packet("192.168.255.253", "192.168.255.254")])[0]:
        assert time.monotonic() < deadline, "no packet passes the lab"
    return lab


def address(text: str) -> bytes:
    return socket.inet_aton(text)


def endpoint(text: str, number: int) -> Row:
    """An endpoint's address."""
    return sets.address_row(True, address(text), address(text), viewer=b"", number=number)


def world(number: int, first: str = "0.0.0.0", last: str = "255.255.255.255") -> Row:
    return sets.address_row(False, address(first), address(last), viewer=b"", number=number)
