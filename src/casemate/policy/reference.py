"""The slow, obvious evaluator: one connection, every rule in order. The judge of the compiler; also of referrals.

It knows endpoints and addresses, not identities: what the compiler makes of those is what it is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from casemate.policy.decision import DEFAULT_RULE, UNGOVERNED, Decision, Side
from casemate.policy.errors import ConditionFailed
from casemate.policy.identity import Connection, Endpoint, Kind
from casemate.policy.rules import Anyone, Blocks, Direction, Names, Peer, Rule, RuleSet, Tier, Workloads
from casemate.policy.verdict import VERDICT_OF, Action, Verdict

Facts = Mapping[str, Any]


def evaluate(rules: RuleSet, asked: Connection, facts: Facts | None = None) -> Decision:
    """The decision on a new connection. Without *facts* a rule with a condition refers; with them it is asked."""
    return Decision(_side(rules, Direction.EGRESS, asked, facts), _side(rules, Direction.INGRESS, asked, facts))


def _side(rules: RuleSet, way: Direction, asked: Connection, facts: Facts | None) -> Side:
    subject, _ = asked.ends(way is Direction.EGRESS)
    if subject.kind is not Kind.POD:
        return Side(Verdict.ALLOW, UNGOVERNED)
    audited = audited_tiers(rules, subject)
    passed: set[Tier] = set()
    would: str | None = None
    least: str | None = None
    for rule in rules.rules:
        if rule.direction is not way or rule.tier in passed or not matches(rule, asked):
            continue
        if rule.condition is not None and facts is not None and not holds(rule, facts):
            continue
        if rule.least:
            least = least or rule.id
        elif rule.action in (Action.DENY, Action.REFER) and (rule.audit or rule.tier in audited):
            would = would or rule.id
        elif rule.condition is not None and facts is None:
            return Side(Verdict.REFER, rule.id)
        elif rule.action is Action.PASS:
            passed.add(rule.tier)
        else:
            return _final(VERDICT_OF[rule.action], rule.id, would, least)
    if rules.default is not Action.ALLOW and Tier.DEFAULT in audited:
        return _final(Verdict.ALLOW, DEFAULT_RULE, would or DEFAULT_RULE, least)
    return _final(VERDICT_OF[rules.default], DEFAULT_RULE, would, least)


def _final(verdict: Verdict, rule: str, would: str | None, least: str | None) -> Side:
    if least is not None and verdict < Verdict.REFER:
        return Side(Verdict.REFER, least)
    if would is not None and verdict is Verdict.ALLOW:
        return Side(Verdict.AUDIT, would)
    return Side(verdict, rule)


def holds(rule: Rule, facts: Facts) -> bool:
    """A condition that gives no yes or no counts as what closes: a rule that allows or passes does not match."""
    assert rule.condition is not None
    try:
        return rule.condition.holds(facts)
    except ConditionFailed:
        return rule.action in (Action.DENY, Action.REFER)


def audited_tiers(rules: RuleSet, subject: Endpoint) -> set[Tier]:
    return {tier for segment in rules.audited if segment.subject.matches(subject) for tier in segment.tiers}


def matches(rule: Rule, asked: Connection, *, any_port: bool = False) -> bool:
    """Whether *rule* is about this connection, its condition and hours aside; with *any_port* about these ends."""
    subject, peer = asked.ends(rule.direction is Direction.EGRESS)
    if not rule.subject.matches(subject) or not any(peer_matches(p, peer, subject) for p in rule.peers):
        return False
    return (
        any_port
        or rule.ports is None
        or any(p.covers(asked.protocol, asked.port, asked.destination.ports) for p in rule.ports)
    )


def peer_matches(peer: Peer, end: Endpoint, subject: Endpoint) -> bool:
    match peer:
        case Workloads():
            return peer.matches(end) and peer.is_kin(end, subject)
        case Blocks():
            return any(peer.group.holds(address) for address in end.addresses)
        case Names():
            return peer.covers(end.dns)
        case Anyone():
            return True
