"""Holds without a kernel: what becomes of the daemon when somebody takes the table away just then."""

from __future__ import annotations

import asyncio

from casemate.host.nfqueue import DROP, Queued
from casemate.host.nft import NftFailed
from casemate.hostd.holding import Hold, Holds


class Table:
    """A kernel that has looked for held pods, and whose table is gone at the first try to change that."""

    def __init__(self) -> None:
        self.holding = True
        self.tries = 0
        self.done = asyncio.Event()

    async def set_holding(self, holding: bool) -> None:
        self.tries += 1
        if self.tries == 1:
            raise NftFailed("chain pre: ENOENT", errno="ENOENT")
        self.holding = holding
        self.done.set()


def test_a_table_that_is_gone_ends_no_daemon() -> None:
    async def scene() -> None:
        table = Table()
        holds = Holds(table, lambda _event: None)  # type: ignore[arg-type]  # what it asks of a kernel here
        task = asyncio.create_task(holds.run(lambda _pod: None))
        async with asyncio.timeout(30):
            await table.done.wait()
        assert not task.done()
        assert (table.tries, table.holding) == (2, False)
        task.cancel()

    asyncio.run(scene())


class Queue:
    """The kernel's queue: what it gives, and the verdicts that it is given."""

    def __init__(self, *packets: Queued) -> None:
        self.packets = [list(packets)]
        self.verdicts: list[tuple[int, int]] = []

    def receive(self, _most: int) -> list[Queued]:
        return self.packets.pop() if self.packets else []

    def verdict(self, packet: int, verdict: int, mark: int = 0) -> None:
        self.verdicts.append((packet, verdict))


def test_of_a_packet_that_is_sent_again_the_newest_waits() -> None:
    """The kernel drops all that is queued when somebody takes a chain away: it may not have the first any more."""
    source, pod = bytes((10, 0, 0, 2)), bytes((10, 0, 0, 3))
    holds = Holds(Table(), lambda _event: None)  # type: ignore[arg-type]  # what it asks of a kernel here
    queue = holds._queue = Queue(  # type: ignore[assignment]
        Queued(7, 1, source, pod, 6, 40_000, 80), Queued(8, 1, source, pod, 6, 40_000, 80)
    )
    hold = holds._by_address[pod] = Hold("p", pod, 0.0, limit=1)
    holds._drain()
    assert queue.verdicts == [(7, DROP)]
    assert list(hold.waiting.values()) == [8]
    assert (hold.refused, holds.counted) == (0, {"held": 1})
