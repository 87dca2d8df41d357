"""The pods' resolver: ``python -m casemate.node.dns.child POOL``, a child of casemated without privilege.

Descriptor 3 leads to casemated; 4 and 5 are the UDP and the listening TCP socket on the pods' gateway, bound by
casemate-hostd. Who asks is the sender's address: the firewall lets no pod send with another's.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import socket
import sys
import time
import traceback

import msgspec

from casemate.host import ownlimits
from casemate.node.dns.forward import Forwarder, parse_server
from casemate.node.dns.guard import Guard
from casemate.node.dns.resolver import MAX_QUESTIONS, Resolver
from casemate.node.dns.wire import ENCODER, MAX_MESSAGE_BYTES, TO_RESOLVER, Held, Laid, Orders, Pods, Told
from casemate.node.dns.zone import Zone

CHANNEL, DATAGRAMS, STREAMS = 3, 4, 5
MEMORY_BYTES = 512 << 20
#: Connections over TCP of all pods and of one, and how long one may say nothing.
MAX_STREAMS, MAX_STREAMS_OF_ONE, IDLE_S = 200, 16, 10.0
#: casemated is gone: so long it goes on with what it knows, and pods notice nothing of a restart.
LINGER_S = 30.0
_TURN = 64
_TELL_S = 1.0


def bound_self() -> None:
    """Lower this process's limits for good."""
    ownlimits.bound_self({resource.RLIMIT_AS: MEMORY_BYTES, resource.RLIMIT_NPROC: 0})
    ownlimits.settle(resource.RLIMIT_NOFILE, MAX_QUESTIONS + MAX_STREAMS + 64)


class Serving:
    """The sockets around a :class:`Resolver`."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._channel = _adopt(CHANNEL)
        self._datagrams = _adopt(DATAGRAMS)
        self._streams = _adopt(STREAMS)
        self.resolver = Resolver(Zone(pool), Forwarder(), Guard(pool), self._tell, time.monotonic)
        self._group: asyncio.TaskGroup | None = None
        self._ended = asyncio.Event()
        self._of_one: dict[str, int] = {}
        self._connections = 0

    async def run(self) -> None:
        """Until casemated ends this child, or has been gone for :data:`LINGER_S`."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            self._group = group
            loop.add_reader(self._channel.fileno(), self._on_channel)
            loop.add_reader(self._datagrams.fileno(), self._on_datagram)
            loop.add_reader(self._streams.fileno(), self._on_stream)
            teller = group.create_task(self._tell_counters())
            await self._ended.wait()
            # Answers that rules speak of cannot be laid any more, and are not told; all others are.
            loop.remove_reader(self._channel.fileno())
            teller.cancel()
            await asyncio.sleep(LINGER_S)
            os._exit(0)

    async def _tell_counters(self) -> None:
        last = None
        while True:
            counters = self.resolver.counters()
            if counters != last and self._tell(Told(counters)):
                last = counters
            await asyncio.sleep(_TELL_S)

    def _tell(self, message: msgspec.Struct) -> bool:
        try:
            self._channel.send(ENCODER.encode(message))
        except BlockingIOError:
            return False
        except OSError:
            self._ended.set()
            return False
        return True

    def _on_channel(self) -> None:
        for _ in range(_TURN):
            try:
                data = self._channel.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._ended.set()
                return
            self._told(TO_RESOLVER.decode(data))

    def _told(self, message: Pods | Orders | Held | Laid) -> None:
        resolver = self.resolver
        match message:
            case Pods():
                if message.replace:
                    resolver.zone.clear()
                for address in message.gone:
                    resolver.zone.drop(address)
                for address, project, names in message.set:
                    resolver.zone.put(address, project, names)
            case Orders():
                servers = [server for text in message.servers if (server := parse_server(text)) is not None]
                if set(servers) != set(resolver.forwarder.servers):
                    resolver.forwarder.servers = servers
                    resolver.cache.clear()
                resolver.watched = message.watched
                resolver.watch_all = message.watch_all
                resolver.guard = Guard(self._pool, message.rebind_allowed)
            case Held():
                if message.names is None:
                    resolver.held.pop(message.address, None)
                else:
                    resolver.held[message.address] = message.names
            case Laid():
                resolver.laid(message)

    def _on_datagram(self) -> None:
        assert self._group is not None
        for _ in range(_TURN):
            try:
                data, sender = self._datagrams.recvfrom(4096)
            except BlockingIOError:
                return
            except OSError:
                return
            self._group.create_task(self._answer(data, sender))

    async def _answer(self, data: bytes, sender: tuple[str, int]) -> None:
        response = await self._respond(data, sender[0], stream=False)
        if response:
            # A pod that went away, or whose buffer is full, asks again.
            with contextlib.suppress(OSError):
                self._datagrams.sendto(response, sender)

    async def _respond(self, data: bytes, viewer: str, *, stream: bool) -> bytes:
        """The response; a message that nobody foresaw costs its sender the answer, and nobody else anything."""
        try:
            return await self.resolver.respond(data, viewer, stream=stream)
        except Exception:
            traceback.print_exc(limit=10)
            self.resolver.dropped()
            return b""

    def _on_stream(self) -> None:
        assert self._group is not None
        for _ in range(_TURN):
            try:
                connection, (address, _) = self._streams.accept()
            except OSError:
                return
            if self._connections >= MAX_STREAMS or self._of_one.get(address, 0) >= MAX_STREAMS_OF_ONE:
                self.resolver.dropped()
                connection.close()
                continue
            self._connections += 1
            self._of_one[address] = self._of_one.get(address, 0) + 1
            self._group.create_task(self._converse(connection, address))

    async def _converse(self, connection: socket.socket, address: str) -> None:
        """Questions of one connection, one after the other (RFC 7766)."""
        writer = None
        try:
            connection.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=connection, limit=1 << 16)
            while True:
                async with asyncio.timeout(IDLE_S):
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    data = await reader.readexactly(size)
                response = await self._respond(data, address, stream=True)
                if not response:
                    return
                async with asyncio.timeout(IDLE_S):
                    writer.write(len(response).to_bytes(2, "big") + response)
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            return
        finally:
            if writer is not None:
                writer.close()
            else:
                connection.close()
            self._connections -= 1
            self._of_one[address] -= 1
            if not self._of_one[address]:
                del self._of_one[address]


def _adopt(number: int) -> socket.socket:
    adopted = socket.socket(fileno=number)
    adopted.setblocking(False)
    os.set_inheritable(number, False)
    return adopted


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        sys.stderr.write("usage: python -m casemate.node.dns.child POOL (started by casemated)\n")
        return 2
    bound_self()
    gc.freeze()
    asyncio.run(Serving(argv[0]).run())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
