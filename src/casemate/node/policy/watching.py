"""Quarantine by rule: flow events against the triggers of the operator's documents."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

from casemate.node import events
from casemate.node.core import Core, report
from casemate.node.errors import TooMany
from casemate.node.flows.query import Wanted
from casemate.node.flows.service import Flows
from casemate.node.policy import ends, quarantine
from casemate.node.policy.deciding import Decider, moment
from casemate.node.policy.errors import QuarantineHeld
from casemate.policy.identity import Connection, Endpoint, Kind
from casemate.policy.ports import Protocol
from casemate.policy.triggers import Trigger
from casemate.spec.api.flows import FlowRow
from casemate.spec.errors import CasemateError

WINDOW_S = 10.0
#: Of one source in the window, and sources; the oldest go.
MAX_TRIES = 4096
MAX_SOURCES = 4096
#: Pairs that have met, and flows that were looked at: the memory of "first contact" and of "once".
MAX_KNOWN = 65_536
#: A rule that is wrong must not cut off everybody at once.
MAX_A_MINUTE = 32
_RETRY_S = 2.0
_BY_NAME = {"icmpv6": Protocol.ICMP}


@dataclass(slots=True)
class _Tries:
    """What one source did lately: (when, destination, port, refused, how often)."""

    seen: deque[tuple[float, str, int, bool, int]] = field(default_factory=lambda: deque(maxlen=MAX_TRIES))

    def add(self, at: float, row: FlowRow, count: int) -> None:
        self.seen.append((at, row.destination.address, row.destination.port, row.verdict == "deny", count))

    def facts(self, at: float) -> dict[str, int]:
        while self.seen and self.seen[0][0] < at - WINDOW_S:
            self.seen.popleft()
        return {
            "rate": sum(one[4] for one in self.seen),
            "ports": len({one[2] for one in self.seen}),
            "peers": len({one[1] for one in self.seen}),
            "denied": sum(one[4] for one in self.seen if one[3]),
        }


class Watch:
    """Follows the flow records while there is a trigger."""

    def __init__(self, core: Core, flows: Flows) -> None:
        self._core = core
        self._flows = flows
        self._tries: OrderedDict[str, _Tries] = OrderedDict()
        self._met: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._counted: OrderedDict[int, int] = OrderedDict()
        self._decider: Decider | None = None
        self._wake = asyncio.Event()
        #: The minute, and how many were cut off in it.
        self._minute: tuple[int, int] = (0, 0)
        core.policy.changed.append(self._changed)

    def _changed(self) -> None:
        self._decider = None
        self._wake.set()

    def triggers(self) -> tuple[Trigger, ...]:
        return self._core.policy.triggers

    async def run(self) -> None:
        """Never returns."""
        while True:
            self._wake.clear()
            if not self.triggers():
                await self._wake.wait()
                continue
            try:
                await self._learn()
                await self._follow()
            except TooMany:
                await asyncio.sleep(_RETRY_S)
            except CasemateError:
                report("flows could not be followed for quarantines; it is tried again")
                await asyncio.sleep(_RETRY_S)

    async def _learn(self) -> None:
        """Who has met whom, as far as records go back."""
        if self._core.flows_between is None:
            return
        for flow, _ in await self._core.flows_between(0.0, ()):
            self._note(self._met, (flow.source.name, flow.destination.name))

    async def _follow(self) -> None:
        async for found in self._flows.follow(Wanted(), None):
            if not self.triggers():
                return
            if found is not None:
                await self._look(found[1])

    async def _look(self, row: FlowRow) -> None:
        """One record; it comes again when it ends, or when it was tried again."""
        before = self._counted.get(row.number, 0)
        self._note(self._counted, row.number, row.times)
        if row.times <= before:
            return
        asked = self._connection(row)
        if asked is None or asked.source.kind is not Kind.POD:
            return
        source, at = asked.source.name, self._core.clock()
        tries = self._tries.get(source) or _Tries()
        tries.add(at, row, row.times - before)
        self._note(self._tries, source, tries)
        pair = (source, asked.destination.name)
        first = pair not in self._met
        if row.verdict != "deny":
            self._note(self._met, pair)
        if source in self._core.policy.quarantines:
            return
        facts = self._facts(asked, at, first, tries, row)
        for trigger in self.triggers():
            if trigger.fires(asked.source, facts):
                await self._fire(trigger, asked, facts)
                return

    def _facts(self, asked: Connection, at: float, first: bool, tries: _Tries, row: FlowRow) -> dict[str, Any]:
        if self._decider is None:
            policy = self._core.policy
            self._decider = Decider(policy.own, policy.documents.values())
        counted = tries.facts(at)
        facts = self._decider.facts(asked, at, first_contact=first, rate=counted["rate"])
        return {**facts, **counted, "time": moment(at), "verdict": row.verdict, "rule": row.rule}

    def _connection(self, row: FlowRow) -> Connection | None:
        policy = self._core.policy
        protocol = _BY_NAME.get(row.protocol) or Protocol.__members__.get(row.protocol.upper(), Protocol.OTHER)
        workload = policy.workloads.get(row.source.pod)
        if workload is None:
            return None
        address = ipaddress.ip_address(row.destination.address)
        destination: Endpoint = ends.at_address(policy, address)
        if destination.kind is not Kind.POD and row.dns:
            destination = ends.outside(address, frozenset({row.dns}))
        return Connection(policy.labelled(workload), destination, protocol, row.destination.port)

    async def _fire(self, trigger: Trigger, asked: Connection, facts: dict[str, Any]) -> None:
        core = self._core
        minute = int(core.clock() // 60)
        count: int = 1 + (self._minute[1] if self._minute[0] == minute else 0)
        self._minute = (minute, count)
        told = ", ".join(f"{name} {facts[name]}" for name in ("ports", "peers", "denied", "rate"))
        reason = f"{trigger.reason or trigger.name}: {asked.describe()} ({told})"
        if count > MAX_A_MINUTE:
            if count == MAX_A_MINUTE + 1:
                at = core.clock()
                await core.db.write(
                    lambda db: events.add(db, at, "quarantine", asked.source.name, "refused", reason=trigger.id)
                )
                core.events.wake()
                report(f"{trigger.id} fires more than {MAX_A_MINUTE} times a minute: no more are cut off")
            return
        cause = quarantine.Cause("casemated", f"rule {trigger.id}", reason[:1000])
        try:
            await quarantine.put(core, asked.source.name, cause, for_s=trigger.for_s)
        except QuarantineHeld:
            return

    @staticmethod
    def _note(known: OrderedDict[Any, Any], key: Any, value: Any = None) -> None:
        known[key] = value
        known.move_to_end(key)
        if len(known) > (MAX_SOURCES if isinstance(value, _Tries) else MAX_KNOWN):
            known.popitem(last=False)
