"""The firewall as hostd keeps it: what casemated gave brought into the kernel, recorded, and kept whole.

The record is written before the kernel is asked, and cut back when the kernel refuses; the number of the state stands
in the kernel too, so that a start of hostd knows whether a last change came about. hostd's end changes nothing in the
kernel: what is in force stays, what would be referred or held is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from casemate.host import conntrack, nft_netlink
from casemate.host.nft import Followed, NftFailed
from casemate.host.nft_netlink import INET
from casemate.hostd import crowding, firewall_body, straining
from casemate.hostd import protocol_firewall as wire
from casemate.hostd.errors import FirewallConflict, ProtocolViolated
from casemate.hostd.firewall_body import Body
from casemate.hostd.firewall_record import FirewallRecord, InForce
from casemate.hostd.folders import Folders
from casemate.hostd.holding import Holds
from casemate.hostd.protocol import AnyAnswer, AnyEvent, Done, Finding
from casemate.hostd.referrals import Referrals
from casemate.hostd.sparing import Interface, Sparing
from casemate.hostd.state import State
from casemate.network import flowlog, links, plan
from casemate.network.firewall import sets
from casemate.network.firewall.kernel import Change, Kernel
from casemate.network.firewall.rules import LAST_GENERATION, TableSpec
from casemate.network.firewall.sets import Row
from casemate.spec.errors import CasemateError
from casemate.spec.settings import Settings

log = logging.getLogger("casemate.hostd")

RECORD = "firewall.record"
#: A look at every element is followed by so many times as long without one.
_PACE, _PACE_BLIND = 100.0, 20.0
#: The same where the kernel has told that somebody changed something of the table.
_PACE_TOLD = 10.0
#: Labels of connections bear 31 bits of it.
_LAST_RULES = LAST_GENERATION
_EMPTY = Body(dict.fromkeys(wire.SECTIONS, b""))
_IDENTITY_NAMES = tuple(one.name for one in sets.IDENTITY_SETS)


def first_queue(table: str) -> int:
    """The first of *table*'s three packet queues (10,000 to 62,000), so that two nodes on one host do not meet."""
    return 10_000 + 4 * (zlib.crc32(table.encode()) % 13_000)


def table_spec(settings: Settings) -> TableSpec:
    table = settings.text("network.table")
    return TableSpec(
        table=table,
        prefix=plan.check_prefix(settings.text("network.link_prefix")),
        pool=plan.check_pool(settings.text("network.pool")),
        gateway=ipaddress.IPv4Address(plan.GATEWAY).packed,
        queue=first_queue(table),
        log_group=flowlog.verdict_group(table),
        hello_group=flowlog.hello_group(table),
    )


@dataclass(slots=True)
class Firewall:
    """*links*: the links of the pods that there are; *is_heard*: whether casemated is connected."""

    settings: Settings
    folders: Folders
    state: State
    links: Callable[[], Iterator[plan.PodLink]]
    is_heard: Callable[[], bool]
    emit: Callable[[AnyEvent], None]
    on_hold_ended: Callable[[str], None]
    now: InForce = field(default_factory=lambda: InForce(time.time_ns() >> 20, 0))
    repaired: int = 0
    #: Why a packet queue is not read; empty when all are.
    unread: str = ""
    followed: Followed = field(default_factory=Followed)
    _kernel: Kernel | None = None
    _record: FirewallRecord | None = None
    _referrals: Referrals | None = None
    _holds: Holds | None = None
    sparing: Sparing = field(default_factory=Sparing)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _opened: asyncio.Event = field(default_factory=asyncio.Event)
    _elements: Counter[str] = field(default_factory=Counter)
    #: Pods whose elements are gone while they are still on record.
    _leaving: set[str] = field(default_factory=set)
    #: Of each pod's interface; by that number its packets are known.
    _indexes: dict[str, int] = field(default_factory=dict)
    #: When every element was looked at last, and how long it took, in seconds; and after how many times as long they
    #: are to be looked at again (0: need not).
    _looked: tuple[float, float] = (0.0, 0.0)
    _unlooked: float = 0.0

    @property
    def kernel(self) -> Kernel:
        """The table, its socket and what the kernel knows: looked at when first needed."""
        if self._kernel is None:
            kernel = Kernel(table_spec(self.settings), followed=self.followed)
            kernel.probe()
            self._kernel = kernel
        return self._kernel

    @property
    def record(self) -> FirewallRecord:
        if self._record is None:
            self._record = FirewallRecord(self.folders.run / RECORD)
        return self._record

    @property
    def referrals(self) -> Referrals:
        if self._referrals is None:
            self._referrals = Referrals(self.kernel, self.emit, self.is_heard, self._pod_of)
        return self._referrals

    @property
    def holds(self) -> Holds:
        if self._holds is None:
            self._holds = Holds(self.kernel, self.emit)
        return self._holds

    @property
    def is_known(self) -> bool:
        """Whether an earlier hostd left a state that is in force."""
        return (self.folders.run / RECORD).exists()

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    def is_held(self, pod: str) -> bool:
        return self._holds is not None and self._holds.is_held(pod)

    def _pod_of(self, address: bytes) -> str:
        return self.state.addresses.get(str(ipaddress.ip_address(address)), "")

    # --- whole ----------------------------------------------------------------------------------------------------

    async def ensure(self) -> list[str]:
        """Make the table where it is not whole; what was done, in lines. Called when the ruleset has changed."""
        async with self._lock:
            if not self._opened.is_set():
                return await self._open()
            lost = self.kernel.what_lacks()
            if not lost:
                if self.kernel.resized():
                    return await self._restore()
                self.unsure()
                return []
            self.repaired += 1
            if all("chain " in one for one in lost):
                await self.kernel.rewrite(self.now.rules)
                # Whoever changed a rule may have changed elements.
                self._unlooked = _PACE_TOLD
            else:
                body, _ = self.record.read() or (_EMPTY, self.now)
                await self._make(body)
            changed = any("rule of" in one or "sleeps" in one for one in lost)
            words = f"{', '.join(lost)[:300]} was {'changed' if changed else 'gone'}"
            return [f"made the firewall's table inet {self.kernel.spec.table} again: {words}"]

    async def look(self) -> list[str]:
        """Compare every element with the record, and repair; what was done, in lines."""
        async with self._lock:
            return await self._restore()

    async def _restore(self) -> list[str]:
        body, _ = self.record.read() or (_EMPTY, self.now)
        if not self.kernel.knows_rules:
            # Written so lately that nobody knows whether somebody changed them since.
            await self.kernel.rewrite(self.now.rules)
        done = await self.kernel.restore(lambda: self._rows(body))
        self._unlooked = 0.0
        self._looked = time.monotonic(), self.kernel.compared_s
        if not done:
            return []
        self.repaired += 1
        return [f"repaired the firewall's table inet {self.kernel.spec.table}: {', '.join(done)[:300]}"]

    @property
    def is_look_due(self) -> bool:
        """Whether somebody's change has to be looked into, which takes its time: 2 us an element."""
        ended, took_s = self._looked
        return self._unlooked > 0 and time.monotonic() >= ended + took_s * self._unlooked

    def unsure(self) -> None:
        """Somebody changed a rule of the host's, and every set has as many elements as before: one may have been put
        in another's place. Where the kernel told that nothing of our table was touched, none was. Else all are looked
        at: where it told that something was, at once, and for a tenth of the time at most; where nobody knows, for a
        hundredth (a twentieth where the kernel tells no numbers).
        """
        touched = self.followed.touched()
        if touched is False:
            return
        pace = _PACE if self.kernel.resized() is not None else _PACE_BLIND
        if touched:
            pace = _PACE_TOLD
        self._unlooked = min(pace, self._unlooked or pace)

    def note(self) -> None:
        """All is as it was left: remember how much there is of everything."""
        if self._opened.is_set():
            self.kernel.note_sizes()
            if not self._unlooked:
                self.kernel.note_rules()

    def finding(self) -> Finding:
        """The doctor's line."""
        if not self._opened.is_set():
            return Finding("firewall", "ok", "made with the first pod or the first policy")
        if self.unread:
            remedy = "End what else reads these packet queues, and restart casemate-hostd."
            return Finding("firewall", "error", f"nothing can be referred or held: {self.unread}", remedy)
        lost = self.kernel.what_lacks()
        if lost:
            return Finding("firewall", "warning", f"{', '.join(lost)[:200]} is gone, and made again within a second")
        policy = f"policy in force, state {self.now.generation}" if self.now.rules else "no policy is in force"
        again = f"; made again {self.repaired} times after others changed it" if self.repaired else ""
        spared = f"; plain packets of {len(self.sparing.spared)} pods are spared the guard"
        if not self.kernel.spec.spares:
            spared = "; the kernel has no programs at interfaces (Linux 6.6): the guard looks at every packet"
        return Finding("firewall", "ok", f"table inet {self.kernel.spec.table}, {policy}{again}{spared}")

    def what_lacks(self) -> list[str]:
        """What is to be repaired, as far as it takes no long look."""
        return self.kernel.what_lacks() or self.kernel.resized() or []

    async def _open(self) -> list[str]:
        """The first look after a start: what the kernel has stays when it is what the record says."""
        self.followed.listen(self.kernel.spec.table, INET)
        # Its rules are the firewall's own since decision 0160.
        nft_netlink.delete_table("inet", f"{self.kernel.spec.table[:26]}_see")
        known = self.record.read()
        if known is None:
            self.record.write_whole(_EMPTY, self.now)
        body, self.now = known or (_EMPTY, self.now)
        self._elements = body.counts()
        made: list[str] = []
        if self.kernel.is_there() and self.kernel.stamp() == self.now.generation & 0xFFFFFFFF:
            # Nobody looked after the rules meanwhile, and they may be an earlier version's.
            await self.kernel.rewrite(self.now.rules)
            await self.kernel.change(Change(flush=("from4", "own4"), adds=self._hardware()))
        else:
            await self._make(body)
            made.append(f"made the firewall's table inet {self.kernel.spec.table}")
        if self.kernel.spec.spares:
            await self.sparing.adopt(
                (one.pod, self._interface(one)) for one in self.links() if self._indexes.get(one.pod)
            )
        for reader in (self.referrals, self.holds):
            try:
                reader.open()
            except (CasemateError, OSError) as error:
                # Nothing opens without a reader: what would be referred or held is dropped by the kernel.
                log.error("no connection can be referred or held: %s", error)
                self.unread = str(error)
        self._opened.set()
        return made

    async def _make(self, body: Body) -> None:
        await self.kernel.make(self._rows(body), self.now.rules, body.size)

    def _rows(self, body: Body) -> Iterator[Row]:
        """Every element of the table that stays until it is taken out."""
        return chain(
            [sets.stamp_row(self.now.generation)],
            (sets.metadata_row(ipaddress.IPv4Address(one).packed) for one in wire.METADATA),
            self._hardware(),
            (sets.address_set_row("held", one) for one in (self._holds.addresses() if self._holds else ())),
            body.adds(),
        )

    def _hardware(self) -> Iterator[Row]:
        found = list(self.links())
        self._leaving &= {link.pod for link in found}
        for link in found:
            if link.pod not in self._leaving:
                yield from self._source(link)

    def _source(self, link: plan.PodLink) -> tuple[Row, ...]:
        """From which interface the pod may send what; nothing while it has none."""
        self._indexes[link.pod] = index = links.index(link.interface) or self._indexes.get(link.pod, 0)
        return _source_rows(link, index) if index else ()

    def _interface(self, link: plan.PodLink) -> Interface:
        return Interface(self._indexes[link.pod], ipaddress.IPv4Address(link.address).packed)

    async def run(self) -> None:
        """What goes on while hostd serves; begins with the first pod or the first policy."""
        await self._opened.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.referrals.run(), name="referrals")
            group.create_task(self.holds.run(self.on_hold_ended), name="holds")
            group.create_task(crowding.run(self.kernel, self.state.addresses), name="crowding")
            group.create_task(straining.run(self.kernel), name="straining")
            if self.kernel.spec.spares:
                group.create_task(self.sparing.run(), name="sparing")

    def peer_gone(self) -> None:
        """casemated went away: nobody answers what waits."""
        if self._referrals is not None:
            self._referrals.abandon()

    def close(self) -> None:
        for one in (self._referrals, self._holds, self._kernel, self.followed):
            if one is not None:
                one.close()

    # --- pods -----------------------------------------------------------------------------------------------------

    async def add_pod(self, link: plan.PodLink) -> None:
        """Let the pod's packets in from its interface, which is there: its address and hardware address, and no
        other."""
        await self.ensure_open()
        self._leaving.discard(link.pod)
        before, rows = self._indexes.get(link.pod, 0), self._source(link)
        if before and before != self._indexes[link.pod]:
            await self.sparing.withdraw(link.pod)
            await self.kernel.take(_source_rows(link, before))
        await self.kernel.put(rows)
        if rows and self.kernel.spec.spares:
            self.sparing.expect(link.pod, self._interface(link))

    async def remove_pod(self, link: plan.PodLink) -> None:
        if self._opened.is_set():
            self._leaving.add(link.pod)
            await self.sparing.withdraw(link.pod)
            await self.kernel.take(self._source(link))
            self._indexes.pop(link.pod, None)
            if self._holds is not None:
                await self._holds.release(link.pod, accept=False)

    async def ensure_open(self) -> None:
        if not self._opened.is_set():
            await self.ensure()

    # --- operations -----------------------------------------------------------------------------------------------

    def told(self, operation: wire.FirewallAnswer) -> None:
        """Answers that nobody waits for an answer to."""
        self.referrals.answer(operation.answers)

    async def handle(self, operation: wire.FirewallOperation, fds: list[int]) -> AnyAnswer:
        match operation:
            case wire.FirewallReplace() | wire.FirewallChange():
                return await self._change(operation, fds)
            case wire.FirewallAnswer():
                self.referrals.answer(operation.answers)
                return Done()
            case wire.FirewallForget():
                await self._forget(operation)
                return Done()
            case wire.PodHold():
                pod = self.state.pod(operation.pod)
                await self.ensure_open()
                address = ipaddress.IPv4Address(pod.record.spec.network.address).packed
                await self.holds.hold(pod.id, address, operation.wait_s, operation.limit)
                return Done()
            case wire.PodRelease():
                released = await self.holds.release(operation.pod, accept=operation.accept)
                self.on_hold_ended(operation.pod)
                return released
            case wire.FlowsCut():
                return wire.Cut(await conntrack.forget_pairs(operation.pairs))
            case wire.FirewallObserve():
                return self._observe(await asyncio.to_thread(links.dropped_ipv6, self.kernel.spec.prefix))

    async def _change(self, operation: wire.FirewallReplace | wire.FirewallChange, fds: list[int]) -> AnyAnswer:
        if operation.body:
            data = operation.body
        elif len(fds) == 1:
            data = firewall_body.read_sealed(fds[0])
        else:
            raise ProtocolViolated(f"no body, and {len(fds)} descriptors instead of one")
        body = firewall_body.parse(data)
        await self.ensure_open()
        async with self._lock:
            if isinstance(operation, wire.FirewallReplace):
                await self._replace(body, in_force=operation.in_force)
            else:
                await self._apply(body, operation)
            return wire.FirewallChanged(self.now.generation)

    async def _replace(self, body: Body, *, in_force: bool) -> None:
        if any(body.sections[name] for name in ("address_deletes", "verdict_deletes", "base_deletes")):
            raise ProtocolViolated("a replacement deletes nothing by name")
        before = self.now
        self.now = InForce(before.generation + 1, self._next_rules() if in_force else 0)
        try:
            await self._commit(Change(adds=body.adds(), flush=_IDENTITY_NAMES, size=body.size), rules=True)
        except BaseException:
            self.now = before
            raise
        # Recorded after: a record that begins anew cannot be cut back. In between the kernel's stamp and the record's
        # number differ, and a start makes the older state: casemated then gives this one again.
        self.record.write_whole(body, self.now)
        self._elements = body.counts()

    async def _apply(self, body: Body, operation: wire.FirewallChange) -> None:
        before = self.now
        if operation.expected != before.generation:
            raise FirewallConflict(
                f"planned from state {operation.expected}; in force is {before.generation}",
                generation=before.generation,
            )
        look_again = operation.look_again and before.rules > 0
        self.now = InForce(before.generation + 1, self._next_rules() if look_again else before.rules)
        length = self.record.append(body, self.now)
        try:
            await self._commit(Change(body.deletes(), body.adds(), size=body.size), rules=look_again)
        except BaseException:
            self.now = before
            self.record.cut(length)
            raise
        self._elements.update(body.counts())
        if self.record.is_long:
            whole = self.record.read()
            assert whole is not None
            self.record.write_whole(*whole)

    async def _commit(self, change: Change, *, rules: bool) -> None:
        change.adds = chain([sets.stamp_row(self.now.generation)], change.adds)
        change.flush = (*change.flush, "stamp")
        change.generation = self.now.rules if rules else None
        await self.kernel.change(change)

    def _next_rules(self) -> int:
        """A generation that no label bears yet: as the states', it only grows."""
        return (self.now.generation + 1) % _LAST_RULES + 1

    async def _forget(self, operation: wire.FirewallForget) -> None:
        await self.ensure_open()
        await self.referrals.settle()
        if operation.keys is None:
            await self.kernel.change(Change(flush=("answers4", "answers6")))
            return
        rows = [sets.answer_row(one.source, one.destination, one.protocol, one.port) for one in operation.keys]
        await self.kernel.take(rows)
        if operation.cut:
            await conntrack.forget_pairs([(one.source, one.destination) for one in operation.keys])

    def _observe(self, dropped_ipv6: int) -> wire.FirewallState:
        counters: dict[str, int] = {"repaired": self.repaired}
        elements: dict[str, int] = {}
        waiting, holding = 0, tuple[wire.Holding, ...]()
        if self._opened.is_set():
            with contextlib.suppress(NftFailed):
                counters |= self.kernel.counters()
            counters["ipv6"] = counters.get("ipv6", 0) + dropped_ipv6
            counters |= {f"referral_{name}": count for name, count in self.referrals.counted.items()}
            counters |= {f"hold_{name}": count for name, count in self.holds.counted.items()}
            elements = dict(self._elements)
            waiting, holding = self.referrals.waiting, self.holds.state()
        return wire.FirewallState(self.now.generation, self.now.rules > 0, elements, counters, waiting, holding)


def _source_rows(link: plan.PodLink, index: int) -> tuple[Row, ...]:
    mac, address = bytes.fromhex(link.pod_mac.replace(":", "")), ipaddress.IPv4Address(link.address).packed
    return sets.source_rows(index, mac, address)
