"""Referrals that are all the same: packets of one event between the same two ends, which the same rules answer.

Nothing can change within one turn of the loop, so who both ends are is looked up once for each pair of addresses, and
what the rules say once for each stretch of ports in which the same rules match. A packet that is in a lane needs no
more than to be put there; one that needs facts of its own, the store or a person is in none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from casemate.hostd.protocol_firewall import ReferredPacket
from casemate.node.policy.cases import WORDS, Answer, Told
from casemate.node.policy.deciding import Decider, Paths
from casemate.node.policy.referral_packs import Kind, Run
from casemate.policy.identity import Connection, Endpoint
from casemate.policy.ports import Protocol
from casemate.policy.verdict import Verdict

PROTOCOLS = {protocol.value: protocol for protocol in Protocol}
#: How long the kernel keeps a refusal: long enough against a flood, short enough for a rule that is just being written.
DENY_LIFETIME_S = 5


class Spoken:
    """Answers of rules, by what the rules say: each is made once. One that lets pass holds for *lifetime_s*."""

    def __init__(self, lifetime_s: int) -> None:
        self._lifetime_s = lifetime_s
        self._made: dict[tuple[Verdict, str, bool], Answer] = {}

    def clear(self) -> None:
        self._made.clear()

    def answer(self, verdict: Verdict, rule: str, *, lasting: bool) -> Answer | None:
        """None where a person is to be asked; *lasting*: it holds for the next connection too."""
        if verdict is Verdict.REFER:
            return None
        answer = self._made.get((verdict, rule, lasting))
        if answer is None:
            if verdict <= Verdict.AUDIT:
                answer = Answer(True, f"{verdict.word} by {rule}", rule, self._lifetime_s if lasting else 0)
            else:
                answer = Answer(False, f"deny by {rule}", rule, DENY_LIFETIME_S if lasting else 0)
            self._made[verdict, rule, lasting] = answer
        return answer


@dataclass(slots=True)
class Lane:
    """*packets* that all have *answer*."""

    asked: Connection
    answer: Answer
    told: Told
    packets: list[ReferredPacket] = field(default_factory=list)

    def run(self, first: int, at: float) -> Run:
        """The record of these packets, numbered from *first* on."""
        asked, answer = self.asked, self.answer
        kind = Kind(
            asked.source.name, asked.destination.name, WORDS[asked.protocol], "allow" if answer.allow else "deny",
            answer.reason, answer.by, answer.lifetime_s, *self.told,
        )  # fmt: skip
        return Run(first, at, kind, [packet.port for packet in self.packets])


@dataclass(slots=True)
class Pair:
    """Both ends of packets. *clear*: no wall has anything to say or to write about them; *plain*: nor does a person
    have a question about them before him.
    """

    source: Endpoint
    destination: Endpoint
    clear: bool
    plain: bool
    paths: Paths
    told: Told
    #: By protocol and stretch of ports; None: each packet is looked at by itself.
    lanes: dict[tuple[int, int], Lane | None] = field(default_factory=dict)

    def asked(self, packet: ReferredPacket) -> Connection:
        return Connection(self.source, self.destination, PROTOCOLS.get(packet.protocol, Protocol.OTHER), packet.port)

    def takes(self, packet: ReferredPacket, decider: Decider, spoken: Spoken) -> bool:
        """Whether *packet* is in one of the lanes now."""
        key = (packet.protocol, self.paths.place(packet.port))
        try:
            lane = self.lanes[key]
        except KeyError:
            lane = self.lanes[key] = self._lane(packet, decider, spoken) if self.clear and self.plain else None
        if lane is None:
            return False
        lane.packets.append(packet)
        return True

    def _lane(self, packet: ReferredPacket, decider: Decider, spoken: Spoken) -> Lane | None:
        asked = self.asked(packet)
        decision = decider.relevant(asked).decision
        answer = spoken.answer(decision.verdict, decision.rule, lasting=True) if decision is not None else None
        return Lane(asked, answer, self.told) if answer is not None else None


def used(pairs: Iterable[Pair]) -> list[Lane]:
    """The lanes of *pairs* that packets are in."""
    return [lane for pair in pairs for lane in pair.lanes.values() if lane is not None]
