"""Packets that wait for a verdict: told to casemated in batches, answered, or denied when their time is over.

Bounded everywhere: the kernel lets a pod send so many a second here, a pod may have so many waiting, and so many wait
at all; what is beyond is dropped and counted. When casemated is away packets are dropped too (clients send their first
packet again, so that a short absence is only a delay); connections in place live on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path

from casemate.host import nfqueue
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
#: One event's worth.
_PACKETS_A_TURN = MAX_BATCH
#: Between two looks at what the kernel dropped.
_LOOK_S = 1.0
#: Between two transactions with answers.
_PERIOD_S = 0.1
#: Answers made ready for the kernel's map between two turns of the loop: some 0.5 ms.
_ROWS_A_TURN = 200

Key = tuple[bytes, bytes, int, int, int]
#: A packet's number, what becomes of it, and its mark from then on.
Verdict = tuple[int, int, int]
#: Whether connections of these ends, protocol and port go on; and for how long, in seconds.
Given = tuple[bool, int]


@dataclass(slots=True)
class Waiting:
    """One connection's packet that waits: which queue, and the kernel's number in it."""

    number: int
    key: Key
    queue: PacketQueue
    packet: int
    until: float


def _is_late(now: float, one: Waiting) -> bool:
    return one.until <= now


@dataclass(slots=True)
class _Turn:
    """Packets of one queue that came together. *heard*: casemated listens; *answered*: what need not be asked."""

    queue: PacketQueue
    is_back: bool
    until: float
    heard: bool
    answered: list[Verdict] = field(default_factory=list)


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
    _of_source: dict[bytes, int] = field(default_factory=dict)
    _next: int = 0
    _settling: asyncio.Lock = field(default_factory=asyncio.Lock)
    _untold: Counter[str] = field(default_factory=Counter)
    #: Packets that the kernel dropped before they came here, as of when that was looked at.
    _dropped: int = 0
    _looked: float = 0.0
    #: Answers that are on their way into the kernel's map.
    _fresh: dict[tuple[bytes, bytes, int, int], Given] = field(default_factory=dict)

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
        pods: dict[bytes, str] = {}
        turn = _Turn(queue, is_back, asyncio.get_running_loop().time() + WAIT_S, self.is_heard())
        for packet in queue.receive(_PACKETS_A_TURN):
            one = self._take(turn, packet)
            if one is None:
                continue
            source, destination, *_ = one.key
            pod = pods.get(source)
            if pod is None:
                pod = pods[source] = self.pod_of(source)
            told.append(ReferredPacket(one.number, source, destination, *one.key[2:], pod))
        if told:
            self.emit(Referred(tuple(told)))
        if turn.answered:
            queue.verdicts(turn.answered)

    def _take(self, turn: _Turn, packet: Queued) -> Waiting | None:
        """The packet waits from now on; or what becomes of it is among the turn's answers."""
        number, _, source, destination, protocol, source_port, port = packet
        answered = turn.answered
        if turn.is_back:
            source, destination, source_port, port = destination, source, port, source_port
        key = (source, destination, protocol, source_port, port)
        if key in self._by_key:
            # A first packet that is sent again is the same connection: one of them waits.
            self.counted["again"] += 1
            answered.append((number, DROP, 0))
            return None
        if self._fresh:
            given = self._fresh.get((source, destination, protocol, port))
            if given is not None:
                answered.append((number, REPEAT, MARK_ANSWERED if given[0] else MARK_DENIED))
                return None
        of_source = self._of_source.get(source, 0)
        why = "" if turn.heard else "away"
        if len(self._by_number) >= MAX_WAITING or of_source >= MAX_WAITING_OF_ONE:
            why = "bound"
        if why or not source:
            self._lose(why or "unreadable")
            answered.append((number, DROP, 0))
            return None
        self._next += 1
        one = Waiting(self._next, key, turn.queue, number, turn.until)
        self._by_key[key] = self._by_number[one.number] = one
        self._of_source[source] = of_source + 1
        self.counted["referred"] += 1
        return one

    def _lose(self, why: str, count: int = 1) -> None:
        self.counted[why] += count
        self._untold[why] += count

    def _drop(self, one: Waiting) -> None:
        self._by_number.pop(one.number, None)
        self._by_key.pop(one.key, None)
        source = one.key[0]
        left = self._of_source[source] - 1
        if left > 0:
            self._of_source[source] = left
        else:
            del self._of_source[source]

    def answer(self, answers: Iterable[ReferralAnswer]) -> None:
        """Let them go on or be denied; what holds longer than the connection goes into the kernel's map.

        Not at once: a transaction for each answer would move the ruleset's generation on so often that others, who
        begin anew when it moves, never come to an end. Until then it is known here.
        """
        for_queue: dict[PacketQueue, list[Verdict]] = {}
        waiting_for = self._by_number.get
        accepted = denied = 0
        for one in answers:
            waiting = waiting_for(one.number)
            if waiting is None:
                # Never asked, answered before, or its time is over.
                self.counted["late"] += 1
                continue
            self._drop(waiting)
            if one.lifetime_s:
                source, destination, protocol, _, port = waiting.key
                self._fresh[source, destination, protocol, port] = one.accept, one.lifetime_s
            # Once more through the chain: its rules label the connection, or deny it and log that.
            if one.accept:
                accepted += 1
                verdict = (waiting.packet, REPEAT, MARK_ANSWERED)
            else:
                denied += 1
                verdict = (waiting.packet, REPEAT, MARK_DENIED)
            for_queue.setdefault(waiting.queue, []).append(verdict)
        self.counted["accepted"] += accepted
        self.counted["denied"] += denied
        for queue, verdicts in for_queue.items():
            queue.verdicts(verdicts)

    async def settle(self) -> None:
        """Bring what was answered into the kernel's map, in one transaction.

        One at a time: what was put together before somebody forgets it must not come after.
        """
        async with self._settling:
            await self._settle()

    async def _settle(self) -> None:
        fresh = dict(self._fresh)
        if not fresh:
            return
        rows: list[Row] = []
        for place, ((source, destination, protocol, port), (accept, lifetime_s)) in enumerate(fresh.items(), 1):
            rows.append(answer_row(source, destination, protocol, port, accept=accept, lifetime_ms=lifetime_s * 1000))
            if place % _ROWS_A_TURN == 0:
                await asyncio.sleep(0)
        await self.kernel.put(rows)
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
            # They are in the order in which they came, and all may wait equally long.
            late = list(takewhile(partial(_is_late, now), self._by_number.values()))
            for one in late:
                self._drop(one)
                self._lose("time_out")
                one.queue.verdict(one.packet, REPEAT, MARK_DENIED)
            self._count_dropped(now)
            if self._untold:
                why = dict(self._untold)
                self._untold.clear()
                self.emit(ReferralsLost(why))

    def _count_dropped(self, now: float) -> None:
        """What the kernel had no room for never came here."""
        if now < self._looked + _LOOK_S:
            return
        self._looked = now
        try:
            states = nfqueue.dropped(Path(nfqueue.STATES).read_text())
        except OSError:
            return  # a kernel without /proc's table
        count = sum(states.get(queue.number, 0) for queue in self._queues)
        if count > self._dropped:
            self._lose("queue", count - self._dropped)
        self._dropped = count

    def abandon(self) -> None:
        """casemated went away: whoever waits is dropped, and asks again by itself."""
        for one in list(self._by_number.values()):
            self._drop(one)
            self._lose("away")
            one.queue.verdict(one.packet, DROP)
