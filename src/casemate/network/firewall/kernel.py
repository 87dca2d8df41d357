"""The firewall's table in the kernel: made, changed in transactions, looked at.

Everything that changes the table takes one lock, so that small changes wait for large ones without stopping the loop;
what is large is sent from a thread (the kernel works there for up to some 4 us an element).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from casemate.host import bpf
from casemate.host import nft_expressions as e
from casemate.host.nft import Followed, NftFailed
from casemate.host.nft_netlink import (
    DELETE_ELEMENTS,
    DESTROY_ELEMENTS,
    NEW_ELEMENTS,
    Batch,
    NftSocket,
    destroys_elements,
    has_queue,
    takes_rule,
)
from casemate.network.firewall import content, guard, rules, sparing, young
from casemate.network.firewall.sets import ALL_SETS, TIMED, Row, verdict_rows
from casemate.spec.errors import HostLacks

#: A transaction above this many rows is sent from a thread.
_LARGE_ROWS = 500
#: Rows packed between two turns of the loop.
_TURN_ROWS = 2000


@dataclass(slots=True)
class Change:
    """What one transaction does: *deletes*, then *adds*; and the *generation* that its rules bear afterwards.

    *generation* None leaves it as it is. *flush* are sets that are emptied before.
    """

    deletes: Iterable[Row] = ()
    adds: Iterable[Row] = ()
    generation: int | None = None
    flush: tuple[str, ...] = ()
    size: int = 0


@dataclass(slots=True)
class Kernel:
    """The table of *spec* in the network namespace of whoever made this."""

    spec: rules.TableSpec
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _socket: NftSocket = field(default_factory=NftSocket)
    followed: Followed = field(default_factory=Followed)
    holding: bool = False
    #: Among so many pods the memory for parts of packets is divided, see :mod:`casemate.network.firewall.guard`; 0: it
    #: is not.
    strained: int = 0
    #: Processor time that the last look at every element took.
    compared_s: float = 0.0
    _destroys: bool = False
    _rules: dict[str, int] = field(default_factory=dict)
    #: Of the rules of each chain, as far as they are known to be ours.
    _fingerprints: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: Elements of each set, and the ruleset's generation at which they were counted.
    _sizes: tuple[int, dict[str, int]] = field(default_factory=lambda: (-1, {}))

    def probe(self) -> None:
        """Find out what the kernel can. Raises :class:`HostLacks` where it has no packet queue."""
        self._destroys = destroys_elements(self._socket)
        if has_queue(self._socket, [e.queue(self.spec.queue)]) is None:
            if has_queue(self._socket, [e.queue_by_target(self.spec.queue)]) is None:
                raise HostLacks(
                    "the kernel has neither nftables' queue nor xtables' NFQUEUE: nothing can be referred or held",
                    remedy="Use a kernel with CONFIG_NFT_QUEUE, or CONFIG_NETFILTER_XT_TARGET_NFQUEUE and NFT_COMPAT.",
                )
            self.spec = replace(self.spec, queue_target=True)
        group, timeouts = self.spec.hello_group, young.begins(brief=True)
        tells_hellos = group and takes_rule(self._socket, young.hello(group))
        brief = takes_rule(self._socket, timeouts, young.add_timeouts)
        spares = bpf.serves_ingress(sparing.NOTHING, sparing.nothing())
        self.spec = replace(self.spec, hello_group=group if tells_hellos else 0, brief=brief, spares=spares)

    def close(self) -> None:
        self._socket.close()

    async def make(self, rows: Iterable[Row], generation: int, size: int = 0) -> None:
        """The table anew, in one transaction, with *rows* in it; what was there goes."""
        async with self.lock:
            batch = Batch(self.spec.table)
            batch.new_table()
            batch.delete_table()
            batch.new_table()
            for one in ALL_SETS:
                batch.new_set(one)
            rules.add_table(batch, self.spec)
            self.strained = 0
            rules.add_switch(batch, self.spec, generation)
            if self.holding:
                rules.add_holds(batch, self.spec, self.holding)
            await self._pack(batch, NEW_ELEMENTS, chain(verdict_rows(), rows))
            await self._commit(batch, size)
            self._rules, self._fingerprints = {}, {}
            self._wrote(batch)

    async def rewrite(self, generation: int) -> None:
        """Every rule anew, in one transaction; sets and their elements, counters and connections stay."""
        async with self.lock:
            batch = Batch(self.spec.table)
            rules.add_table(batch, self.spec)
            rules.add_switch(batch, self.spec, generation)
            batch.flush_set("parts4")
            self.strained = 0
            if self.holding:
                rules.add_holds(batch, self.spec, self.holding)
            self._rewrite_verdicts(batch)
            # The kernel goes through all of a map for each chain that looks into it.
            await self._commit(batch, _LARGE_ROWS + 1)
            self._wrote(batch)

    def _wrote(self, batch: Batch) -> None:
        """Rules of *batch* are in the kernel; how the kernel tells them is not known yet."""
        self._rules.update(batch.rules)
        for name in batch.rules:
            self._fingerprints.pop(name, None)

    async def change(self, change: Change) -> None:
        """One transaction. Raises :class:`NftFailed`; nothing has changed then."""
        async with self.lock:
            batch = Batch(self.spec.table)
            for name in change.flush:
                batch.flush_set(name)
            await self._pack(batch, DELETE_ELEMENTS, change.deletes)
            await self._pack(batch, NEW_ELEMENTS, change.adds)
            if change.generation is not None:
                _flush_generation(batch)
                rules.add_switch(batch, self.spec, change.generation)
            await self._commit(batch, change.size)
            self._wrote(batch)

    async def set_holding(self, holding: bool) -> None:
        """Have new connections looked for in the set of held pods, or not: that costs every packet something."""
        async with self.lock:
            if self.holding == holding:
                return
            batch = Batch(self.spec.table)
            rules.add_holds(batch, self.spec, holding)
            await self._commit(batch, 0)
            self.holding = holding
            self._wrote(batch)

    async def senders_of_parts(self) -> int:
        """Pods that have sent parts of packets within a minute."""
        async with self.lock:
            return sum(1 for _ in self._socket.elements(self.spec.table, "parts4"))

    async def set_strained(self, pods: int, memory_bytes: int) -> None:
        """Have pods send few parts of packets, such as *pods* may; or (0) as many as they may."""
        async with self.lock:
            batch = Batch(self.spec.table)
            batch.flush_chain("parts")
            # An element keeps the rate with which it was made.
            batch.flush_set("parts4")
            for rule in guard.parts(guard.share(memory_bytes, pods) if pods else None):
                batch.new_rule("parts", rule)
            await self._commit(batch, 0)
            self.strained = pods
            self._wrote(batch)

    async def put(self, rows: Sequence[Row]) -> None:
        """Add elements; a timed one that is there begins its time anew."""
        async with self.lock:
            batch = Batch(self.spec.table)
            if self._destroys:
                _pack_now(batch, DESTROY_ELEMENTS, rows)
            _pack_now(batch, NEW_ELEMENTS, rows)
            await self._commit(batch, len(rows))

    async def take(self, rows: Sequence[Row]) -> None:
        """Delete elements; those that are not there any more are passed over."""
        async with self.lock:
            if self._destroys:
                batch = Batch(self.spec.table)
                _pack_now(batch, DESTROY_ELEMENTS, rows)
                await self._commit(batch, len(rows))
                return
            for row in rows:
                batch = Batch(self.spec.table)
                _pack_now(batch, DELETE_ELEMENTS, [row])
                try:
                    with self.followed.own_change():
                        self._socket.commit(batch)
                except NftFailed as error:
                    if error.facts.get("errno") != "ENOENT":
                        raise

    async def _pack(self, batch: Batch, kind: int, rows: Iterable[Row]) -> None:
        """Put *rows* into the batch, the loop having its turn in between."""
        held: list[Row] = []
        for row in rows:
            if row.name in TIMED:
                self._pack_timed(batch, kind, row)
                continue
            held.append(row)
            if len(held) >= _TURN_ROWS:
                _pack_now(batch, kind, held)
                held = []
                await asyncio.sleep(0)
        _pack_now(batch, kind, held)

    def _pack_timed(self, batch: Batch, kind: int, row: Row) -> None:
        """An element that may have gone by itself, or whose time is to begin anew."""
        if self._destroys:
            batch.elements(DESTROY_ELEMENTS, row.name, [row.element])
        if kind == NEW_ELEMENTS:
            batch.elements(NEW_ELEMENTS, row.name, [row.element])

    async def _commit(self, batch: Batch, rows: int) -> None:
        with self.followed.own_change():
            if rows > _LARGE_ROWS:
                await asyncio.to_thread(self._socket.commit, batch)
            else:
                self._socket.commit(batch)

    def what_lacks(self) -> list[str]:
        """Chains and sets that are not as they were made; nothing when all are. Some 0.4 ms."""
        if self.lock.locked():
            return []
        try:
            found = self._socket.fingerprints(self.spec.table)
            closed = self._socket.dropping(self.spec.table)
            if self._socket.is_dormant(self.spec.table):
                return [f"table inet {self.spec.table}, which sleeps,"]
        except NftFailed as error:
            # Others change rules faster than they can be read: it is looked at again soon.
            if error.facts.get("errno") == "EINTR":
                return []
            raise
        if not found:
            return [f"table inet {self.spec.table}"]
        lost = [f"chain {name}" for name, count in self._rules.items() if len(found.get(name, ())) != count]
        lost += [f"chain {name}" for name in closed if name in rules.BASE_CHAINS]
        lost += [
            f"a rule of chain {name}"
            for name, ours in self._fingerprints.items()
            if len(found.get(name, ())) == len(ours) and found[name] != ours
        ]
        here = set(self._socket.sets(self.spec.table))
        return lost + [f"set {one.name}" for one in ALL_SETS if one.name not in here]

    @property
    def knows_rules(self) -> bool:
        """Whether the kernel's words for all rules are known."""
        return self._rules.keys() <= self._fingerprints.keys()

    def note_rules(self) -> None:
        """Remember the kernel's words for the rules that were written last, where nobody else has changed any since.
        0.3 ms, once after each change of rules."""
        at = self.followed.at
        if self.knows_rules or self.lock.locked():
            return
        found = self._socket.fingerprints(self.spec.table)
        if self.followed.now() == at:
            self._fingerprints = {name: words for name, words in found.items() if name in self._rules}

    def note_sizes(self) -> None:
        """Count the elements of each set, where they are as we left them. 0.2 ms, once for each generation."""
        at = self.followed.at
        if self._sizes[0] == at or self.lock.locked():
            return
        sizes = self._static_sizes()
        if self.followed.now() == at:
            self._sizes = at, sizes

    def resized(self) -> list[str] | None:
        """Sets that somebody else gave or took elements, in words; None where that cannot be told by their number."""
        at, before = self._sizes
        if at != self.followed.at or not before:
            return None
        return [
            f"set {name} has {now} elements instead of {before.get(name, now)}"
            for name, now in self._static_sizes().items()
            if before.get(name, now) != now
        ]

    def _static_sizes(self) -> dict[str, int]:
        sizes = self._socket.set_sizes(self.spec.table)
        return {name: size for name, size in sizes.items() if name in content.STATIC}

    async def restore(self, wanted: Callable[[], Iterable[Row]]) -> list[str]:
        """Look at every element of our own; bring back what is gone of *wanted* (asked when nobody else changes the
        table), take out what nobody asked for. What was done, in lines. In a thread: some 2 us an element.
        """
        async with self.lock:
            rows = list(wanted())
            difference = await asyncio.to_thread(self._compared, rows)
            batch = Batch(self.spec.table)
            _pack_now(batch, DELETE_ELEMENTS, difference.deletes())
            _pack_now(batch, NEW_ELEMENTS, difference.adds())
            # What these seven say cannot be compared as bytes.
            self._rewrite_verdicts(batch)
            await self._commit(batch, difference.size)
            return difference.describe()

    @staticmethod
    def _rewrite_verdicts(batch: Batch) -> None:
        for name in ("verdicts", "given"):
            batch.flush_set(name)
        _pack_now(batch, NEW_ELEMENTS, verdict_rows())

    def _compared(self, rows: list[Row]) -> content.Difference:
        began = time.thread_time()
        try:
            return self._difference(rows)
        finally:
            self.compared_s = time.thread_time() - began

    def _difference(self, rows: list[Row]) -> content.Difference:
        by_set: dict[str, list[bytes]] = {name: [] for name in sorted(content.COMPARED)}
        for name, one in rows:
            if name in by_set:
                by_set[name].append(one)
        found = {
            name: chain.from_iterable(map(content.cut, self._socket.listings(self.spec.table, name))) for name in by_set
        }
        return content.compare(by_set, found)

    def stamp(self) -> int | None:
        """The number of the state that the kernel has; None: none."""
        found = [key for key, _, _ in self._socket.elements(self.spec.table, "stamp")]
        return int.from_bytes(found[0], sys.byteorder) if found else None

    def counters(self) -> dict[str, int]:
        """Packets by what became of them, since the table was made; nothing while a transaction is under way."""
        if self.lock.locked():
            return {}
        return self._socket.counters(self.spec.table)

    def is_there(self) -> bool:
        """Whether the kernel has the table with every chain and set of it."""
        found = self._socket.rules(self.spec.table)
        if set(found) < {*rules.PLAIN_CHAINS, *rules.BASE_CHAINS}:
            return False
        if not {one.name for one in ALL_SETS} <= set(self._socket.sets(self.spec.table)):
            return False
        self.holding = found.get("output", 0) > 0
        return not self._socket.is_dormant(self.spec.table)

    def remove(self) -> bool:
        """Take the table away; False when it was not there."""
        if not self._socket.chains(self.spec.table):
            return False
        batch = Batch(self.spec.table)
        batch.delete_table()
        self._socket.commit(batch)
        return True


def _flush_generation(batch: Batch) -> None:
    for name in rules.GENERATION_CHAINS:
        batch.flush_chain(name)


def _pack_now(batch: Batch, kind: int, rows: Iterable[Row]) -> None:
    by_set: dict[str, list[bytes]] = {}
    for name, one in rows:
        by_set.setdefault(name, []).append(one)
    for name, elements in by_set.items():
        batch.elements(kind, name, elements)
