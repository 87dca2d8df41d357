"""Referrals: the first packet waits in hostd, and here it is said whether it may go on.

In this order: an answer that a person gave before, the walls, the rules with their conditions and facts, a person
within a deadline. Nobody who is asked holds up anybody else; what cannot be asked any more (a bound, a deadline, an
error) is denied, and counted. Every referral leaves a row with its reason.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from casemate.hostd.protocol_firewall import AnswerKey, ReferralsLost, Referred, ReferredPacket
from casemate.hostd.protocol_firewall import ReferralAnswer as ToHostd
from casemate.node.clock import rfc3339
from casemate.node.core import Core, report
from casemate.node.owners import project_of_end
from casemate.node.policy import ends, walling
from casemate.node.policy.cases import WORDS, Answer, Case, Prompt, Settled, Told, key_of
from casemate.node.policy.deciding import Decider, Rates
from casemate.node.policy.lanes import PROTOCOLS, Lane, Pair, Spoken, used
from casemate.node.policy.prompts import Prompts
from casemate.node.policy.referral_rows import Rows
from casemate.node.policy.ruleset import asked as asked_of
from casemate.policy.decision import Decision
from casemate.policy.identity import Connection, Endpoint, Kind
from casemate.policy.ports import Protocol
from casemate.policy.verdict import Verdict
from casemate.spec.api.policy import ReferralList, ReferralRow
from casemate.spec.errors import CasemateError

#: Connections being judged at a time; more are denied.
MAX_AT_ONCE = 8_192
#: Answers that are looked at again when the rules change; older ones end by their lifetime.
MAX_GRANTED = 32_768


def concerns(row: ReferralRow, projects: frozenset[str] | None) -> bool:
    """Whether an end of *row* is in one of *projects*; None is every project."""
    return projects is None or any(project_of_end(end) in projects for end in (row.source, row.destination))


class Referrals:
    """The referrals of this node. *met* answers whether two ends have an earlier flow on record."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.counters: Counter[str] = Counter()
        self._answers: list[ToHostd] = []
        self._settled: list[Settled] = []
        self._rows = Rows(core, self.counters)
        self.prompts = Prompts(core, self.counters, self._rows, lambda: self.decider, self._answered)
        self._judging = 0
        self._rates = Rates()
        self._decider: Decider | None = None
        self._spoken = Spoken(core.settings.number("policy.answer_lifetime"))
        #: What rules let pass, by addresses, protocol and port, so that it can be taken back when they say otherwise.
        self._granted: OrderedDict[tuple[bytes, bytes, int, int], None] = OrderedDict()
        self._reviewing = False
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()
        self.met: Callable[[Endpoint, Endpoint], object] | None = None
        self.told: Callable[[Sequence[tuple[Answer, Sequence[ReferredPacket]]]], None] | None = None
        #: Under which name the pod at the first address was told of the second.
        self.asked_as: Callable[[str, str], str] | None = None
        core.policy.changed.append(self._changed)

    async def load(self) -> None:
        """What people answered before, and where the numbers stand."""
        await self.prompts.load()
        await self._rows.load()

    def _changed(self) -> None:
        self._decider = None
        self._spoken.clear()
        if self._granted and not self._reviewing:
            self._reviewing = True
            self._core.spawn(self._review(), "what was let pass, by the rules of now")

    async def _review(self) -> None:
        """Answers that the rules would not give any more are forgotten, and what they opened is cut."""
        now = self._core.clock()
        keys: list[AnswerKey] = []
        asked_anew: list[AnswerKey] = []
        try:
            for place, key in enumerate(list(self._granted), 1):
                source, destination = self._ends(*key[:2])
                asked = Connection(source, destination, PROTOCOLS.get(key[2], Protocol.OTHER), key[3])
                decision = self.decider.decide(asked, now, first_contact=False, rate=0)
                if decision.verdict > Verdict.AUDIT:
                    keys.append(AnswerKey(*key))
                    self._granted.pop(key, None)
                elif not self.decider.relevant(asked).lasting:
                    # It may stay open; the next one is asked about the hour, the rate.
                    asked_anew.append(AnswerKey(*key))
                if place % 256 == 0:
                    await asyncio.sleep(0)
            if keys:
                self.counters["taken_back"] += len(keys)
                await self._core.policy.firewall.forget(keys)
            if asked_anew:
                await self._core.policy.firewall.forget(asked_anew, cut=False)
        except CasemateError:
            # The kernel could not be told: it is given the whole anew, and forgets all answers.
            report("answers to referrals could not be taken back")
        finally:
            self._reviewing = False

    @property
    def decider(self) -> Decider:
        if self._decider is None:
            policy = self._core.policy
            self._decider = Decider(asked_of(policy.own, policy.passages), policy.documents.values())
        return self._decider

    # --- packets --------------------------------------------------------------------------------------------------

    def lost(self, event: ReferralsLost) -> None:
        """hostd denied packets without asking."""
        for why, count in event.why.items():
            self.counters[f"lost_{why}"] += count

    def on_referred(self, event: Referred) -> None:
        """Packets wait; called on the loop, and never blocks it: what takes longer goes into the background.

        All that is decided here is answered in one message.
        """
        self.counters["referred"] += len(event.packets)
        now = self._core.clock()
        pairs: dict[tuple[bytes, bytes], Pair] = {}
        alone: list[tuple[ReferredPacket, Pair]] = []
        for packet in event.packets:
            both = (packet.source, packet.destination)
            try:
                pair = pairs.get(both)
                if pair is None:
                    pair = pairs[both] = self._pair(*both)
                if not pair.takes(packet, self.decider, self._spoken):
                    alone.append((packet, pair))
            except Exception as error:
                self._fail(packet, error)
        lanes = used(pairs.values())
        for lane in lanes:
            self._rates.count(lane.asked.source.name, now, len(lane.packets))
        slow: list[Case] = []
        for packet, pair in alone:
            try:
                case = self._take(packet, now, pair)
            except Exception as error:
                self._fail(packet, error)
            else:
                if case is not None:
                    slow.append(case)
        self._flush(lanes)
        self._judge_later(slow)

    def _fail(self, packet: ReferredPacket, error: Exception) -> None:
        if isinstance(error, CasemateError):
            why = error.detail
        else:
            report("a referral failed; it is denied")
            why = "an error of Casemate's own"
        self._settle([packet], None, Answer(False, why, "error"), 0.0)

    def _take(self, packet: ReferredPacket, now: float, pair: Pair) -> Case | None:
        """Decide at once, or give what needs the store."""
        asked = pair.asked(packet)
        if self.prompts.joined(packet, asked):
            return None
        relevant = self.decider.relevant(asked)
        rate = self._rates.count(pair.source.name, now)
        if pair.clear and (not relevant.history or (pair.source.name, pair.destination.name) in self._seen):
            decision = self.decider.decide(asked, now, first_contact=False, rate=rate)
            self._decided(packet, asked, decision.verdict, decision.rule, relevant.lasting)
            return None
        if self._judging >= MAX_AT_ONCE:
            self.counters["too_many"] += 1
            self._settle([packet], asked, Answer(False, f"{MAX_AT_ONCE} are being judged", "bound"), 0.0)
            return None
        self._judging += 1
        return Case(packet, asked, rate)

    def _pair(self, source: bytes, destination: bytes) -> Pair:
        one, other = self._ends(source, destination)
        wall = walling.touched(self._core.policy.walls, one, other)
        clear = not wall or walling.known(self._core, one, other) is True
        plain, paths = not self.prompts.are_about(one.name), self.decider.paths(one, other)
        return Pair(one, other, clear, plain, paths, self._told_of(source, destination, other))

    def _told_of(self, source: bytes, destination: bytes, end: Endpoint) -> Told:
        one, other = str(ends.unpacked(source)), str(ends.unpacked(destination))
        is_pod = end.kind is Kind.POD
        return Told(one, other, "" if is_pod or self.asked_as is None else self.asked_as(one, other))

    def _judge_later(self, cases: Iterable[Case]) -> None:
        """Walls are asked for all at once; whether two have met for each by itself, since that takes long."""
        together: list[Case] = []
        for case in cases:
            if self.decider.relevant(case.asked).history:
                self._core.spawn(self._judge([case]), f"referral {key_of(case.asked)[:80]}")
            else:
                together.append(case)
        if together:
            self._core.spawn(self._judge(together), f"{len(together)} referrals")

    def _ends(self, source: bytes, destination: bytes) -> tuple[Endpoint, Endpoint]:
        """Who is at both ends, by address."""
        policy, one, other = self._core.policy, ends.unpacked(source), ends.unpacked(destination)
        found = ends.at_address(policy, other)
        if found.kind is not Kind.POD and policy.planner is not None:
            # Names hold for the pod whose own answers led there.
            named = policy.planner.owner(other, str(one))
            if named is not None:
                found = ends.outside(other, named.dns)
        return ends.at_address(policy, one), found

    async def _judge(self, cases: Sequence[Case]) -> None:
        """What needs the store: walls, and whether these two have met."""
        left = {case.packet.number: case for case in cases}
        try:
            await self._judged(left)
        except Exception as error:
            report("a referral failed; it is denied")
            for case in left.values():
                self._settle([case.packet], case.asked, Answer(False, str(error)[:200], "error"), 0.0)
        finally:
            self._judging -= len(cases)
            self._flush()

    async def _judged(self, left: dict[int, Case]) -> None:
        """Decide each of *left*, and take it out."""
        now = self._core.clock()
        walled: list[tuple[Case, Decision, bool]] = []
        for case in list(left.values()):
            asked = case.asked
            relevant = self.decider.relevant(asked)
            first = relevant.history and not await self._met(asked)
            decision = self.decider.decide(asked, now, first_contact=first, rate=case.rate)
            refers = decision.verdict is Verdict.REFER and not self.prompts.allowed_before(asked, now)
            if refers or decision.verdict is Verdict.DENY:
                # What the rules forbid reaches nobody, so it binds nobody.
                del left[case.packet.number]
                self._decided(case.packet, asked, decision.verdict, decision.rule, relevant.lasting)
            else:
                walled.append((case, decision, relevant.lasting))
        self._flush()
        if not walled:
            return
        judged = await walling.judge_all(
            self._core,
            [
                (case.asked.source, case.asked.destination,
                 f"{WORDS[case.asked.protocol]}/{case.asked.port}, {decision.verdict.word} by {decision.rule}")
                for case, decision, _ in walled
            ],
        )  # fmt: skip
        for (case, decision, lasting), one in zip(walled, judged, strict=True):
            del left[case.packet.number]
            if one.allowed:
                self._decided(case.packet, case.asked, decision.verdict, decision.rule, lasting)
            else:
                self._settle([case.packet], case.asked, Answer(False, one.why, f"wall {one.wall}"), 0.0)

    async def _met(self, asked: Connection) -> bool:
        pair = (asked.source.name, asked.destination.name)
        if pair in self._seen:
            return True
        found = bool(await self.met(asked.source, asked.destination)) if self.met is not None else False  # type: ignore[misc]
        if found:
            self._note_met(pair)
        return found

    def _note_met(self, pair: tuple[str, str]) -> None:
        self._seen[pair] = None
        if len(self._seen) > 65_536:
            self._seen.popitem(last=False)

    def _decided(self, packet: ReferredPacket, asked: Connection, verdict: Verdict, rule: str, lasting: bool) -> None:
        answer = self._spoken.answer(verdict, rule, lasting=lasting)
        if answer is None:
            told = self._told_of(packet.source, packet.destination, asked.destination)
            answer = self.prompts.ask(packet, asked, rule, told)
        if answer is not None:
            self._settle([packet], asked, answer, 0.0)

    def _answered(self, prompt: Prompt, answer: Answer, waited_s: float) -> None:
        """A person has answered, or nobody did in time."""
        self._settle(prompt.packets, prompt.asked, answer, waited_s, prompt)
        self._flush()

    # --- answers and rows -----------------------------------------------------------------------------------------

    def _settle(
        self, packets: Sequence[ReferredPacket], asked: Connection | None, answer: Answer, waited_s: float,
        prompt: Prompt | None = None,
    ) -> None:  # fmt: skip
        """*packets* have their *answer*; :meth:`_flush` sends it. Without *asked* nobody knows what it was about."""
        self.counters["allowed" if answer.allow else "denied"] += len(packets)
        for packet in packets:
            self._answers.append(ToHostd(packet.number, answer.allow, answer.lifetime_s))
        if asked is None:
            return
        if answer.allow:
            if prompt is None:
                self._grant(packets)
            self._note_met((asked.source.name, asked.destination.name))
        number, told = (prompt.number, prompt.told) if prompt is not None else (0, None)
        self._settled.append(Settled(packets, asked, answer, waited_s, number, told))

    def _grant(self, packets: Iterable[ReferredPacket]) -> None:
        granted = self._granted
        for packet in packets:
            granted[packet.source, packet.destination, packet.protocol, packet.port] = None
        while len(granted) > MAX_GRANTED:
            granted.popitem(last=False)

    def _flush(self, lanes: Sequence[Lane] = ()) -> None:
        """Send every answer in one message, and leave a row for each.

        The recorder of flows is told before: the kernel tells it of the connection as soon as the packet goes on.
        """
        settled, self._settled = self._settled, []
        answers: list[ToHostd] = []
        for lane in lanes:
            allow, lifetime_s = lane.answer.allow, lane.answer.lifetime_s
            answers += [ToHostd(packet.number, allow, lifetime_s) for packet in lane.packets]
            self.counters["allowed" if allow else "denied"] += len(lane.packets)
            if allow:
                self._grant(lane.packets)
                self._note_met((lane.asked.source.name, lane.asked.destination.name))
        answers += self._answers
        self._answers = []
        if self.told is not None and (settled or lanes):
            told = [(one.answer, [packet]) for one in settled for packet in one.packets]
            self.told([*told, *((lane.answer, lane.packets) for lane in lanes)])
        if answers:
            try:
                self._core.policy.firewall.answer(answers)
            except CasemateError:
                # hostd is away, or ended: what waited there was denied by that.
                self.counters["unanswered"] += len(answers)
        if settled:
            self._book(settled)
        if lanes:
            self._book_lanes(lanes)

    def _book_lanes(self, lanes: Iterable[Lane]) -> None:
        now, runs = self._core.clock(), []
        for lane in lanes:
            runs.append(lane.run(self._rows.number(len(lane.packets)), now))
        self._rows.keep_runs(runs)

    def _book(self, settled: Iterable[Settled]) -> None:
        now = self._core.clock()
        at = rfc3339(now)
        until = {0: ""}
        for packets, asked, answer, waited_s, number, known in settled:
            lifetime_s, prompted = answer.lifetime_s, bool(number)
            if lifetime_s not in until:
                until[lifetime_s] = rfc3339(now + lifetime_s)
            told = known or self._told_of(packets[0].source, packets[0].destination, asked.destination)
            row = ReferralRow(
                number or self._rows.number(), rfc3339(now - waited_s) if waited_s else at,
                asked.source.name, asked.destination.name, WORDS[asked.protocol], asked.port, "",
                "allow" if answer.allow else "deny", answer.reason, answer.by, "",
                until[lifetime_s], len(packets), round(waited_s * 1000, 3), *told,
            )  # fmt: skip
            self._rows.keep(row, prompted=prompted)

    # --- looking --------------------------------------------------------------------------------------------------

    async def listing(self, limit: int, projects: frozenset[str] | None = None) -> ReferralList:
        """Those that wait, the newest that were decided, what is remembered; with an end in *projects*, if given."""
        both = await self._rows.newest(limit, projects)
        waiting, kept = self.prompts.waiting(), self.prompts.remembered()
        mine, decided, held = (
            tuple(row for row in rows if concerns(row, projects)) for rows in (waiting, both, kept)
        )  # fmt: skip
        return ReferralList(mine, decided[:limit], held, dict(self.counters))

    def watch(self, *, waiting_only: bool) -> AsyncIterator[ReferralRow | None]:
        """Rows as they are asked and answered, beginning with those that wait; None: nothing for a while."""
        return self._rows.watch(self.prompts.waiting, waiting_only=waiting_only)
