"""What the rules say to a referred connection, fast: only the rules about it, with the facts they ask for. Pure.

The evaluator of :mod:`casemate.policy.reference` goes through every rule; a referral is decided thousands of times a
second. So the rules about a pair of ends and a port are looked for once and kept until the policy or an end changes.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from casemate.node.policy.endpoints import GRADE, LEVEL
from casemate.policy.decision import Decision
from casemate.policy.identity import Connection, Endpoint, Kind
from casemate.policy.labels import Labels
from casemate.policy.parse import Document
from casemate.policy.ports import Protocol
from casemate.policy.reference import evaluate, holds, matches
from casemate.policy.rules import Direction, Rule, RuleSet, Workloads

MAX_KEPT = 65_536
#: Kinds of workloads (by labels) whose rules are kept; each is looked for among all rules, 10 ms for 10,000.
MAX_SUBJECTS = 4096
#: Facts that another connection of the same two ends may have otherwise: an answer by them is for one connection.
_PASSING = re.compile(r"\b(time|rate|first_contact)\b")
_PLACE = re.compile(r"\b(protocol|port)\b")
_HISTORY = re.compile(r"\bfirst_contact\b")


@dataclass(frozen=True, slots=True)
class Relevant:
    """The rules about one kind of connection. *lasting*: an answer holds for the next one too; *history*: a condition
    asks whether these two have met; *decision* stands where no condition is left to ask.
    """

    rules: RuleSet
    lasting: bool
    history: bool
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class Paths:
    """The rules about two ends, whatever the port. Between two of *cuts* every port is in the same rules; *by_port*:
    a condition names the port or the protocol, so that each may have another answer.
    """

    rules: tuple[Rule, ...]
    cuts: tuple[int, ...]
    by_port: bool

    def place(self, port: int) -> int:
        """Of the ports with the same place the rules say the same, facts aside; for one protocol."""
        return port if self.by_port else bisect_right(self.cuts, port)


class Decider:
    """Decides by *rules* (those of the documents); make another when they change."""

    def __init__(self, rules: RuleSet, documents: Iterable[Document] = ()) -> None:
        self._rules = rules
        #: By direction: those whose subject a workload is, by all that a subject can see of it.
        self._about: dict[tuple[Direction, Kind, str, Labels, Labels], tuple[Rule, ...]] = {}
        #: What conditions without passing facts say to two ends, and such rules without their condition.
        self._held: dict[tuple[int, Endpoint, Endpoint, Protocol | None, int], bool] = {}
        self._bare: dict[int, Rule] = {}
        self._segments: list[tuple[str, Workloads]] = [pair for one in documents for pair in one.parsed.segments]
        self._pairs: dict[tuple[Endpoint, Endpoint], Paths] = {}
        self._relevant: dict[tuple[Endpoint, Endpoint, object, int], Relevant] = {}
        self._shown: dict[Endpoint, Mapping[str, Any]] = {}

    def relevant(self, asked: Connection) -> Relevant:
        pair = self._pairs.get((asked.source, asked.destination)) or self._paired(asked)
        key = (asked.source, asked.destination, asked.protocol, pair.place(asked.port))
        found = self._relevant.get(key)
        if found is None:
            if len(self._relevant) >= MAX_KEPT:
                self._relevant.clear()
            found = self._relevant[key] = self._worked_out(pair, asked)
        return found

    def paths(self, source: Endpoint, destination: Endpoint) -> Paths:
        found = self._pairs.get((source, destination))
        return found or self._paired(Connection(source, destination, Protocol.OTHER, 0))

    def _paired(self, asked: Connection) -> Paths:
        """The rules about both ends, without a look at the port; a scan of a pod goes through them once."""
        if len(self._pairs) >= MAX_KEPT:
            self._pairs.clear()
        near = (
            *self._of_subject(asked.source, Direction.EGRESS),
            *self._of_subject(asked.destination, Direction.INGRESS),
        )
        rules = tuple(rule for rule in near if matches(rule, asked, any_port=True))
        cuts: set[int] = set()
        for one in (one for rule in rules for one in rule.ports or ()):
            if one.name:
                cuts.update(end for port in asked.destination.ports for end in (port.number, port.number + 1))
            else:
                cuts.update((one.first, one.last + 1))
        by_port = any(rule.condition is not None and _PLACE.search(rule.condition.source) for rule in rules)
        pair = self._pairs[asked.source, asked.destination] = Paths(rules, tuple(sorted(cuts)), by_port)
        return pair

    def _worked_out(self, pair: Paths, asked: Connection) -> Relevant:
        rules = [rule for rule in pair.rules if matches(rule, asked)]
        sources = [rule.condition.source for rule in rules if rule.condition is not None]
        known = tuple(one for rule in rules if (one := self._answered(rule, asked)) is not None)
        ruled = RuleSet(known, self._rules.audited, self._rules.default)
        lasting = not any(map(_PASSING.search, sources))
        # Without a condition that is still to be asked no fact is looked at.
        decision = evaluate(ruled, asked, {}) if lasting else None
        return Relevant(ruled, lasting, any(map(_HISTORY.search, sources)), decision)

    def _of_subject(self, end: Endpoint, way: Direction) -> tuple[Rule, ...]:
        key = (way, end.kind, end.project, end.labels, end.project_labels)
        found = self._about.get(key)
        if found is None:
            if len(self._about) >= MAX_SUBJECTS:
                self._about.clear()
            found = self._about[key] = tuple(
                rule for rule in self._rules.rules if rule.direction is way and rule.subject.matches(end)
            )
        return found

    def _answered(self, rule: Rule, asked: Connection) -> Rule | None:
        """*rule* without its condition where that holds for every connection of this kind; None where it never does."""
        if rule.condition is None or _PASSING.search(rule.condition.source):
            return rule
        placed = _PLACE.search(rule.condition.source) is not None
        protocol, port = (asked.protocol, asked.port) if placed else (None, 0)
        key = (id(rule), asked.source, asked.destination, protocol, port)
        held = self._held.get(key)
        if held is None:
            if len(self._held) >= MAX_KEPT:
                self._held.clear()
            held = self._held[key] = holds(rule, self.facts(asked, 0.0, first_contact=False, rate=0))
        if not held:
            return None
        bare = self._bare.get(id(rule))
        if bare is None:
            bare = self._bare[id(rule)] = replace(rule, condition=None)
        return bare

    def decide(self, asked: Connection, now: float, *, first_contact: bool, rate: int) -> Decision:
        """What the list says, conditions answered from the facts."""
        relevant = self.relevant(asked)
        if relevant.decision is not None:
            return relevant.decision
        return evaluate(relevant.rules, asked, self.facts(asked, now, first_contact=first_contact, rate=rate))

    def facts(self, asked: Connection, now: float, *, first_contact: bool, rate: int) -> dict[str, Any]:
        """The facts that conditions may name (``casemate.policy.conditions.FACTS``)."""
        return {
            "source": self.end(asked.source),
            "destination": self.end(asked.destination),
            "protocol": asked.protocol.name.lower(),
            "port": asked.port,
            "time": moment(now),
            "first_contact": first_contact,
            "rate": rate,
        }

    def end(self, end: Endpoint) -> Mapping[str, Any]:
        found = self._shown.get(end)
        if found is None:
            if len(self._shown) >= MAX_KEPT:
                self._shown.clear()
            held = dict(end.labels)
            found = self._shown[end] = {
                "name": end.name,
                "project": end.project,
                "labels": held,
                "project_labels": dict(end.project_labels),
                "level": held.get(LEVEL, ""),
                "grade": held.get(GRADE, ""),
                "segments": [name for name, members in self._segments if members.matches(end)],
                "address": str(end.addresses[0]) if end.addresses else "",
                "names": sorted(end.dns),
            }
        return found


def moment(now: float) -> dict[str, int]:
    """*now* (seconds since 1970) as the fact ``time``; 1970-01-01 was a Thursday."""
    whole = int(now)
    days, left = divmod(whole, 86_400)
    return {"unix": whole, "hour": left // 3600, "minute": left // 60 % 60, "weekday": (days + 3) % 7}


class Rates:
    """New connections of each source in the last :data:`SECONDS`, counted second by second; bounded in sources."""

    SECONDS = 10

    def __init__(self, most: int = 16_384) -> None:
        self._most = most
        #: By source: the second of the last one, how many in all, and how many in each second.
        self._counts: dict[str, list[int]] = {}

    def count(self, source: str, now: float, more: int = 1) -> int:
        """*more* of *source*; how many with them."""
        second = int(now)
        held = self._counts.get(source)
        if held is None:
            if len(self._counts) >= self._most:
                self._counts.pop(next(iter(self._counts)))
            held = self._counts[source] = [second, 0, *[0] * self.SECONDS]
        last = held[0]
        if last != second:
            if second < last:  # the clock was set back
                held[1:] = [0] * (self.SECONDS + 1)
            for gone in range(last + 1, min(second, last + self.SECONDS) + 1):
                held[1] -= held[2 + gone % self.SECONDS]
                held[2 + gone % self.SECONDS] = 0
            held[0] = second
        held[2 + second % self.SECONDS] += more
        held[1] += more
        return held[1]
