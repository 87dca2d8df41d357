"""Holds without a kernel: what becomes of the daemon when somebody takes the table away just then."""

from __future__ import annotations

import asyncio

from casemate.host.nft import NftFailed
from casemate.hostd.holding import Holds


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
