"""Hostile and broken input: refused with a word, quickly, and never with another error."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from casemate.policy.cells import cell_at
from casemate.policy.conditions import Condition, condition
from casemate.policy.errors import (
    ConditionFailed,
    ConditionInvalid,
    IdentitiesExhausted,
    PolicyInvalid,
    PolicyTooLarge,
)
from casemate.policy.identity import FIRST_NUMBER, NOBODY, Endpoint, Identity, Kind
from casemate.policy.labels import labels
from casemate.policy.parse import parse
from casemate.policy.plan import Planner
from casemate.policy.ports import Protocol, place
from casemate.policy.source import MAX_BYTES, load_documents
from casemate.policy.verdict import Verdict
from casemate.spec.errors import Conflict

#: A bound on time that catches what grows faster than its input; this machine may be busy.
QUICKLY_S = 8.0


def one(text: str) -> object:
    (value,) = load_documents(text.encode(), "t")
    return value


@pytest.mark.parametrize(("text", "value"), [
    ("a: no", {"a": "no"}), ("a: on", {"a": "on"}), ("a: 1:30", {"a": "1:30"}), ("a: 0o7", {"a": "0o7"}),
    ("a: 08", {"a": 8}), ("a: 1.5", {"a": 1.5}), ("a: true", {"a": True}), ("a: ~", {"a": None}), ("a:", {"a": None}),
    ("a: '1'", {"a": "1"}), ('{"a": [1, "x", null]}', {"a": [1, "x", None]}), ("a: 2026-01-01", {"a": "2026-01-01"}),
    ("a: 99999999999999999999", {"a": 1e20}),
])  # fmt: skip
def test_scalars_are_yaml_1_2_s(text: str, value: object) -> None:
    assert one(text) == value


@pytest.mark.parametrize("text", [
    "a: &x 1\nb: *x", "a: &x [1]", "*x", "a: !!python/object/apply:os.system ['true']", "a: !x 1", "!!map {a: 1}",
    "a: 1\na: 2", "? [1]\n: 2", "a: [", "a: }", "a\n\tb: 1", "\x00", "a: \x07", "%YAML 9.9\n---\na: 1",
    "a: 'x", "- - {",
    "<<: {a: 1}\n<<: {b: 2}", "\ufeff\ufeffa: [", "a: |2\n b", "- &a [*a]",
])  # fmt: skip
def test_what_is_no_plain_document_is_refused(text: str) -> None:
    with pytest.raises(PolicyInvalid, match=r"^t"):
        load_documents(text.encode(), "t")


def test_not_utf8() -> None:
    with pytest.raises(PolicyInvalid, match="UTF-8"):
        load_documents(b"a: \xff", "t")


BOMB = "a: &a [x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]" for n in range(20)
)


@pytest.mark.parametrize(("make", "error"), [
    (lambda: BOMB, PolicyInvalid),
    (lambda: "[" * 100_000, PolicyTooLarge),
    (lambda: "{a: " * 100_000, PolicyTooLarge),
    (lambda: "- " * 100_000, PolicyTooLarge),
    (lambda: "? " * 50_000, (PolicyTooLarge, PolicyInvalid)),
    (lambda: "a: " + "x" * 100_000, PolicyTooLarge),
    (lambda: "--- a\n" * 20_000, PolicyTooLarge),
    (lambda: "x" * (MAX_BYTES + 1), PolicyTooLarge),
    (lambda: "a: " + "9" * 4000, PolicyInvalid),
    (lambda: "{" + ",".join(f"k{n}: 1" for n in range(50_000)) + "}", PolicyInvalid),
    (lambda: "!" * 60_000, PolicyInvalid),
    (lambda: "# " * 200_000 + "\n[", PolicyInvalid),
])  # fmt: skip
def test_bombs_are_refused_quickly(make: Callable[[], str], error: type[Exception]) -> None:
    start = time.monotonic()
    with pytest.raises(error):
        parse(make().encode())
    assert time.monotonic() - start < QUICKLY_S


def test_a_long_number_is_no_number_and_takes_no_time() -> None:
    assert one("a: " + "9" * 4000) == {"a": "9" * 4000}


@pytest.mark.parametrize("source", [
    "port > 79 && source.labels.app == 'web'",
    "has(source.grade) && source.grade in ['a', 'b']",
    "destination.names.exists(n, n.endsWith('.example.org'))",
    f"[{','.join(['abc'.join(chr(39) * 2)] * 100)}].exists(n, source.labels.app == n) && rate < 10",
    "destination.names.filter(n, n.endsWith('.example.org')).size() > 1",
    "!first_contact || (time.hour >= 8 && time.weekday < 5) ? rate < 100 : false",
    "source.labels['a//b'] == 'x' && size(source.name) > 2 && int(source.level) != -1",
])  # fmt: skip
def test_conditions_over_the_documented_facts(source: str) -> None:
    assert condition(source, "x").source == source


@pytest.mark.parametrize(("source", "why"), [
    ("port >", "does not parse"),
    ("", "does not parse"),
    ("prot == 3", "unknown fact 'prot'"),
    ("source.name.matches('(a+)+$')", "'matches' is not allowed"),
    ("timestamp(source.name) > timestamp('2026-01-01T00:00:00Z')", "'timestamp' is not allowed"),
    ("[1,2].all(a, [1,2].all(b, a > b))", "2 comprehensions"),
    ("[1].map(a, [a, a]).size() > [2].map(b, b).size()", "2 comprehensions"),
    ("[1] . map ( a , [1] . filter ( b , b > 1 ) ) == []", "2 comprehensions"),
    (f"[{','.join(['1'] * 330)}].exists(x, rate{'+x' * 160} < 0)", "330 times 161 steps"),
    (f"[{','.join(['1'] * 150)}].all(a, a in [{','.join(['1'] * 150)}])", "150 times 150 steps"),
    (f"[{','.join(['1'] * 330)}].map(x, x).size() > 0", "'map' takes some 330 times 660 steps"),
    (f"[{','.join(['[1]'] * 200)}][0].filter(x, x > 0) == []", "'filter' takes"),
    (f"destination.names.map(n, [n]{'+[n]' * 20}).size() > 0", "64 times"),
    ("port == 1 " + "|| port == 1" * 100, "characters"),
    ("(" * 30 + "true" + ")" * 30, "nest deeper"),
    ("source.name == '\\x41'", "escapes"),
    ("port == 1 // comment", "comments"),
    ("source.name == '''a'''", "triple"),
    ("source.name == '[' + \"('\" ) && (((((((((((((((true)))))))))))))))", "deeper"),
])  # fmt: skip
def test_conditions_out_of_bounds(source: str, why: str) -> None:
    with pytest.raises(ConditionInvalid, match=r"^x: ") as caught:
        condition(source, "x")
    assert why in caught.value.detail
    assert caught.value.code == "policy.condition_invalid"


def test_the_dearest_condition_is_cheap() -> None:
    """As many list entries as fit, compared with as much as is allowed; a list built of as many as are allowed."""
    values = ",".join(["1"] * 330)
    ones = ",".join(["1"] * 20)
    for source in (f"[{values}].all(a, {'1+' * 47}a > 0)", f"[{ones}].map(a, {'[a]+' * 25}[a]).size() > 0"):
        dear = condition(source, "x")
        start = time.monotonic()
        assert dear.holds({})
        assert time.monotonic() - start < 0.5


@pytest.mark.parametrize(
    "source", ["port + 1", "source.name", "source.labels.none == 'x'", "port / 0 == 1", "port > 'x'"]
)
def test_what_is_no_yes_or_no_fails(source: str) -> None:
    with pytest.raises(ConditionFailed) as caught:
        Condition(source).holds({"port": 1, "source": {"name": "n", "labels": {}}})
    assert caught.value.code == "policy.condition_failed"


def test_identities_run_out_with_a_word() -> None:
    many = [Identity(Kind.POD, project=f"p{n}") for n in range(4)]
    with pytest.raises(IdentitiesExhausted) as caught:
        NOBODY.allocate(many, last_number=FIRST_NUMBER + 2)
    assert caught.value.code == "policy.identities_exhausted"


def test_numbers_stay_and_are_used_again_last() -> None:
    one, two, three, four = (Identity(Kind.POD, project=f"p{n}") for n in range(4))
    held = NOBODY.allocate([one, two], last_number=FIRST_NUMBER + 2)
    assert held.allocate([two, one]) is held
    later = held.release([one]).allocate([three], last_number=FIRST_NUMBER + 2)
    assert later.numbers == {two: 257, three: 258}
    assert later.allocate([four], last_number=FIRST_NUMBER + 2).numbers[four] == FIRST_NUMBER


def test_one_address_has_one_owner() -> None:
    import ipaddress  # noqa: PLC0415

    address = (ipaddress.ip_address("10.0.0.1"),)
    planner = Planner(parse(b"").in_force(0), [Endpoint("a", "p", addresses=address)])
    with pytest.raises(Conflict, match="belongs to a"):
        planner.put(Endpoint("b", "p", addresses=address))
    planner.drop("a")
    planner.put(Endpoint("b", "p", addresses=address))


NP = "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p}}, spec: {}}}"


@pytest.mark.parametrize(("spec", "path"), [
    ("{podselector: {}}", "p[0].spec"),
    ("{podSelector: {matchLabels: [a]}}", "p[0].spec.podSelector.matchLabels"),
    ("{podSelector: {matchLabels: {'a b': c}}}", "p[0].spec.podSelector.matchLabels"),
    ("{podSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}}", "matchExpressions[0].operator"),
    ("{podSelector: {matchExpressions: [{key: a, operator: In}]}}", "matchExpressions[0]"),
    ("{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}", "matchExpressions[0]"),
    ("{policyTypes: [Egres]}", "p[0].spec.policyTypes[0]"),
    ("{ingress: [{to: []}]}", "p[0].spec.ingress[0]"),
    ("{ingress: [{from: [{}]}]}", "p[0].spec.ingress[0].from[0]"),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}", "p[0].spec.ingress[0].from[0]"),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}", "from[0].ipBlock.cidr"),
    ("{ingress: [{ports: [{port: 0}]}]}", "p[0].spec.ingress[0].ports[0].port"),
    ("{ingress: [{ports: [{port: 80, endPort: 79}]}]}", "ports[0].endPort"),
    ("{ingress: [{ports: [{endPort: 79}]}]}", "ports[0].endPort"),
    ("{ingress: [{ports: [{port: web, endPort: 79}]}]}", "ports[0].endPort"),
    ("{ingress: [{ports: [{port: Web_1}]}]}", "ports[0].port"),
    ("{ingress: [{ports: [{protocol: tcp}]}]}", "ports[0].protocol"),
    ("{policyTypes: [Ingress], egress: [{tp: []}]}", "p[0].spec.egress[0]"),
])  # fmt: skip
def test_a_network_policy_s_errors_name_their_path(spec: str, path: str) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        parse(NP.format(spec).encode(), "p")
    assert path in caught.value.detail


def test_a_hundred_thousand_rules_are_read_and_more_are_not() -> None:
    """Bounds hold at the documents' total too: each NetworkPolicy closes besides what it allows."""
    rule = '{"ports":[{"port":1}]}'
    most = f'{{"ingress":[{",".join([rule] * 99_999)}]}}'
    start = time.monotonic()
    assert len(parse(NP.format(most).encode()).rules) == 100_000
    assert time.monotonic() - start < QUICKLY_S * 5
    with pytest.raises(PolicyTooLarge):
        parse(NP.format(f'{{"ingress":[{",".join([rule] * 100_001)}]}}').encode())


def test_a_huge_list_of_networks_is_cut_once() -> None:
    blocks = ",".join(f"{{ipBlock: {{cidr: 10.{n >> 8}.{n & 255}.0/24}}}}" for n in range(3000))
    start = time.monotonic()
    policies = parse(NP.format(f"{{ingress: [{{from: [{blocks}]}}]}}").encode())
    assert time.monotonic() - start < QUICKLY_S
    planner = Planner(policies.in_force(0), [Endpoint("p/a", "default")])
    assert len(planner.compiler.identities) == 3
    # One run of 3,000 neighbours, what is before and behind it, and all of IPv6.
    assert len(planner.start.address_adds) == 4


def test_pairs_beyond_the_bound_are_told_and_not_tried() -> None:
    """A rule between two broad selectors is a square of identities."""
    text = NP.format("{ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: Exists}]}}]}]}")
    ends = [Endpoint(f"p/{n}", "default", labels({"app": f"a{n}"})) for n in range(2_100)]
    start = time.monotonic()
    with pytest.raises(PolicyTooLarge, match="in particular"):
        Planner(parse(text.encode()).in_force(0), ends)
    assert time.monotonic() - start < QUICKLY_S * 10


def test_many_rules_about_one_pair_take_their_number_not_its_square() -> None:
    """Before it was so, 6,000 of them took minutes."""
    count = 6000
    rules = "".join(
        f"    - {{from: [{{segment: a}}], to: [{{segment: b}}], ports: [tcp/{number + 1}], "
        f"action: {'allow' if number % 2 else 'deny'}}}\n"
        for number in range(count)
    )
    text = (
        "apiVersion: casemate/v1\nkind: Policy\nmetadata: {name: big}\nspec:\n  segments:\n"
        "    a: {select: {matchLabels: {app: a}}}\n    b: {select: {matchLabels: {app: b}}}\n  rules:\n" + rules
    )
    ends = [Endpoint(f"default/{name}", "default", (("app", name),)) for name in ("a", "b")]
    planner = Planner(parse(text.encode()).in_force(0), ends)
    cells = planner.compiler.cells(planner.number("default/a"), planner.number("default/b"))
    for port in (1, 2, 3, count - 1, count, count + 1):
        wanted = Verdict.ALLOW if port > count or port % 2 == 0 else Verdict.DENY
        assert cell_at(cells, place(Protocol.TCP, port)).verdict is wanted, port
