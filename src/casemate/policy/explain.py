"""Why a connection has its verdict, and what would change it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from casemate.policy.decision import Decision, Side
from casemate.policy.identity import Connection
from casemate.policy.reference import Facts, evaluate
from casemate.policy.rules import RuleSet, Tier
from casemate.policy.verdict import Verdict

#: How many rules may have to go together before the answer is another; more is told as such.
MAX_STEPS = 8


@dataclass(frozen=True, slots=True)
class Change:
    """Without *rules* (ids, all of them) the verdict would be *verdict*, by *rule*."""

    rules: tuple[str, ...]
    verdict: Verdict
    rule: str

    def describe(self) -> str:
        return f"without {' and '.join(self.rules)}: {self.verdict.word} by {self.rule}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """*decision* on *asked*; *egress* and *ingress* say it in words; *changes* what rules' absence would do.

    *admit* is the narrowest pair of ends and port that a new rule would have to allow; "" where it passes already.
    """

    asked: Connection
    decision: Decision
    egress: str
    ingress: str
    changes: tuple[Change, ...]
    admit: str

    def lines(self) -> list[str]:
        verdict = self.decision.verdict
        out = [f"{self.asked.describe()}: {verdict.word} by {self.decision.rule}", self.egress, self.ingress]
        out += [change.describe() for change in self.changes]
        return [*out, self.admit] if self.admit else out


def explain(rules: RuleSet, asked: Connection, facts: Facts | None = None) -> Explanation:
    """Both sides' answers on *asked*, in words, and what would change the verdict."""
    decision = evaluate(rules, asked, facts)
    changes = [found for found in (_without(rules, asked, facts, decision),) if found is not None]
    admit = ""
    if decision.verdict is not Verdict.ALLOW:
        closed = [
            f"{name} of {end.name}"
            for name, end, side in (
                ("egress", asked.source, decision.egress),
                ("ingress", asked.destination, decision.ingress),
            )
            if side.verdict is not Verdict.ALLOW
        ]
        port = f"{asked.protocol.name.lower()}/{asked.port}"
        admit = f"to admit it: a rule that allows {port}, before the deciding one, for the {' and the '.join(closed)}"
        guards = {rule.id for rule in rules.rules if rule.tier is Tier.GUARD}
        if deciding := guards & {decision.egress.rule, decision.ingress.rule}:
            # "Quarantine:egress", "Wall/NAME:WHAT".
            kinds = {rule.replace("/", ":").partition(":")[0].lower() for rule in deciding}
            ways = " and ".join(f"`casemate {kind} release`" for kind in sorted(kinds))
            admit = f"to admit it: no rule stands before a quarantine or a wall; {ways} lets it go on"
    return Explanation(
        asked,
        decision,
        _words(rules, "egress", asked.source.name, decision.egress),
        _words(rules, "ingress", asked.destination.name, decision.ingress),
        tuple(changes),
        admit,
    )


def _without(rules: RuleSet, asked: Connection, facts: Facts | None, decision: Decision) -> Change | None:
    """The deciding rules, taken away one after the other until the verdict is another."""
    gone: list[str] = []
    known = {rule.id for rule in rules.rules}
    now = decision
    while now.verdict is decision.verdict and now.rule in known and len(gone) < MAX_STEPS:
        gone.append(now.rule)
        left = tuple(rule for rule in rules.rules if rule.id not in gone)
        now = evaluate(replace(rules, rules=left), asked, facts)
    return Change(tuple(gone), now.verdict, now.rule) if now.verdict is not decision.verdict else None


def _words(rules: RuleSet, way: str, end: str, side: Side) -> str:
    found = next((rule for rule in rules.rules if rule.id == side.rule), None)
    because = f": {found.describe()} (tier {found.tier.name.lower()})" if found else ""
    named = f" {found.name!r}" if found and found.name else ""
    return f"{way} of {end}: {side.verdict.word} by {side.rule}{named}{because}"
