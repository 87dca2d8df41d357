"""Pods that are held: the first packets of new connections to them wait until they are ready again.

Bounded in time and in number; beyond either, clients get a reset. A first packet that is sent again counts once.
Nothing is spent on a pod that is not held: its address is not in the map.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from casemate.host.nfqueue import ACCEPT, DROP, REPEAT, PacketQueue, Queued
from casemate.host.nft import NftFailed
from casemate.hostd.errors import WrongState
from casemate.hostd.protocol_firewall import HoldEnded, Holding, Released
from casemate.network.firewall.kernel import Kernel
from casemate.network.firewall.rules import MARK_REFUSED
from casemate.network.firewall.sets import address_set_row

log = logging.getLogger("casemate.hostd")

#: All pods together; a packet in the kernel takes some 1 KiB.
MAX_HELD_PACKETS = 131_072
MAX_HOLDS = 256
_PACKETS_A_TURN = 256
_VERDICTS_A_TURN = 1000
_PERIOD_S = 0.1
#: One container after another starts anew: the rules stay between them.
_IDLE_S = 5.0

Key = tuple[bytes, int, int, int]


@dataclass(slots=True)
class Hold:
    """A held pod; *waiting*: connections by source, protocol and ports, with the kernel's number of their packet."""

    pod: str
    address: bytes
    until: float
    limit: int
    waiting: dict[Key, int] = field(default_factory=dict)
    refused: int = 0


@dataclass(slots=True)
class Holds:
    """Reads the queue of held packets. *on_ended* is told of a hold whose time was over."""

    kernel: Kernel
    emit: Callable[[HoldEnded], None]
    counted: Counter[str] = field(default_factory=Counter)
    _queue: PacketQueue | None = None
    _by_address: dict[bytes, Hold] = field(default_factory=dict)

    def open(self) -> None:
        """Bind the queue, and read it on the running loop. Raises NetlinkFailed when somebody else has it."""
        self._queue = PacketQueue(self.kernel.spec.queue + 1, MAX_HELD_PACKETS)
        asyncio.get_running_loop().add_reader(self._queue.fileno(), self._on_readable)

    def close(self) -> None:
        if self._queue is not None:
            asyncio.get_running_loop().remove_reader(self._queue.fileno())
            self._queue.close()
            self._queue = None

    def is_held(self, pod: str) -> bool:
        return any(hold.pod == pod for hold in self._by_address.values())

    async def hold(self, pod: str, address: bytes, wait_s: float, limit: int) -> None:
        """Let new connections to *address* wait; where they do already, the time begins anew."""
        now = asyncio.get_running_loop().time()
        known = self._by_address.get(address)
        if known is not None:
            known.until, known.limit = now + wait_s, limit
            return
        if self._queue is None:
            raise WrongState("the packet queue of held connections is somebody else's: nothing can be held")
        if len(self._by_address) >= MAX_HOLDS:
            raise WrongState(f"{MAX_HOLDS} pods are held already")
        self._by_address[address] = Hold(pod, address, now + wait_s, limit)
        try:
            await self.kernel.set_holding(True)
            await self.kernel.put([address_set_row("held", address)])
        except BaseException:
            del self._by_address[address]
            raise

    async def release(self, pod: str, *, accept: bool) -> Released:
        """Let go of what waits for *pod*: on to it, or (not *accept*) reset. Nothing is held: zeros."""
        found = next((hold for hold in self._by_address.values() if hold.pod == pod), None)
        if found is None:
            return Released(0, 0)
        waited = await self._end(found, accept=accept)
        return Released(waited, found.refused)

    async def _end(self, hold: Hold, *, accept: bool) -> int:
        # First out of the kernel's map, so that nothing comes to wait after the last was let go.
        await self.kernel.take([address_set_row("held", hold.address)])
        self._drain()
        self._by_address.pop(hold.address, None)
        count = 0
        for packet in hold.waiting.values():
            self._go(packet, accept=accept)
            count += 1
            if count % _VERDICTS_A_TURN == 0:
                await asyncio.sleep(0)
        hold.waiting.clear()
        self.counted["released" if accept else "refused"] += count
        return count

    def _go(self, packet: int, *, accept: bool) -> None:
        assert self._queue is not None
        if accept:
            self._queue.verdict(packet, ACCEPT)
        else:
            self._queue.verdict(packet, REPEAT, MARK_REFUSED)

    def _on_readable(self) -> None:
        assert self._queue is not None
        for packet in self._queue.receive(_PACKETS_A_TURN):
            self._take(packet)

    def _drain(self) -> None:
        assert self._queue is not None
        while found := self._queue.receive(_PACKETS_A_TURN):
            for packet in found:
                self._take(packet)

    def _take(self, packet: Queued) -> None:
        assert self._queue is not None
        hold = self._by_address.get(packet.destination)
        if hold is None:
            # It was released while the packet was on its way to us.
            self._go(packet.id, accept=True)
            return
        key = (packet.source, packet.protocol, packet.source_port, packet.port)
        known = hold.waiting.get(key)
        if known is not None:
            # The newest waits on: the kernel drops all that it has queued when somebody takes a chain away.
            self._queue.verdict(known, DROP)
            hold.waiting[key] = packet.id
        elif len(hold.waiting) >= hold.limit:
            hold.refused += 1
            self.counted["refused"] += 1
            self._go(packet.id, accept=False)
        else:
            hold.waiting[key] = packet.id
            self.counted["held"] += 1

    def state(self) -> tuple[Holding, ...]:
        now = asyncio.get_running_loop().time()
        return tuple(
            Holding(hold.pod, len(hold.waiting), hold.refused, max(0.0, hold.until - now))
            for hold in self._by_address.values()
        )

    def addresses(self) -> list[bytes]:
        return list(self._by_address)

    async def run(self, on_ended: Callable[[str], None]) -> None:
        """For ever: end the holds whose time is over; and the looking for held pods, when none has been for a while."""
        idle_since = 0.0
        while True:
            await asyncio.sleep(_PERIOD_S)
            now = asyncio.get_running_loop().time()
            try:
                for hold in [one for one in self._by_address.values() if one.until <= now]:
                    refused = await self._end(hold, accept=False) + hold.refused
                    on_ended(hold.pod)
                    self.emit(HoldEnded(hold.pod, "time", refused))
                if self._by_address:
                    idle_since = now
                elif self.kernel.holding and now - idle_since > _IDLE_S:
                    # What was refused has gone through the rules again by now.
                    await self.kernel.set_holding(False)
            except NftFailed as error:
                # Somebody took the table away, and it is being made again: the next look ends what is to end.
                log.warning("holds could not be ended: %s", error)
