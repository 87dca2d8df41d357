"""Attached clients: one connection to conmon for each container or exec, shared by whoever is attached.

Flow control. Each client has a bounded queue. While one is full, nothing more is read from conmon, so a slow reader
slows the container down, as a pipe would, and no output is lost. Where others are attached too, a client that stays
full for :data:`PATIENCE_S` is sent away, so that it cannot hold up the rest.

conmon's side is a SOCK_SEQPACKET socket; each message begins with 2 (standard output) or 3 (standard error). The
clients' frames begin with 1 or 2 (see :mod:`casemate.spec.api`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Awaitable, Callable

from casemate.node.errors import ClientTooSlow, TooMany

#: Bytes that wait for one client before reading stops, and below which it goes on.
HIGH_BYTES = 256 << 10
LOW_BYTES = 64 << 10
PATIENCE_S = 5.0
MAX_CLIENTS = 32
MAX_CONSOLES = 2048
#: conmon reads at most 32 KiB of a message; what its own buffer of standard input takes at once is 8 KiB.
STDIN_CHUNK = 8192
_MESSAGE_BYTES = 64 << 10


class Client:
    """One attached client; read it with :meth:`get` until None."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._frames: deque[bytes] = deque()
        self._ready = asyncio.Event()
        self._ended = False
        self.waiting_bytes = 0
        self.error: ClientTooSlow | None = None

    def put(self, frame: bytes) -> None:
        self._frames.append(frame)
        self.waiting_bytes += len(frame)
        self._ready.set()

    def finish(self, error: ClientTooSlow | None = None) -> None:
        self._ended = True
        self.error = error
        self._ready.set()

    async def get(self) -> bytes | None:
        """The next frame; None when there will be no more. Raises :class:`ClientTooSlow` when it was sent away."""
        while not self._frames:
            if self._ended:
                if self.error is not None:
                    raise self.error
                return None
            self._ready.clear()
            await self._ready.wait()
        frame = self._frames.popleft()
        self.waiting_bytes -= len(frame)
        self._console.has_room()
        return frame

    def get_more(self) -> list[bytes]:
        """Further frames that are there already."""
        frames = list(self._frames)
        self._frames.clear()
        self.waiting_bytes = 0
        self._console.has_room()
        return frames

    async def send(self, data: bytes) -> None:
        """Give *data* to the standard input; waits while the container does not read. Silent once it has ended."""
        await self._console.send(data)

    def end_input(self) -> None:
        """The input has ended."""
        self._console.end_input()

    def leave(self) -> None:
        """Detach; the container goes on."""
        self._console.leave(self)


class Console:
    """The connection to one conmon."""

    def __init__(self, descriptor: int, on_end: Callable[[Console], None]) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._clients: set[Client] = set()
        self._on_end = on_end
        self._reading = False
        self._impatient: asyncio.TimerHandle | None = None
        self._sending = asyncio.Lock()
        self.ended = False

    def join(self) -> Client:
        """A new client, which gets everything from now on."""
        if len(self._clients) >= MAX_CLIENTS:
            raise TooMany(f"{MAX_CLIENTS} clients are attached already")
        client = Client(self)
        if self.ended:
            client.finish()
            return client
        self._clients.add(client)
        self._read_on()
        return client

    def leave(self, client: Client) -> None:
        self._clients.discard(client)
        if not self._clients:
            self.close()
        else:
            self.has_room()

    async def send(self, data: bytes) -> None:
        async with self._sending:
            for start in range(0, len(data), STDIN_CHUNK):
                if self.ended:
                    return
                try:
                    await self._loop.sock_sendall(self._socket, data[start : start + STDIN_CHUNK])
                except OSError:
                    return  # the process has ended, or has closed its input

    def end_input(self) -> None:
        if not self.ended:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                return

    def has_room(self) -> None:
        """A client took something: read on when none is full any more."""
        if not self._reading and not self.ended and all(c.waiting_bytes < LOW_BYTES for c in self._clients):
            self._read_on()

    def close(self, *, keep_input: bool = False) -> None:
        """End the connection; every client comes to its end. The input ends with it, but for *keep_input*.

        hostd holds the connection too, so that the input survives a daemon that is killed: its end has to be said.
        """
        if self.ended:
            return
        self.ended = True
        self._pause()
        if self._impatient is not None:
            self._impatient.cancel()
        if not keep_input:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for client in self._clients:
            client.finish()
        self._clients.clear()
        self._on_end(self)

    def _read_on(self) -> None:
        if self._impatient is not None:
            self._impatient.cancel()
            self._impatient = None
        if not self._reading:
            self._reading = True
            self._loop.add_reader(self._socket.fileno(), self._on_readable)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket.fileno())

    def _on_readable(self) -> None:
        for _ in range(32):  # then the loop's other work gets its turn
            try:
                message = self._socket.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self.close()
                return
            if len(message) < 2 or message[0] not in (2, 3):
                continue  # conmon sends nothing else
            frame = bytes((message[0] - 1,)) + message[1:]
            full = False
            for client in self._clients:
                client.put(frame)
                full = full or client.waiting_bytes > HIGH_BYTES
            if full:
                self._pause()
                if self._impatient is None:
                    self._impatient = self._loop.call_later(PATIENCE_S, self._send_slow_away)
                return

    def _send_slow_away(self) -> None:
        self._impatient = None
        if self.ended or self._reading:
            return
        slow = [client for client in self._clients if client.waiting_bytes >= LOW_BYTES]
        if len(self._clients) > 1 and len(slow) < len(self._clients):
            for client in slow:
                self._clients.discard(client)
                client.finish(ClientTooSlow(f"the client did not read for {PATIENCE_S:g} s while others waited"))
            self._read_on()
        else:
            self._impatient = self._loop.call_later(PATIENCE_S, self._send_slow_away)


class Hub:
    """The consoles, by the id of their container or exec."""

    def __init__(self) -> None:
        self._consoles: dict[str, Console] = {}
        self._opening: dict[str, asyncio.Lock] = {}

    def adopt(self, id_: str, descriptor: int) -> Client:
        """Take the connection that came with a start, and join it as the first client."""
        old = self._consoles.pop(id_, None)
        if old is not None:
            old.close()
        console = Console(descriptor, lambda ended: self._forget(id_, ended))
        self._consoles[id_] = console
        return console.join()

    async def attach(self, id_: str, connect: Callable[[], Awaitable[int]]) -> Client:
        """Join what is attached already, or *connect* (which answers a descriptor) first."""
        lock = self._opening.setdefault(id_, asyncio.Lock())
        try:
            async with lock:
                console = self._consoles.get(id_)
                if console is not None and not console.ended:
                    return console.join()
                if len(self._consoles) >= MAX_CONSOLES:
                    raise TooMany(f"{MAX_CONSOLES} containers are attached already")
                return self.adopt(id_, await connect())
        finally:
            if not lock.locked():
                self._opening.pop(id_, None)

    def forget(self, id_: str) -> None:
        """The container is gone: whoever is still attached comes to the end."""
        console = self._consoles.get(id_)
        if console is not None:
            console.close()

    def close(self) -> None:
        """End every connection (the daemon ends; the containers, and their inputs, do not)."""
        for console in list(self._consoles.values()):
            console.close(keep_input=True)

    def _forget(self, id_: str, ended: Console) -> None:
        if self._consoles.get(id_) is ended:
            del self._consoles[id_]
