"""casemated's side of flow records: the recorder kept alive and told who is who, and readers of what it wrote."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TypeVar

import msgspec

from casemate.hostd.protocol_visibility import FlowsWatch
from casemate.node.core import Core, report
from casemate.node.directory import Directory, Entry
from casemate.node.errors import TooMany
from casemate.node.flows import query
from casemate.node.flows.judging import connections, judged
from casemate.node.flows.query import Wanted
from casemate.node.flows.recorder import batches
from casemate.node.flows.wire import (
    ENCODER,
    FROM_RECORDER,
    MAX_FIVES,
    MAX_ITEMS,
    MAX_LABELS_BYTES,
    MAX_NOTE_BYTES,
    MAX_RULE_BYTES,
    Counters,
    End,
    Ends,
    Five,
    Names,
    Progress,
    Question,
    Questions,
    ReferralTold,
    Referred,
    RulesChanged,
    Ruling,
    Rulings,
    bounded,
)
from casemate.node.sidecar import Sidecar, keep_alive, started
from casemate.policy.identity import Connection
from casemate.spec.api.flows import FlowCounters, FlowGap, FlowList, FlowMap, FlowRow

MODULE = "casemate.node.flows.child"
#: Descriptors that hostd gives: conntrack's events, the log of verdicts, the log of first TLS packets.
_SOCKETS = 3
MAX_FOLLOWERS = 64
MAX_READERS = 4
_HEARTBEAT_S = 15.0
T = TypeVar("T")

#: Which rule decides; from the policy in force. Must not block; called on the loop with at most some hundred.
Judge = Callable[[Sequence[Question]], Sequence[Ruling]]


class Flows:
    """Flow records of this node."""

    def __init__(self, core: Core, directory: Directory) -> None:
        self._core = core
        self._directory = directory
        self.judge: Judge = lambda questions: judged(core.policy, questions)
        self.path = f"{core.settings.text('paths.state')}/flows.db"
        self.capacity = core.settings.number("flows.records")
        self._sidecar: Sidecar | None = None
        self._hostd_up = asyncio.Event()
        self._counters = Counters()
        self._waiting: set[asyncio.Future[None]] = set()
        self._followers = 0
        self._readers = asyncio.Semaphore(MAX_READERS)
        self._stamp = 0
        directory.listeners.append(self._changed)
        core.policy.changed.append(self.rules_changed)
        core.flows_between = self.connections_between

    # --- the recorder ----------------------------------------------------------------------------------------------

    def hostd_changed(self, up: bool) -> None:
        """The connection to hostd came or went; the recorder's own sockets live on either way."""
        if up:
            self._hostd_up.set()
        else:
            self._hostd_up.clear()

    async def run(self) -> None:
        """Keep a recorder at work; never returns. Nothing is recorded where flows.records is 0."""
        if self.capacity:
            await keep_alive("the flow recorder", self._hostd_up, self._one_life)

    async def _one_life(self) -> None:
        asked = self._core.hostd.call(FlowsWatch())
        sidecar = await started(asked, _SOCKETS, MODULE, [self.path, str(self.capacity)], self._on_message)
        self._sidecar = sidecar
        try:
            everybody = batches([_end(entry) for entry in self._directory.pods.values()])
            self._send(Ends(replace=True))
            for part in everybody:
                self._send(Ends(part))
            code = await sidecar.ended()
            report(f"the flow recorder ended ({code}); it is started again")
        finally:
            self._sidecar = None
            await sidecar.close()

    def _send(self, message: msgspec.Struct) -> None:
        if self._sidecar is not None:
            self._sidecar.send(ENCODER.encode(message))

    def _on_message(self, data: bytes) -> None:
        message = FROM_RECORDER.decode(data)
        match message:
            case Questions():
                self._send(Rulings(message.number, tuple(self.judge(message.questions))))
            case Progress():
                self._counters = message.counters
                self._stamp = message.stamp
                for future in self._waiting:
                    if not future.done():
                        future.set_result(None)
                self._waiting.clear()

    def _changed(self, old: Entry | None, new: Entry | None) -> None:
        gone = (old.address,) if old is not None and (new is None or new.address != old.address) else ()
        self._send(Ends((_end(new),) if new is not None else (), gone))

    def rules_changed(self) -> None:
        """Another policy is in force: what decided before need not decide now."""
        self._send(RulesChanged())

    def answered(self, viewer: str, name: str, addresses: Iterable[tuple[str, int]]) -> None:
        """The pod at *viewer* was told that *name* is at *addresses* (with lifetimes in seconds)."""
        self._send(Names(tuple((viewer, address, name, ttl_s) for address, ttl_s in addresses)))

    def referred(self, told: Iterable[tuple[ReferralTold, Sequence[Five]]]) -> None:
        """Connections were referred, and answered; call it before the answers go to the kernel."""
        if self._sidecar is None:
            return
        places: dict[ReferralTold, int] = {}
        answers: list[ReferralTold] = []
        pending: list[tuple[Five, int]] = []
        for answer, fives in told:
            for start in range(0, len(fives), MAX_FIVES):
                part = fives[start : start + MAX_FIVES]
                if len(pending) + len(part) > MAX_FIVES or (answer not in places and len(answers) >= MAX_ITEMS):
                    self._send(Referred(tuple(answers), tuple(pending)))
                    answers, pending, places = [], [], {}
                place = places.get(answer)
                if place is None:
                    place = places[answer] = len(answers)
                    rule, note = bounded(answer.rule, MAX_RULE_BYTES), bounded(answer.note, MAX_NOTE_BYTES)
                    answers.append(msgspec.structs.replace(answer, rule=rule, note=note))
                pending += [(five, place) for five in part]
        if pending:
            self._send(Referred(tuple(answers), tuple(pending)))

    @property
    def newest_stamp(self) -> int:
        """The stamp of what was written last, as far as the recorder has told."""
        return self._stamp

    # --- readers ---------------------------------------------------------------------------------------------------

    def counters(self) -> FlowCounters:
        return FlowCounters(
            watching=self._sidecar is not None, capacity=self.capacity, **msgspec.structs.asdict(self._counters)
        )

    async def _read(self, work: Callable[[sqlite3.Connection], T], absent: T) -> T:
        """*work* with a connection of its own, in a thread; *absent* before anything was recorded."""

        def run() -> T:
            try:
                connection = query.connect(self.path)
            except sqlite3.OperationalError:
                return absent
            with contextlib.closing(connection):
                return work(connection)

        async with self._readers:
            return await asyncio.to_thread(run)

    async def last(self, wanted: Wanted, limit: int) -> FlowList:
        """The newest *limit* records that are *wanted*, with the gaps in that time."""
        query.condition(wanted)  # raises here, for a clear word

        def work(db: sqlite3.Connection) -> tuple[list[FlowRow], tuple[FlowGap, ...]]:
            return query.last(db, wanted, limit), query.gaps(db, wanted.since, wanted.until)

        nothing: tuple[list[FlowRow], tuple[FlowGap, ...]] = ([], ())
        rows, gaps = await self._read(work, nothing)
        return FlowList(tuple(rows), self.counters(), gaps)

    async def follow(self, wanted: Wanted, after: int | None) -> AsyncIterator[tuple[int, FlowRow] | None]:
        """Records as they begin and end, with the stamp to go on from; None stands for "nothing for a while"."""
        if self._followers >= MAX_FOLLOWERS:
            raise TooMany(f"{MAX_FOLLOWERS} clients follow flows already")
        query.condition(wanted)
        self._followers += 1
        try:
            position = after if after is not None else await self._read(query.newest_stamp, 0)
            while True:
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.add(future)
                upto = max(self._stamp, position)
                rows, position = await self._page(wanted, position, upto)
                for row in rows:
                    yield position, row
                if position < upto:
                    self._waiting.discard(future)
                    continue
                try:
                    async with asyncio.timeout(_HEARTBEAT_S):
                        await future
                except TimeoutError:
                    yield None
                finally:
                    self._waiting.discard(future)
        finally:
            self._followers -= 1

    async def _page(self, wanted: Wanted, after: int, upto: int) -> tuple[list[FlowRow], int]:
        nothing: tuple[list[FlowRow], int] = ([], after)
        return await self._read(lambda db: query.changed(db, wanted, after, upto), nothing)

    async def service_map(self, wanted: Wanted) -> FlowMap:
        query.condition(wanted)
        now = self._core.clock()
        return await self._read(lambda db: query.service_map(db, wanted, now), FlowMap("", "", (), ()))

    async def connections_between(self, since: float, verdicts: tuple[str, ...] = ()) -> list[tuple[Connection, int]]:
        """What was seen since then, with how often: what ``policy simulate`` and ``suggest`` replay."""
        nothing: list[tuple[FlowRow, int]] = []
        wanted = Wanted(since=since, verdict=verdicts)
        rows = await self._read(lambda db: query.distinct(db, wanted), nothing)
        return connections(self._core.policy, rows)


def _end(entry: Entry) -> End:
    labels = bounded(entry.labels_text(), MAX_LABELS_BYTES)
    return End(entry.address, "pod", entry.project, entry.name, entry.pod, 0, labels)
