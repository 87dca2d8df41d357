"""Flows that never rest, between two pods: numbered TCP lines, UDP datagrams and ICMP echoes, each a few ms apart.

A number is sent at a known time and seen, or not, at the other end: so it can be said until when a flow got through.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

from tests.integration.firewall.lab import checksum
from tests.integration.policy.world import World

PERIOD_S = 0.004


class Streams:
    """TCP, UDP and ICMP out of the pod of *source* to *destination* (a container whose pod listens for them here)."""

    def __init__(self, world: World, source: str, destination: str, port: int) -> None:
        address = world.addresses[destination]
        self.sent: list[float] = []
        #: The last number that got through, by protocol.
        self.seen: dict[str, int] = {}
        self.reset = threading.Event()
        self._over = threading.Event()
        listener = world.inside(destination, lambda: socket.create_server(("0.0.0.0", port)))
        udp = world.inside(destination, lambda: _bound(port))
        out = world.inside(source, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        out.connect((address, port))
        ping = world.inside(source, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        ping.connect((address, 0))
        client = world.connect(source, address, port)
        server, _ = listener.accept()
        listener.close()
        self._sockets = [udp, out, ping, client, server]
        for one in self._sockets:
            one.settimeout(0.05)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        work = [
            threading.Thread(target=self._send, args=(client, out, ping)),
            threading.Thread(target=self._take, args=("tcp", server)),
            threading.Thread(target=self._take, args=("udp", udp)),
            threading.Thread(target=self._take, args=("icmp", ping)),
            threading.Thread(target=self._watch, args=(client,)),
        ]
        self._threads = work
        for one in work:
            one.start()

    def _send(self, client: socket.socket, out: socket.socket, ping: socket.socket) -> None:
        number = 0
        while not self._over.is_set():
            self.sent.append(time.monotonic())
            packed = struct.pack("!I", number)
            for one in (client, out):
                with contextlib.suppress(OSError):
                    one.send(packed)
            head = struct.pack("!BBHHH", 8, 0, 0, 0x4321, number & 0xFFFF) + packed
            head = head[:2] + struct.pack("!H", checksum(head)) + head[4:]
            with contextlib.suppress(OSError):
                ping.send(head)
            number += 1
            self._over.wait(PERIOD_S)

    def _take(self, name: str, one: socket.socket) -> None:
        while not self._over.is_set():
            try:
                data = one.recv(65536)
            except OSError:
                self._over.wait(0.001)
                continue
            if name == "icmp":
                # The answer's: an IP header of 20 bytes, type 0.
                if len(data) < 32 or data[20] != 0 or data[24:26] != b"\x43\x21":
                    continue
                data = data[28:32]
            if len(data) >= 4:
                self.seen[name] = struct.unpack("!I", data[-4:])[0]

    def _watch(self, client: socket.socket) -> None:
        """Whether the opener of the TCP connection is told."""
        while not self._over.is_set():
            try:
                if client.recv(1) == b"":
                    return
            except TimeoutError:
                continue
            except OSError:
                self.reset.set()
                return

    def until_all_pass(self, world: World) -> None:
        world.until(lambda: len(self.seen) == 3 and min(self.seen.values()) > 5, "all three flows pass")

    def last(self, name: str) -> float:
        """When the last number that got through was sent."""
        return self.sent[self.seen[name]]

    def close(self) -> None:
        self._over.set()
        for one in self._threads:
            one.join()
        for one in self._sockets:
            one.close()


def _bound(port: int) -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(("0.0.0.0", port))
    return one
