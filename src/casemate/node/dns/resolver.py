"""What becomes of one question of a pod: our own names, the cache, the host's resolvers; guard and rules in between."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable

import msgspec

from casemate.node.dns import message
from casemate.node.dns.cache import Cache, Key
from casemate.node.dns.forward import Forwarder, NoAnswer
from casemate.node.dns.guard import Guard
from casemate.node.dns.message import (
    ANY,
    AXFR,
    FORMERR,
    IN,
    NOTIMP,
    REFUSED,
    SERVFAIL,
    Answer,
    MessageBroken,
    Query,
)
from casemate.node.dns.wire import Answered, Laid, Refused
from casemate.node.dns.wire import Counters as WireCounters
from casemate.node.dns.zone import Zone
from casemate.policy.rules import name_matches

#: Questions under way at a time, of all pods and of one.
MAX_QUESTIONS, MAX_OF_ONE = 2000, 200
#: How long an answer waits for the firewall; then the pod is told to ask again.
LAY_S = 2.0
#: A pod may connect a while after it was told: what a rule opens stays open at least so long.
MIN_LAID_S = 30
Tell = Callable[[msgspec.Struct], bool]


class Resolver:
    """*tell* sends to casemated; *now* is the clock of lifetimes (seconds)."""

    def __init__(self, zone: Zone, forwarder: Forwarder, guard: Guard, tell: Tell, now: Callable[[], float]) -> None:
        self.zone = zone
        self.forwarder = forwarder
        self.guard = guard
        self.watched: tuple[str, ...] = ()
        self.watch_all = False
        #: Pods in quarantine, and the names outside that each may ask for.
        self.held: dict[str, tuple[str, ...]] = {}
        self.cache = Cache()
        self._tell = tell
        self._now = now
        self._asking: dict[Key, asyncio.Future[Answer]] = {}
        self._of_one: Counter[str] = Counter()
        self._under_way = 0
        self._laying: dict[int, asyncio.Future[bool]] = {}
        self._number = 0
        self._counts: Counter[str] = Counter()

    def counters(self) -> WireCounters:
        return WireCounters(**{**self._counts, "spoofed": self.forwarder.spoofed})

    def dropped(self) -> None:
        self._counts["dropped"] += 1

    def laid(self, done: Laid) -> None:
        future = self._laying.pop(done.number, None)
        if future is not None and not future.done():
            future.set_result(not done.failed)

    async def respond(self, data: bytes, viewer: str, *, stream: bool = False) -> bytes:
        """The response to the message *data* from the pod at *viewer*; empty for silence."""
        self._counts["queries"] += 1
        try:
            query = message.read_query(data)
        except MessageBroken:
            self._counts["broken"] += 1
            # Garbage is not answered; what has a header is told that it was not understood.
            is_query = len(data) >= message.HEADER_BYTES and not data[2] & 0x80
            return data[:2] + b"\x80" + bytes((FORMERR,)) + bytes(8) if is_query else b""
        response = await self._respond(query, viewer)
        return response if stream else message.cut(query, response)

    async def _respond(self, query: Query, viewer: str) -> bytes:
        project = self.zone.project(viewer)
        if query.opcode:
            return message.respond(query, NOTIMP)
        if project is None or query.class_ != IN or query.kind == AXFR:
            self._counts["refused"] += 1
            return message.respond(query, REFUSED)
        own = self.zone.answer(project, query.name, query.kind)
        if own is not None:
            self._counts["own"] += 1
            return message.respond(query, own[0], own[1], own=True)
        allowed = self.held.get(viewer)
        if allowed is not None and not any(name_matches(pattern, query.name) for pattern in allowed):
            # A name is a message to whoever serves its domain: a way out that no rule about packets sees.
            self._counts["refused"] += 1
            return message.respond(query, REFUSED)
        if query.kind == ANY:  # RFC 8482: nobody needs all of it but amplifiers
            self._counts["refused"] += 1
            return message.respond(query, NOTIMP)
        # Our own names are answered at once, also to who floods; what has to be waited for is bounded.
        if self._under_way >= MAX_QUESTIONS or self._of_one[viewer] >= MAX_OF_ONE:
            self._counts["dropped"] += 1
            return b""
        self._under_way += 1
        self._of_one[viewer] += 1
        try:
            answer, age_s = await self._outside(query)
            return await self._pass_on(query, answer, age_s, viewer)
        except NoAnswer:
            self._counts["failed"] += 1
            return message.respond(query, SERVFAIL)
        finally:
            self._under_way -= 1
            self._of_one[viewer] -= 1
            if not self._of_one[viewer]:
                del self._of_one[viewer]

    async def _outside(self, query: Query) -> tuple[Answer, int]:
        key: Key = (query.name, query.kind, query.wants_dnssec)
        kept = self.cache.get(key, self._now())
        if kept is not None:
            self._counts["cached"] += 1
            return kept
        asking = self._asking.get(key)
        if asking is not None:
            # The same question once: many at a time would be as many chances for who guesses answers.
            return await asyncio.shield(asking), 0
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asking[key] = future
        self._counts["forwarded"] += 1
        try:
            answer = await self.forwarder.ask(query.question, wants_dnssec=query.wants_dnssec)
            self.cache.put(key, answer, self._now())
            future.set_result(answer)
        except BaseException as error:
            if not future.done():
                future.set_exception(error if isinstance(error, NoAnswer) else NoAnswer("given up"))
                future.exception()  # perhaps nobody else waits for it
            raise
        finally:
            del self._asking[key]
        return answer, 0

    async def _pass_on(self, query: Query, answer: Answer, age_s: int, viewer: str) -> bytes:
        addresses = answer.addresses()
        hints = answer.hints()
        inside = self.guard.refused(query.name, [packed for packed, _ in addresses] + hints)
        if inside is not None:
            self._counts["rebound"] += 1
            self._tell(Refused(viewer, query.name[:256], str(inside)))
            return message.respond(query, REFUSED)
        if addresses or hints:
            told = tuple((str(ipaddress.ip_address(packed)), max(ttl_s - age_s, 0)) for packed, ttl_s in addresses)
            told += tuple((str(ipaddress.ip_address(packed)), 0) for packed in hints)
            if not await self._lay(viewer, query.name[:256], told[:64]):
                return message.respond(query, SERVFAIL)
        return message.pass_on(query, answer, age_s)

    async def _lay(self, viewer: str, name: str, addresses: tuple[tuple[str, int], ...]) -> bool:
        """Tell casemated; where a rule names *name*, wait until the firewall lets the pod go there."""
        if not (self.watch_all or any(name_matches(pattern, name) for pattern in self.watched)):
            self._tell(Answered(viewer, name, addresses))
            return True
        self._counts["held"] += 1
        self._number += 1
        number = self._number
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._laying[number] = future
        lasting = tuple((address, max(ttl_s, MIN_LAID_S)) for address, ttl_s in addresses)
        try:
            if not self._tell(Answered(viewer, name, lasting, number)):
                return False
            async with asyncio.timeout(LAY_S):
                return await future
        except TimeoutError:
            return False
        finally:
            self._laying.pop(number, None)
