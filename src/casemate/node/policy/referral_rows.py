"""The record of referrals: a row for each with its reason, written many at a time, and those who watch them come."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import islice

from casemate.node.core import Core
from casemate.node.errors import TooMany
from casemate.node.policy import referral_packs, store
from casemate.node.policy.referral_packs import Run
from casemate.spec.api.policy import ReferralRow

#: Rows that wait to be written; more in one moment are counted, not kept.
MAX_UNWRITTEN = 50_000
MAX_WATCHERS = 64
#: Rows that wait for one watcher; one that falls behind by more loses the oldest, and is told so by their numbers.
MAX_BEHIND = 1_000
FLUSH_S = 0.1


class Rows:
    """Rows of *core*'s store. *counters* are told of what could not be kept."""

    def __init__(self, core: Core, counters: Counter[str]) -> None:
        self._core = core
        self._counters = counters
        self._unwritten: list[ReferralRow] = []
        self._runs: list[Run] = []
        self._count = 0
        #: Those that are being written.
        self._under_way: tuple[list[ReferralRow], list[Run]] = ([], [])
        self._writing = False
        self._watchers: set[asyncio.Queue[tuple[ReferralRow, bool]]] = set()
        self._last = 0

    async def load(self) -> None:
        """Where the numbers stand."""
        self._last = await self._core.db.read(store.last_referral)

    def number(self, count: int = 1) -> int:
        """The first of *count* numbers that no referral has had."""
        first = self._last + 1
        self._last += count
        return first

    def keep(self, row: ReferralRow, *, prompted: bool) -> None:
        """Tell watchers of a decided row, and write it with the others of this moment."""
        self.tell(row, prompted=prompted)
        if self._has_room(1):
            self._unwritten.append(row)

    def keep_runs(self, runs: Iterable[Run]) -> None:
        """The same with many that rules decided."""
        for run in runs:
            if self._watchers:
                for row in reversed(list(referral_packs.rows(run))):
                    self.tell(row, prompted=False)
            if self._has_room(len(run.ports)):
                self._runs.append(run)

    def _has_room(self, count: int) -> bool:
        """Whether *count* more can wait to be written; then somebody will write them."""
        if self._count + count > MAX_UNWRITTEN:
            self._counters["rows_dropped"] += count
            return False
        self._count += count
        if not self._writing:
            self._writing = True
            self._core.spawn(self._write(), "rows of referrals")
        return True

    async def _write(self) -> None:
        try:
            while self._count:
                await asyncio.sleep(FLUSH_S)
                rows, runs = self._under_way = self._unwritten, self._runs
                self._unwritten, self._runs, self._count = [], [], 0
                await self._core.db.write(lambda db, rows=rows, runs=runs: store.add_referrals(db, rows, runs))  # type: ignore[misc]
                self._under_way = ([], [])
        finally:
            self._writing = False
            self._under_way = ([], [])

    async def newest(self, limit: int, projects: frozenset[str] | None) -> Iterable[ReferralRow]:
        """The newest decided rows, the newest first: those that wait to be written, and *limit* of the store's."""
        # Before the store is read: meanwhile they may be written.
        runs = reversed([*self._under_way[1], *self._runs])
        unwritten = [*self._under_way[0], *self._unwritten]
        unwritten += islice((row for run in runs for row in referral_packs.rows(run)), limit)
        unwritten.sort(key=lambda row: -row.number)
        decided = await self._core.db.read(lambda db: store.referrals(db, limit, projects))
        known = {row.number for row in unwritten}
        return (*unwritten[:limit], *(row for row in decided if row.number not in known))

    def tell(self, row: ReferralRow, *, prompted: bool) -> None:
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()
                self._counters["watchers_behind"] += 1
            queue.put_nowait((row, prompted))

    async def watch(
        self, waiting: Callable[[], Iterable[ReferralRow]], *, waiting_only: bool
    ) -> AsyncIterator[ReferralRow | None]:
        """Rows as they are asked and answered, beginning with those that are *waiting*; None: nothing for a while."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise TooMany(f"{MAX_WATCHERS} clients watch referrals already")
        queue: asyncio.Queue[tuple[ReferralRow, bool]] = asyncio.Queue(MAX_BEHIND)
        self._watchers.add(queue)
        try:
            for row in list(waiting()):
                yield row
            while True:
                try:
                    async with asyncio.timeout(15.0):
                        row, prompted = await queue.get()
                except TimeoutError:
                    yield None
                    continue
                if prompted or not waiting_only:
                    yield row
        finally:
            self._watchers.discard(queue)
