"""Questions to the host's resolvers, in a way that is hard to answer for somebody else.

Each question has a socket of its own (a port that the kernel chooses, connected, so that only the resolver's address
is heard), a random identifier, and random upper and lower case in its name (draft-vixie-dnsext-dns0x20); an answer that
does not repeat all three is passed over and counted. Where an answer is cut, the question goes again over TCP.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from casemate.node.dns.message import SERVFAIL, Answer, MessageBroken, read_answer, write_query

#: One resolver's time for one question, and all resolvers' together; what glibc's own resolver waits is 5 s a try.
TRY_S, ALL_S = 1.5, 4.0
ROUNDS = 2
#: Answers that are not ours and are passed over before a resolver is given up: somebody guesses.
MAX_WRONG = 64
_MAX_BYTES = 65_535


class NoAnswer(Exception):
    """No resolver answered in time."""


@dataclass(frozen=True, slots=True)
class Server:
    address: str
    port: int = 53

    @property
    def family(self) -> int:
        return socket.AF_INET if ipaddress.ip_address(self.address).version == 4 else socket.AF_INET6


def parse_server(text: str) -> Server | None:
    """``192.0.2.53`` or ``192.0.2.53#5353``; None for anything else."""
    address, _, port = text.partition("#")
    try:
        ipaddress.ip_address(address)
        number = int(port) if port else 53
    except ValueError:
        return None
    return Server(address, number) if 0 < number < 65_536 else None


class Forwarder:
    """*servers* are asked in order, those that answered last first."""

    def __init__(self, servers: Sequence[Server] = ()) -> None:
        self.servers = list(servers)
        self.spoofed = 0

    async def ask(self, question: bytes, *, wants_dnssec: bool) -> Answer:
        """The answer to *question* (name, type, class as bytes). Raises :class:`NoAnswer`."""
        failed: Answer | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ALL_S):
                for _ in range(ROUNDS):
                    for server in tuple(self.servers):
                        answer = await self._ask(server, question, wants_dnssec)
                        if answer is not None and answer.code != SERVFAIL:
                            self._prefer(server)
                            return answer
                        failed = answer or failed
                    if failed is not None:
                        break
        if failed is not None:
            return failed
        raise NoAnswer(f"none of {len(self.servers)} resolvers answered")

    def _prefer(self, server: Server) -> None:
        if self.servers and self.servers[0] != server and server in self.servers:
            self.servers.remove(server)
            self.servers.insert(0, server)

    async def _ask(self, server: Server, question: bytes, wants_dnssec: bool) -> Answer | None:
        spelled = random_case(question)
        number = secrets.randbelow(1 << 16)
        query = write_query(number, spelled, wants_dnssec=wants_dnssec)
        try:
            async with asyncio.timeout(TRY_S):
                answer = await self._datagram(server, query, number, spelled)
                if answer is None or answer.is_cut:
                    return await self._stream(server, query, number, question)
                return answer
        except (TimeoutError, OSError, MessageBroken, asyncio.IncompleteReadError):
            return None

    async def _datagram(self, server: Server, query: bytes, number: int, spelled: bytes) -> Answer | None:
        """The answer; None where so many wrong ones came that only TCP can be trusted."""
        loop = asyncio.get_running_loop()
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        with socket.socket(server.family, kind) as sock:
            sock.connect((server.address, server.port))
            await loop.sock_sendall(sock, query)
            for _ in range(MAX_WRONG):
                data = await loop.sock_recv(sock, _MAX_BYTES)
                try:
                    answer = read_answer(data)
                except MessageBroken:
                    self.spoofed += 1
                    continue
                if answer.number == number and answer.question == spelled:
                    return answer
                self.spoofed += 1
                if answer.number == number and answer.question.lower() == spelled.lower():
                    return None  # a resolver that does not repeat the spelling
        return None

    async def _stream(self, server: Server, query: bytes, number: int, question: bytes) -> Answer:
        reader, writer = await asyncio.open_connection(server.address, server.port, limit=_MAX_BYTES + 2)
        try:
            writer.write(len(query).to_bytes(2, "big") + query)
            await writer.drain()
            size = int.from_bytes(await reader.readexactly(2), "big")
            answer = read_answer(await reader.readexactly(size))
        finally:
            writer.close()
        if answer.number != number or answer.question.lower() != question.lower():
            self.spoofed += 1
            raise MessageBroken("the answer is to another question")
        return answer


def random_case(question: bytes) -> bytes:
    """*question* with each letter of its name in random case; its last four bytes are type and class."""
    name = bytearray(question[:-4])
    at = 0
    while at < len(name) and name[at]:
        for place in range(at + 1, min(at + 1 + name[at], len(name))):
            if chr(name[place]).isalpha() and name[place] < 128 and secrets.randbits(1):
                name[place] ^= 0x20
        at += name[at] + 1
    return bytes(name) + question[-4:]
