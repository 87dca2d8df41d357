"""Casemate's own documents: what they mean, what is refused and with which path; the schema beside the reader."""

# ruff: noqa: E501 - rows of a table
from __future__ import annotations

import importlib.util
import ipaddress
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from casemate.policy.analysis import warnings
from casemate.policy.crossings import prove
from casemate.policy.errors import PolicyInvalid, PolicyTooLarge
from casemate.policy.explain import explain
from casemate.policy.flows import simulate, suggest
from casemate.policy.identity import Connection, Endpoint, Kind
from casemate.policy.labels import Selector, labels
from casemate.policy.parse import Policies, parse, read
from casemate.policy.plan import Planner
from casemate.policy.ports import Protocol, parse_port
from casemate.policy.reference import evaluate
from casemate.policy.rules import Anyone, Direction, Rule, Tier, Workloads
from casemate.policy.schema import policy_schema
from casemate.policy.verdict import Action, Verdict
from casemate.policy.windows import minutes_to_next_border

SHOP = b"""
apiVersion: casemate/v1
kind: Policy
metadata: {name: shop, project: shop}
spec:
  segments:
    web: {select: {matchLabels: {app: web}}, default: deny}
    db: {select: {matchLabels: {app: db}}, default: {ingress: deny, egress: refer}}
    try: {select: {matchLabels: {app: try}}, default: deny, audit: true}
  rules:
    - {name: web-db, from: [{segment: web}], to: [{segment: db}], ports: [tcp/5432], action: allow}
    - {from: [{segment: web}], to: [{names: ["*.example.org"]}], ports: [tcp/443], action: allow}
    - {from: any, to: [{segment: web}], ports: [tcp/80], action: allow, when: 'source.labels.team == "blue"'}
    - from: [{segment: web}]
      to: [{cidr: 192.0.2.0/24, except: [192.0.2.9/32]}]
      action: allow
      during: [{days: [mon, fri], from: "22:00", to: "06:00"}]
"""
WEB = Endpoint("shop/web", "shop", labels({"app": "web"}))
DB = Endpoint("shop/db", "shop", labels({"app": "db"}))
TRY = Endpoint("shop/try", "shop", labels({"app": "try"}))
OTHER = Endpoint("lab/x", "lab", labels({"app": "web"}))
API = Endpoint("api", kind=Kind.WORLD, dns=frozenset({"API.example.org."}))
APEX = Endpoint("apex", kind=Kind.WORLD, dns=frozenset({"example.org"}))


def outside(address: str) -> Endpoint:
    return Endpoint(address, kind=Kind.WORLD, addresses=(ipaddress.ip_address(address),))


def verdict(
    policies: Policies, one: Endpoint, other: Endpoint, port: str, *, minute: int = 0, facts: Any = None
) -> Verdict:
    return evaluate(policies.in_force(minute), Connection(one, other, *parse_port(port)), facts).verdict


@pytest.fixture(scope="module")
def shop() -> Policies:
    return parse(SHOP, "shop.yaml")


@pytest.mark.parametrize(("one", "other", "port", "expected"), [
    (WEB, DB, "tcp/5432", Verdict.ALLOW),
    (WEB, DB, "tcp/5433", Verdict.DENY),
    (WEB, DB, "udp/5432", Verdict.DENY),
    (DB, WEB, "tcp/5432", Verdict.DENY),
    (OTHER, DB, "tcp/5432", Verdict.DENY),
    (WEB, API, "tcp/443", Verdict.ALLOW),
    (WEB, APEX, "tcp/443", Verdict.DENY),
    (DB, API, "tcp/443", Verdict.REFER),
    (OTHER, WEB, "tcp/80", Verdict.REFER),
    (TRY, API, "tcp/443", Verdict.AUDIT),
    (TRY, DB, "tcp/5432", Verdict.DENY),
    (OTHER, API, "tcp/443", Verdict.ALLOW),
])  # fmt: skip
def test_what_the_rules_mean(shop: Policies, one: Endpoint, other: Endpoint, port: str, expected: Verdict) -> None:
    assert verdict(shop, one, other, port) is expected


def test_a_referral_is_decided_by_its_facts(shop: Policies) -> None:
    blue, red = ({"source": {"labels": {"team": team}}} for team in ("blue", "red"))
    assert verdict(shop, OTHER, WEB, "tcp/80", facts=blue) is Verdict.ALLOW
    assert verdict(shop, OTHER, WEB, "tcp/80", facts=red) is Verdict.DENY
    # The fact is not there: no yes, and a rule that allows does not match.
    assert verdict(shop, OTHER, WEB, "tcp/80", facts={"source": {"labels": {}}}) is Verdict.DENY


@pytest.mark.parametrize(("minute", "expected"), [
    (22 * 60 - 1, Verdict.DENY), (22 * 60, Verdict.ALLOW), (30 * 60 - 1, Verdict.ALLOW), (30 * 60, Verdict.DENY),
    (4 * 1440 + 23 * 60, Verdict.ALLOW), (6 * 1440 + 23 * 60, Verdict.DENY),
])  # fmt: skip
def test_hours_hold_past_midnight(shop: Policies, minute: int, expected: Verdict) -> None:
    assert verdict(shop, WEB, outside("192.0.2.8"), "tcp/80", minute=minute) is expected
    assert verdict(shop, WEB, outside("192.0.2.9"), "tcp/80", minute=minute) is Verdict.DENY


def test_the_next_moment_to_compile_is_known(shop: Policies) -> None:
    windows = [window for rule in shop.rules for window in rule.windows]
    assert minutes_to_next_border(windows, 0) == 22 * 60
    assert minutes_to_next_border(windows, 22 * 60) == 8 * 60
    assert minutes_to_next_border([], 0) is None


def test_a_project_governs_its_own_ends_alone() -> None:
    text = SHOP.replace(b"project: shop", b"project: lab")
    assert verdict(parse(text), WEB, DB, "tcp/9") is Verdict.ALLOW


def test_an_audited_rule_opens_nothing_that_another_closes() -> None:
    rules = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: a}
spec:
  tier: operator
  rules:
    - {from: any, to: any, ports: [tcp/22], action: deny, audit: true}
    - {from: any, to: [{select: {matchLabels: {app: db}}}], action: deny}
"""
    policies = parse(rules.encode())
    assert verdict(policies, WEB, OTHER, "tcp/22") is Verdict.AUDIT
    assert verdict(policies, WEB, OTHER, "tcp/23") is Verdict.ALLOW
    assert verdict(policies, WEB, DB, "tcp/22") is Verdict.DENY


def broken(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "casemate/v1", "kind": "Policy", "metadata": {"name": "p"}, "spec": spec}


RULE = {"from": "any", "to": "any", "action": "allow"}


@pytest.mark.parametrize(("document", "path", "why"), [
    (broken(rule=[]), "p[0].spec", "unknown field 'rule'"),
    (broken(rules=[{"from": "any", "action": "allow"}]), "p[0].spec.rules[0]", "'to' is missing"),
    (broken(rules=[RULE | {"to": [{"segment": "no"}]}]), "p[0].spec.rules[0].to[0].segment", "no segment 'no'"),
    (broken(rules=[RULE | {"ports": ["tcp/70000"]}]), "p[0].spec.rules[0].ports[0]", "1..65535"),
    (broken(rules=[RULE | {"ports": ["tcp/9-8"]}]), "p[0].spec.rules[0].ports[0]", "lower first"),
    (broken(rules=[RULE | {"ports": ["gre"]}]), "p[0].spec.rules[0].ports[0]", "not a port"),
    (broken(rules=[RULE | {"ports": []}]), "p[0].spec.rules[0].ports", "at least 1"),
    (broken(rules=[RULE | {"ports": ["icmp/256"]}]), "p[0].spec.rules[0].ports[0]", "0..255"),
    (broken(rules=[RULE | {"audit": True}]), "p[0].spec.rules[0].audit", "deny or refer"),
    (broken(rules=[RULE | {"to": [{"cidr": "10.0.0.0"}]}]), "p[0].spec.rules[0].to[0].cidr", "CIDR"),
    (broken(rules=[RULE | {"to": [{"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}]}]),
     "p[0].spec.rules[0].to[0].except[0]", "not inside"),
    (broken(rules=[RULE | {"to": [{"names": ["a*b.org"]}]}]), "p[0].spec.rules[0].to[0].names[0]", "domain name"),
    (broken(rules=[RULE | {"during": [{"from": "25:00", "to": "06:00"}]}]), "during[0].from", "HH:MM"),
    (broken(segments={"s": {"select": {"matchLabels": {"tier": 1}}}}), "segments.s.select.matchLabels.tier", "quotes"),
    (broken(segments={"s": {"select": {}, "default": "open"}}), "segments.s.default", "none of deny"),
    (broken(walls=[{"name": "w", "members": {"a": [{"select": {}}], "b": [{"select": {}}]}}]), "p[0].spec.walls", "operator"),
    (broken(priority=1001), "p[0].spec.priority", "0..1000"),
    (broken(priority=True), "p[0].spec.priority", "whole number"),
    ({"apiVersion": "v2", "kind": "Policy"}, "p[0]", "not known"),
    (["x"], "p[0]", "no policy document"),
])  # fmt: skip
def test_every_error_names_its_path(document: Any, path: str, why: str) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        read([document], "p")
    assert path in caught.value.detail
    assert why in caught.value.detail
    assert caught.value.code == "policy.invalid"


def test_a_rule_that_governs_nobody_is_refused() -> None:
    ends = [{"select": {}, "project": "lab"}]
    with pytest.raises(PolicyInvalid, match="govern nobody"):
        read([broken(rules=[{"from": ends, "to": ends, "action": "allow"}])])


def test_one_name_once() -> None:
    with pytest.raises(PolicyInvalid, match="twice"):
        read([broken(), broken()])


def test_more_rules_than_allowed() -> None:
    with pytest.raises(PolicyTooLarge) as caught:
        read([broken(rules=[RULE] * 100_001)])
    assert caught.value.code == "policy.too_large"


def test_explain_names_rule_and_change(shop: Policies) -> None:
    rules = shop.in_force(0)
    told = explain(rules, Connection(WEB, DB, Protocol.TCP, 5433))
    assert told.decision.rule == "Policy/shop/shop:segment[web]:egress"
    assert "without Policy/shop/shop:segment[web]:egress and Policy/shop/shop:segment[db]:ingress: allow" in "\n".join(
        told.lines()
    )
    assert "egress of shop/web and the ingress of shop/db" in told.admit
    told = explain(rules, Connection(WEB, DB, Protocol.TCP, 5432))
    assert "'web-db'" in told.egress
    assert [change.verdict for change in told.changes] == [Verdict.DENY]
    assert told.admit == ""


@pytest.mark.parametrize(("rule", "way"), [("Wall/banks:other", "wall"), ("Quarantine:egress", "quarantine")])
def test_explain_names_the_way_past_what_no_rule_stands_before(shop: Policies, rule: str, way: str) -> None:
    everyone = Workloads(Selector())
    guard = Rule(rule, Tier.GUARD, (-1, "", 0), Direction.EGRESS, everyone, (Anyone(),), Action.DENY)
    rules = shop.in_force(0)
    told = explain(replace(rules, rules=(guard, *rules.rules)), Connection(WEB, DB, Protocol.TCP, 5432))
    assert told.decision.rule == rule
    assert f"`casemate {way} release`" in told.admit
    assert told.admit.count("release") == 1


def test_simulate_lists_what_differs(shop: Policies) -> None:
    flows = [(Connection(WEB, DB, Protocol.TCP, 5432), 7), (Connection(WEB, DB, Protocol.TCP, 5433), 2),
             (Connection(WEB, DB, Protocol.TCP, 5432), 1)]  # fmt: skip
    found = simulate(flows, Policies().in_force(0), shop.in_force(0))
    assert [(one.count, one.after.verdict) for one in found] == [(2, Verdict.DENY)]
    assert "allow by (default), would be deny by" in found[0].describe()


def test_suggest_admits_what_was_seen_and_nothing_else() -> None:
    seen = [Connection(WEB, DB, Protocol.TCP, 5432), Connection(WEB, API, Protocol.TCP, 443),
            Connection(outside("198.51.100.7"), WEB, Protocol.TCP, 80), Connection(WEB, DB, Protocol.ICMP, 8)]  # fmt: skip
    rules = read([suggest(seen)]).in_force(0)
    for flow in seen:
        assert evaluate(rules, flow).verdict is Verdict.ALLOW
    ends = [WEB, DB, outside("198.51.100.8"), APEX]
    for one in ends:
        for other in ends:
            flow = Connection(one, other, Protocol.TCP, 5432)
            if Kind.POD in (one.kind, other.kind) and flow not in seen:
                assert evaluate(rules, flow).verdict is Verdict.DENY


WALL = b"""
apiVersion: casemate/v1
kind: Policy
metadata: {name: walls}
spec:
  tier: operator
  walls:
    - name: banks
      members:
        acme: [{select: {matchLabels: {bank: acme}}}]
        globex: [{select: {matchLabels: {bank: globex}}}]
  rules:
    - {from: [{select: {matchLabels: {bank: acme}}}], to: [{select: {matchLabels: {app: relay}}}], action: allow}
    - from: [{select: {matchLabels: {app: relay}}}]
      to: [{select: {matchLabels: {app: cache}}}]
      ports: [tcp/11211]
      action: allow
    - {from: [{select: {matchLabels: {bank: globex}}}], to: [{select: {matchLabels: {app: cache}}}], action: allow}
    - {from: any, to: any, action: deny}
"""
BANKS = [
    Endpoint(f"p/{n}", "p", labels({k: n}))
    for k, n in (("bank", "acme"), ("bank", "globex"), ("app", "relay"), ("app", "cache"))
]


def test_a_path_across_a_wall_is_named() -> None:
    policies = parse(WALL)
    planner = Planner(policies.in_force(0), BANKS)
    (proof,) = prove(planner.compiler, policies.walls)
    (found,) = proof.crossings
    assert len(found.hops) == 3
    assert "tcp/11211" in found.describe(planner.compiler)
    assert "Policy/walls:rules[1]:egress[0]" in found.describe(planner.compiler)
    tight = parse(WALL.replace(b"[tcp/11211]\n      action: allow", b"[tcp/11211]\n      action: deny"))
    assert prove(Planner(tight.in_force(0), BANKS).compiler, tight.walls)[0].crossings == ()


OPERATORS_RULES = b"""
apiVersion: casemate/v1
kind: Policy
metadata: {name: w}
spec:
  tier: operator
  rules:"""


def test_warnings_name_what_is_hardly_meant() -> None:
    text = (
        OPERATORS_RULES
        + b"""
    - {from: [{select: {matchLabels: {app: wbe}}}], to: any, action: allow}
    - {from: [{select: {matchLabels: {team: blue}}}], to: any, action: allow}
    - {from: [{select: {matchLabels: {app: web}}}], to: any, action: allow}
    - {from: [{select: {matchLabels: {app: web}}}], to: any, action: deny}
"""
    )
    policies = parse(text)
    ends = [WEB, DB]
    told = "\n".join(warnings(policies, Planner(policies.in_force(0), ends).compiler, ends))
    assert "no 'app' has that value" in told
    assert "nothing has the label 'team'" in told
    assert "rules[3]:egress[0] contradicts Policy/w:rules[2]:egress[0]" in told
    assert "Policy/w:rules[3]:egress[0] never decides" in told
    assert "rules[2]:egress[0] never" not in told


def test_a_rule_by_name_is_not_said_to_be_idle_before_anybody_was_told_the_name() -> None:
    text = (
        OPERATORS_RULES
        + b"""
    - {from: [{select: {matchLabels: {app: web}}}], to: [{names: [api.example.org]}], ports: [tcp/443], action: allow}
    - {from: [{select: {matchLabels: {app: web}}}], to: any, action: deny}
    - {from: [{select: {matchLabels: {app: web}}}], to: [{names: [api.example.org]}], ports: [tcp/80], action: allow}
"""
    )
    policies = parse(text)

    def told(*ends: Endpoint) -> str:
        return "\n".join(warnings(policies, Planner(policies.in_force(0), ends).compiler, ends))

    assert "never decides" not in told(WEB, DB)
    named = Endpoint("192.0.2.1", kind=Kind.WORLD, dns=frozenset({"api.example.org"}))
    assert "rules[2]:egress[0] never decides" in told(WEB, DB, named)
    assert "rules[0]:egress[0] never decides" not in told(WEB, DB, named)


def test_the_schema_takes_what_the_reader_takes() -> None:
    if importlib.util.find_spec("jsonschema_rs") is None:
        pytest.skip("missing: jsonschema_rs (comes with schemathesis)")
    import jsonschema_rs  # noqa: PLC0415

    from casemate.policy.source import load_documents  # noqa: PLC0415

    schema = jsonschema_rs.validator_for(policy_schema())
    for text in (SHOP, WALL):
        for document in load_documents(text, "x"):
            schema.validate(document)
    assert not schema.is_valid(broken(rule=[]))
    assert not schema.is_valid(broken(rules=[{"from": "any", "action": "allow"}]))
    assert not schema.is_valid(broken(rules=[RULE | {"ports": ["gre"]}]))


def test_the_published_schema_is_not_stale() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "reference" / "policy-schema.json"
    assert json.loads(page.read_text()) == policy_schema()
