"""Packets that wait for a verdict: told to casemated in batches, answered, or denied when their time is over.

Bounded everywhere: the kernel lets a pod send so many a second here, a pod may have so many waiting, and so many wait
at all; what is beyond is dropped and counted. When casemated is away packets are dropped too (clients send their first
packet again, so that a short absence is only a delay); connections in place live on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from casemate.host.nfqueue import DROP, REPEAT, PacketQueue, Queued
from casemate.host.nft import NftFailed
from casemate.hostd.protocol_firewall import (
    MAX_BATCH,
    FirewallEvent,
    ReferralAnswer,
    ReferralsLost,
    Referred,
    ReferredPacket,
)
from casemate.network.firewall.kernel import Kernel
from casemate.network.firewall.rules import MARK_ANSWERED, MARK_DENIED
from casemate.network.firewall.sets import Row, answer_row

log = logging.getLogger("casemate.hostd")

#: The kernel holds as many packets; each entry here is some 600 bytes.
MAX_WAITING = 16_384
#: One pod has no more connections waiting: 1 in 16 of all, so that 16 floods at a time are needed to fill it.
MAX_WAITING_OF_ONE = 1024
#: A person needs time; TCP's first packet is sent again for about two minutes.
WAIT_S = 60.0
_PACKETS_A_TURN = 256
#: Between two transactions with answers.
_PERIOD_S = 0.1

Key = tuple[bytes, bytes, int, int, int]


@dataclass(slots=True)
class Waiting:
    """One connection's packets: the first, and those the other way (queue, the kernel's number)."""

    number: int
    key: Key
    packets: list[tuple[PacketQueue, int]]
    until: float


@dataclass(slots=True)
class Referrals:
    """Reads the queues *first* on and *back*. *is_heard*: whether casemated is connected; *pod_of* an address."""

    kernel: Kernel
    emit: Callable[[FirewallEvent], None]
    is_heard: Callable[[], bool]
    pod_of: Callable[[bytes], str]
    counted: Counter[str] = field(default_factory=Counter)
    _queues: list[PacketQueue] = field(default_factory=list)
    _by_key: dict[Key, Waiting] = field(default_factory=dict)
    _by_number: dict[int, Waiting] = field(default_factory=dict)
    _in_order: deque[Waiting] = field(default_factory=deque)
    _of_source: Counter[bytes] = field(default_factory=Counter)
    _next: int = 0
    _untold: Counter[str] = field(default_factory=Counter)
    #: Answers that are on their way into the kernel's map.
    _fresh: dict[tuple[bytes, bytes, int, int], tuple[bool, Row]] = field(default_factory=dict)

    def open(self) -> None:
        """Bind both queues, and read them on the running loop. Raises NetlinkFailed when somebody else has one."""
        spec = self.kernel.spec
        for number, is_back in ((spec.queue, False), (spec.queue + 2, True)):
            queue = PacketQueue(number, MAX_WAITING)
            self._queues.append(queue)
            asyncio.get_running_loop().add_reader(queue.fileno(), self._on_readable, queue, is_back)

    def close(self) -> None:
        for queue in self._queues:
            asyncio.get_running_loop().remove_reader(queue.fileno())
            queue.close()
        self._queues.clear()

    @property
    def waiting(self) -> int:
        return len(self._by_number)

    def _on_readable(self, queue: PacketQueue, is_back: bool) -> None:
        told: list[ReferredPacket] = []
        now = asyncio.get_running_loop().time()
        for packet in queue.receive(_PACKETS_A_TURN):
            one = self._take(queue, packet, is_back, now)
            if one is not None:
                told.append(one)
        for start in range(0, len(told), MAX_BATCH):
            self.emit(Referred(tuple(told[start : start + MAX_BATCH])))

    def _take(self, queue: PacketQueue, packet: Queued, is_back: bool, now: float) -> ReferredPacket | None:
        source, destination = packet.source, packet.destination
        ports = packet.source_port, packet.port
        if is_back:
            source, destination, ports = destination, source, (ports[1], ports[0])
        key = (source, destination, packet.protocol, *ports)
        known = self._by_key.get(key)
        if known is not None:
            # A first packet that is sent again is the same connection: one of them waits.
            self.counted["again"] += 1
            queue.verdict(packet.id, DROP)
            return None
        given = self._fresh.get((source, destination, packet.protocol, ports[1]))
        if given is not None:
            queue.verdict(packet.id, REPEAT, MARK_ANSWERED if given[0] else MARK_DENIED)
            return None
        why = "away" if not self.is_heard() else ""
        if len(self._by_number) >= MAX_WAITING or self._of_source[source] >= MAX_WAITING_OF_ONE:
            why = "bound"
        if why or not source:
            self._lose(why or "unreadable")
            queue.verdict(packet.id, DROP)
            return None
        self._next += 1
        one = Waiting(self._next, key, [(queue, packet.id)], now + WAIT_S)
        self._by_key[key] = self._by_number[one.number] = one
        self._in_order.append(one)
        self._of_source[source] += 1
        self.counted["referred"] += 1
        return ReferredPacket(one.number, source, destination, packet.protocol, *ports, self.pod_of(source))

    def _lose(self, why: str) -> None:
        self.counted[why] += 1
        self._untold[why] += 1

    def _drop(self, one: Waiting) -> None:
        self._by_number.pop(one.number, None)
        self._by_key.pop(one.key, None)
        left = self._of_source[one.key[0]] - 1
        if left > 0:
            self._of_source[one.key[0]] = left
        else:
            del self._of_source[one.key[0]]

    def answer(self, answers: Iterable[ReferralAnswer]) -> None:
        """Let them go on or be denied; what holds longer than the connection goes into the kernel's map.

        Not at once: a transaction for each answer would move the ruleset's generation on so often that others, who
        begin anew when it moves, never come to an end. Until then it is known here.
        """
        for one in answers:
            waiting = self._by_number.get(one.number)
            if waiting is None:
                self.counted["late"] += 1
                continue
            self._drop(waiting)
            if one.lifetime_s:
                source, destination, protocol, _, port = waiting.key
                lifetime_ms = one.lifetime_s * 1000
                row = answer_row(source, destination, protocol, port, accept=one.accept, lifetime_ms=lifetime_ms)
                self._fresh[source, destination, protocol, port] = one.accept, row
            self.counted["accepted" if one.accept else "denied"] += 1
            for queue, packet in waiting.packets:
                # Once more through the chain: its rules label the connection, or deny it and log that.
                queue.verdict(packet, REPEAT, MARK_ANSWERED if one.accept else MARK_DENIED)

    async def settle(self) -> None:
        """Bring what was answered into the kernel's map."""
        fresh = dict(self._fresh)
        if not fresh:
            return
        await self.kernel.put([row for _, row in fresh.values()])
        for key, given in fresh.items():
            if self._fresh.get(key) is given:
                del self._fresh[key]

    async def _settle_or_say(self) -> None:
        try:
            await self.settle()
        except NftFailed as error:
            # The table is being made again: who asks next is referred again.
            log.warning("answers to referrals are not in the kernel's map: %s", error)
            self._fresh.clear()

    async def run(self) -> None:
        """For ever: deny what waited too long, and tell of what was lost."""
        while True:
            await asyncio.sleep(_PERIOD_S)
            await self._settle_or_say()
            now = asyncio.get_running_loop().time()
            while self._in_order and (
                self._in_order[0].until <= now or self._in_order[0].number not in self._by_number
            ):
                one = self._in_order.popleft()
                if one.number in self._by_number:
                    self._drop(one)
                    self._lose("time_out")
                    for queue, packet in one.packets:
                        queue.verdict(packet, REPEAT, MARK_DENIED)
            if self._untold:
                why = dict(self._untold)
                self._untold.clear()
                self.emit(ReferralsLost(why))

    def abandon(self) -> None:
        """casemated went away: whoever waits is dropped, and asks again by itself."""
        for one in list(self._by_number.values()):
            self._drop(one)
            self._lose("away")
            for queue, packet in one.packets:
                queue.verdict(packet, DROP)
        self._in_order.clear()
