"""The relay over real sockets of this process, a clock of the test's own, and a hostd that the test plays."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from dataclasses import dataclass, field
from typing import Any

from casemate.hostd.protocol_keeping import RELAY_ANSWER, RELAY_REQUEST
from casemate.node.keeping import wire
from casemate.node.keeping.relay import Relay

TURNS = 50


@dataclass
class Site:
    """A relay with its listener, hostd's end of its channel, and the pod's listener."""

    relay: Relay
    told: list[Any]
    hostd: socket.socket
    pod: socket.socket
    address: tuple[str, int]
    clock: list[float]
    sockets: list[socket.socket] = field(default_factory=list)

    def later(self, seconds: float) -> None:
        self.clock[0] += seconds
        self.turn()

    def turn(self, count: int = TURNS) -> None:
        for _ in range(count):
            self.relay.turn(0)

    def client(self) -> socket.socket:
        one = socket.create_connection(self.address)
        self.sockets.append(one)
        one.settimeout(2.0)
        return one

    def answer(self, why: int = 0, *, number: int | None = None, to: socket.socket | None = None) -> None:
        """Answer the next request, with a connection to the pod (or *to* another listener) that has begun."""
        data, beside, _, _ = self.hostd.recvmsg(64, socket.CMSG_SPACE(4))
        for _, _, content in beside:
            os.close(array.array("i", content)[0])
        asked = RELAY_REQUEST.unpack(data)[0] if number is None else number
        fds: list[tuple[int, int, bytes | array.array[int]]] = []
        made = None
        if not why:
            made = socket.socket()
            made.setblocking(to is None)
            with contextlib.suppress(BlockingIOError):
                made.connect((to or self.pod).getsockname())
            fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fileno()]))]
        self.hostd.sendmsg([RELAY_ANSWER.pack(asked, why)], fds)
        if made is not None:
            made.close()

    def accept(self) -> socket.socket:
        one, _ = self.pod.accept()
        self.sockets.append(one)
        one.settimeout(2.0)
        return one

    def connected(self) -> tuple[socket.socket, socket.socket]:
        """A client and the pod's side of its connection."""
        client = self.client()
        self.turn()
        self.answer()
        self.turn()
        return client, self.accept()

    def of(self, kind: type) -> list[Any]:
        return [one for one in self.told if isinstance(one, kind)]

    def hold(self, **fields: Any) -> None:
        values = {"wait_s": 10.0, "drain_s": 1.0, "limit": 100, **fields}
        self.relay.on_message(wire.Hold(self.address[0], **values))
        self.turn()

    def resume(self, **fields: Any) -> None:
        self.relay.on_message(wire.Resume(self.address[0], **fields))
        self.turn()


def passes(site: Site, source: socket.socket, sink: socket.socket, data: bytes) -> None:
    source.sendall(data)
    site.turn()
    assert sink.recv(len(data)) == data


def is_reset(one: socket.socket) -> bool:
    try:
        one.recv(100)
    except ConnectionResetError:
        return True
    return False


def gone(one: socket.socket) -> bool:
    one.settimeout(0.2)
    try:
        return one.recv(1, socket.MSG_PEEK) == b""
    except (ConnectionResetError, TimeoutError):
        return True
