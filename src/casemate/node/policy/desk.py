"""Where policy's parts meet: loading, hostd's events, the clock, and what flow records need to know."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from casemate.hostd.protocol import AnyEvent
from casemate.hostd.protocol_firewall import FirewallRepaired, HoldEnded, ReferralsLost, Referred, ReferredPacket
from casemate.node import events
from casemate.node.core import Core, report
from casemate.node.flows.query import Wanted
from casemate.node.flows.service import Flows
from casemate.node.flows.wire import Five, ReferralTold
from casemate.node.policy import passages, quarantine, wallpaths
from casemate.node.policy.cases import Answer
from casemate.node.policy.ends import unpacked
from casemate.node.policy.referrals import Referrals
from casemate.node.policy.wallstate import read_bound
from casemate.node.policy.watching import Watch
from casemate.policy.identity import Endpoint
from casemate.policy.parse import Policies
from casemate.policy.plan import Planner
from casemate.policy.windows import minute_of_week, minutes_to_next_border
from casemate.spec.errors import CasemateError

#: How often the clock is looked at where there are hours to keep: it may be set while we sleep.
TICK_S = 1.0


class Desk:
    """Policy's work in casemated beside what users ask of it."""

    def __init__(self, core: Core, flows: Flows) -> None:
        self.core = core
        self.flows = flows
        self.referrals = Referrals(core)
        self.watch = Watch(core, flows)
        self.paths = wallpaths.Watch(core)
        self.referrals.met = self._met
        self.referrals.told = self._told
        #: The minute and the documents that were looked at last.
        self._seen: tuple[int, Policies] = (-1, Policies())

    async def load(self) -> None:
        """Everything from the store; before hostd's first event and the first request."""
        self.core.walls.bound = await self.core.db.read(read_bound)
        await self.core.policy.load()
        await passages.load_passages(self.core)
        if self.core.policy.quarantines:
            await self.core.policy.reload_rules()
        await self.referrals.load()

    # --- hostd's events -------------------------------------------------------------------------------------------

    def on_event(self, event: AnyEvent) -> bool:
        """Take an event of the firewall; False when it is none."""
        match event:
            case Referred():
                self.referrals.on_referred(event)
            case ReferralsLost():
                self.referrals.lost(event)
            case FirewallRepaired():
                self.core.spawn(self._note("firewall", "repaired", what="; ".join(event.what)[:2000]), "an event")
            case HoldEnded():
                work = self._note("pod", "hold-ended", event.pod, why=event.why, refused=event.refused)
                self.core.spawn(work, "an event")
            case _:
                return False
        return True

    async def _note(self, kind: str, action: str, subject: str = "", **facts: object) -> None:
        core, at = self.core, self.core.clock()
        await core.db.write(lambda db: events.add(db, at, kind, subject, action, **facts))  # type: ignore[arg-type]
        core.events.wake()

    # --- the clock ------------------------------------------------------------------------------------------------

    async def keep_hours(self) -> None:
        """Rules with hours come and go at their borders, quarantines end; never returns."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await quarantine.overdue(self.core)
                await self.look_at_the_clock()
            except CasemateError:
                report("policy could not follow the clock; it is tried again")

    async def look_at_the_clock(self) -> None:
        """Bring the rules of this minute in force, wherever the clock came from (a border, or somebody set it)."""
        policy = self.core.policy
        minute = minute_of_week(self.core.clock())
        if minute == self._seen[0] and policy.policies is self._seen[1]:
            return
        self._seen = (minute, policy.policies)
        windows = [window for rule in policy.policies.rules for window in rule.windows]
        if minutes_to_next_border(windows, minute) is None:
            return
        async with policy.lock:
            await policy.rules_again("another hour")

    # --- flows ----------------------------------------------------------------------------------------------------

    async def _met(self, source: Endpoint, destination: Endpoint) -> bool:
        """Whether an earlier flow of these two is on record."""
        wanted = Wanted(source=_shown(source), destination=_shown(destination), verdict=("allow", "audit", "referred"))
        return bool((await self.flows.last(wanted, 1)).flows)

    def _told(self, answered: Sequence[tuple[Answer, Sequence[ReferredPacket]]]) -> None:
        """The recorder hears who answered; packets that share an answer are of the same two addresses."""
        planner = self.core.policy.planner
        pairs: dict[tuple[bytes, bytes], tuple[int, int]] = {}
        told: list[tuple[ReferralTold, list[Five]]] = []
        for answer, packets in answered:
            both = (packets[0].source, packets[0].destination)
            pair = pairs.get(both)
            if pair is None:
                pair = pairs[both] = _numbers(planner, *both) if planner is not None else (0, 0)
            word = ReferralTold("allow" if answer.allow else "deny", answer.by, answer.reason, *pair)
            told.append((word, [(*both, one.protocol, one.source_port, one.port) for one in packets]))
        self.flows.referred(told)


def _numbers(planner: Planner, source: bytes, destination: bytes) -> tuple[int, int]:
    """The identities of both ends; 0 where the rules in force know none."""
    one, other = unpacked(source), unpacked(destination)
    try:
        return planner.number_at(one), planner.number_at(other, str(one))
    except KeyError:
        return 0, 0


def _shown(end: Endpoint) -> str:
    return str(end.addresses[0]) if end.addresses else end.name
