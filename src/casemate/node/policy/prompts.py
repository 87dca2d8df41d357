"""People who are asked about connections: who waits for them and until when, and what they answered before.

Nobody who is asked holds up anybody else: what waits is bounded, for all together and for each source, and a question
that nobody answers within its deadline is denied.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Callable

import msgspec

from casemate.hostd.protocol_firewall import AnswerKey, ReferredPacket
from casemate.node import audit, events
from casemate.node.clock import rfc3339
from casemate.node.core import Caller, Core
from casemate.node.policy import rights, store, walling
from casemate.node.policy.cases import WORDS, Answer, Prompt, Told, key_of
from casemate.node.policy.deciding import Decider
from casemate.node.policy.errors import PromptsFull, ReferralNotFound
from casemate.node.policy.referral_rows import Rows
from casemate.policy.addresses import Address
from casemate.policy.identity import Connection, Endpoint
from casemate.policy.ports import Protocol
from casemate.policy.verdict import Verdict
from casemate.spec.api.policy import ReferralAnswer, ReferralRow


class Prompts:
    """What people are asked on this node.

    *rows* numbers and tells of them, *decider* is the rules of now, *settle* gives a question its answer after so many
    seconds.
    """

    def __init__(
        self,
        core: Core,
        counters: Counter[str],
        rows: Rows,
        decider: Callable[[], Decider],
        settle: Callable[[Prompt, Answer, float], None],
    ) -> None:
        self._core = core
        self._counters = counters
        self._rows = rows
        self._decider = decider
        self._settle = settle
        settings = core.settings
        self._lifetime_s = settings.number("policy.answer_lifetime")
        self._deadline_s = settings.number("policy.prompt_deadline")
        self._most = settings.number("policy.prompts")
        self._most_of_one = settings.number("policy.prompts_per_workload")
        #: How many of them have this source.
        self._of: Counter[str] = Counter()
        self._waiting: OrderedDict[int, Prompt] = OrderedDict()
        self._by_key: dict[str, Prompt] = {}
        self._remembered: dict[str, tuple[float, ReferralRow]] = {}

    async def load(self) -> None:
        """What people answered before."""
        at = self._core.clock()
        self._remembered = await self._core.db.write(lambda db: store.remembered(db, at))

    def are_about(self, source: str) -> bool:
        """Whether somebody is being asked about a connection of the workload *source*."""
        return source in self._of

    def joined(self, packet: ReferredPacket, asked: Connection) -> bool:
        """Whether somebody is being asked about this very connection; *packet* waits with the others then."""
        prompt = self._by_key.get(key_of(asked)) if self._by_key else None
        if prompt is None:
            return False
        prompt.packets.append(packet)
        return True

    def allowed_before(self, asked: Connection, now: float) -> bool:
        until, row = self._remembered.get(key_of(asked), (-1.0, None))
        return row is not None and row.answer == "allow" and (not until or until > now)

    def ask(self, packet: ReferredPacket, asked: Connection, rule: str, told: Told) -> Answer | None:
        """The answer that holds from before, or a refusal where too many wait; None: somebody is asked now."""
        key, now = key_of(asked), self._core.clock()
        held = self._remembered.get(key)
        if held is not None and (not held[0] or held[0] > now):
            row = held[1]
            left = int(held[0] - now) if held[0] else self._lifetime_s
            return Answer(row.answer == "allow", row.reason, row.by, min(left, self._lifetime_s))
        own = self._of[asked.source.name]
        if len(self._waiting) >= self._most or own >= self._most_of_one:
            self._counters["prompts_full"] += 1
            full = PromptsFull(f"{len(self._waiting)} referrals wait for a person, {own} of {asked.source.name}")
            return Answer(False, full.detail, "bound")
        prompt = Prompt(self._rows.number(), asked, key, now, now + self._deadline_s, rule, told, [packet])
        loop = asyncio.get_running_loop()
        prompt.timer = loop.call_later(self._deadline_s, self.overdue, prompt.number)
        self._waiting[prompt.number] = self._by_key[key] = prompt
        self._of[asked.source.name] += 1
        self._counters["asked"] += 1
        row = self._row(prompt, None)
        self._rows.tell(row, prompted=True)
        self._core.spawn(self._announce(row), "a referral's event")
        return None

    async def _announce(self, row: ReferralRow) -> None:
        at = self._core.clock()
        await self._core.db.write(
            lambda db: events.add(
                db, at, "referral", str(row.number), "asked", source=row.source, destination=row.destination,
                port=f"{row.protocol}/{row.port}", deadline=row.deadline, source_address=row.source_address,
                destination_address=row.destination_address, **_named(row),
            )
        )  # fmt: skip
        self._core.events.wake()

    def overdue(self, number: int) -> None:
        """Deny what nobody has answered by now."""
        prompt = self._end(number)
        if prompt is not None:
            self._counters["deadline"] += 1
            why = f"nobody answered within {self._deadline_s} s"
            self._settle(prompt, Answer(False, why, "deadline"), self._core.clock() - prompt.began)

    def _end(self, number: int) -> Prompt | None:
        prompt = self._waiting.pop(number, None)
        if prompt is not None:
            del self._by_key[prompt.key]
            source = prompt.asked.source.name
            self._of[source] -= 1
            if not self._of[source]:
                del self._of[source]
            if prompt.timer is not None:
                prompt.timer.cancel()
        return prompt

    async def answer(self, number: int, given: ReferralAnswer, caller: Caller) -> ReferralRow:
        """A person's answer. Raises :class:`ReferralNotFound`, and :class:`WallBreached` where a wall forbids it."""
        rights.demand(caller, "to answer a referral")
        prompt = self._waiting.get(number)
        if prompt is None:
            raise ReferralNotFound(f"referral {number} does not wait", number=number)
        core, asked = self._core, prompt.asked
        reason = given.reason or f"{'allowed' if given.allow else 'denied'} by {caller.who}"
        answer = Answer(given.allow, reason, caller.who, given.for_s or (self._lifetime_s if given.remember else 0))
        if given.allow:
            what = f"{WORDS[asked.protocol]}/{asked.port}, allowed by {caller.who}"
            forbidden = self._forbidden_by_now(asked)
            judged = None if forbidden else await walling.judge(core, asked.source, asked.destination, what)
            if forbidden:
                answer = Answer(False, f"the rules forbid it by now: {forbidden}", forbidden)
            elif judged is not None and not judged.allowed:
                answer = Answer(False, judged.why, f"wall {judged.wall}")
        at = core.clock()
        until = 0.0 if given.remember and not given.for_s else at + given.for_s
        row = msgspec.structs.replace(self._row(prompt, answer), until=rfc3339(until))

        def work(db: object) -> None:
            if given.remember or given.for_s:
                store.remember(db, prompt.key, row, until)  # type: ignore[arg-type]
            audit.append(
                db, at, caller.who, f"referral.{row.answer}", str(number), source=row.source,  # type: ignore[arg-type]
                destination=row.destination, port=f"{row.protocol}/{row.port}", reason=reason, until=row.until,
                **_named(row),
            )  # fmt: skip

        await core.db.write(work)
        if given.remember or given.for_s:
            self._remembered[prompt.key] = (until, row)
        ended = self._end(number)
        if ended is None:
            raise ReferralNotFound(f"referral {number} was denied meanwhile: its deadline passed", number=number)
        self._counters["answered"] += 1
        self._settle(ended, answer, at - ended.began)
        return row

    def _forbidden_by_now(self, asked: Connection) -> str:
        """The rule that forbids what somebody was asked about a while ago: an end may be in quarantine since."""
        policy = self._core.policy

        def fresh(end: Endpoint) -> Endpoint:
            workload = policy.workloads.named(end.name)
            return policy.labelled(workload) if workload is not None else end

        now = Connection(fresh(asked.source), fresh(asked.destination), asked.protocol, asked.port)
        decision = self._decider().decide(now, self._core.clock(), first_contact=False, rate=0)
        return decision.rule if decision.verdict is Verdict.DENY else ""

    async def forget(self, number: int, caller: Caller) -> ReferralRow:
        """A remembered answer holds no longer; what it opened is cut. Raises :class:`ReferralNotFound`."""
        rights.demand(caller, "to forget an answer")
        found = [(key, row) for key, (_, row) in self._remembered.items() if row.number == number]
        if not found:
            raise ReferralNotFound(f"no answer of referral {number} is remembered", number=number)
        key, row = found[0]
        at = self._core.clock()

        def work(db: object) -> None:
            store.forget(db, key)  # type: ignore[arg-type]
            audit.append(db, at, caller.who, "referral.forget", str(number), source=row.source)  # type: ignore[arg-type]

        await self._core.db.write(work)
        del self._remembered[key]
        await self._core.policy.firewall.forget(self._keys(row) or None)
        return row

    def _keys(self, row: ReferralRow) -> list[AnswerKey]:
        policy, found = self._core.policy, []
        protocol = Protocol[row.protocol.upper()].value
        for source in _addresses(policy.workloads.named(row.source), row.source):
            for destination in _addresses(policy.workloads.named(row.destination), row.destination):
                if source.version == destination.version:
                    found.append(AnswerKey(source.packed, destination.packed, protocol, row.port))
        return found

    def _row(self, prompt: Prompt, answer: Answer | None) -> ReferralRow:
        asked = prompt.asked
        return ReferralRow(
            prompt.number, rfc3339(prompt.began), asked.source.name, asked.destination.name,
            WORDS[asked.protocol], asked.port, prompt.rule,
            "" if answer is None else "allow" if answer.allow else "deny", "" if answer is None else answer.reason,
            "" if answer is None else answer.by, "" if answer is not None else rfc3339(prompt.deadline),
            "", len(prompt.packets), round((self._core.clock() - prompt.began) * 1000, 3), *prompt.told,
        )  # fmt: skip

    def find(self, number: int) -> ReferralRow | None:
        """The one that waits, or whose answer is remembered."""
        prompt = self._waiting.get(number)
        if prompt is not None:
            return self._row(prompt, None)
        return next((row for _, row in self._remembered.values() if row.number == number), None)

    def waiting(self) -> list[ReferralRow]:
        """Those that wait, the oldest first."""
        return [self._row(prompt, None) for prompt in self._waiting.values()]

    def remembered(self) -> list[ReferralRow]:
        """The answers that hold."""
        now = self._core.clock()
        return [row for until, row in self._remembered.values() if not until or until > now]


def _named(row: ReferralRow) -> dict[str, str]:
    return {"dns": row.dns} if row.dns else {}


def _addresses(workload: object, text: str) -> tuple[Address, ...]:
    endpoint = getattr(workload, "endpoint", None)
    if endpoint is not None:
        found: tuple[Address, ...] = endpoint.addresses
        return found
    try:
        return (ipaddress.ip_address(text),)
    except ValueError:
        return ()
