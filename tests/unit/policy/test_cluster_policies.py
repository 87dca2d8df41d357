"""ClusterNetworkPolicy and its forerunners: tiers, priorities, Pass; after the API's conformance cases."""

# ruff: noqa: E501 - documents in one line
from __future__ import annotations

import ipaddress

import pytest

from casemate.policy.cells import cell_at
from casemate.policy.errors import PolicyInvalid
from casemate.policy.identity import Connection, Endpoint, Kind
from casemate.policy.labels import labels
from casemate.policy.parse import parse
from casemate.policy.plan import Planner
from casemate.policy.ports import NamedPort, Protocol, parse_port, place
from casemate.policy.reference import evaluate
from casemate.policy.verdict import Verdict

HOUSES = ("gryffindor", "slytherin", "hufflepuff", "ravenclaw")
WEB = (NamedPort("web", Protocol.TCP, 80), NamedPort("dns", Protocol.UDP, 53), NamedPort("web", Protocol.SCTP, 9003))


def pod(house: str, *, ports: tuple[NamedPort, ...] = WEB, address: str = "") -> Endpoint:
    addresses = (ipaddress.ip_address(address),) if address else ()
    return Endpoint(house, f"ns-{house}", labels({"house": house}), labels({"house": house}), ports, addresses)


GRY, SLY, HUF, RAV = (pod(house) for house in HOUSES)


def cnp(name: str, tier: str, priority: int, rules: str) -> str:
    return f"""---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {{name: {name}}}
spec:
  tier: {tier}
  priority: {priority}
  subject: {{namespaces: {{matchLabels: {{house: gryffindor}}}}}}
{rules}
"""


def ingress(action: str, house: str = "slytherin", more: str = "") -> str:
    return f"  ingress: [{{action: {action}, from: [{{namespaces: {{matchLabels: {{house: {house}}}}}}}]{more}}}]"


NETWORK = """---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: np, namespace: ns-gryffindor}
spec: {podSelector: , policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {house: slytherin}}}]}]}
"""


def verdict(text: str, one: Endpoint, other: Endpoint, port: str = "tcp/80") -> Verdict:
    """By the reference, and the same by the compiler."""
    rules = parse(text.encode()).in_force(0)
    asked = Connection(one, other, *parse_port(port))
    planner = Planner(rules, [one, other])
    cells = planner.compiler.cells(planner.number(one.name), planner.number(other.name))
    judged = evaluate(rules, asked).verdict
    assert cell_at(cells, place(asked.protocol, asked.port)).verdict is judged
    return judged


ALLOW, DENY = Verdict.ALLOW, Verdict.DENY


@pytest.mark.parametrize(("text", "expected"), [
    ("", ALLOW),
    (cnp("a", "Admin", 10, ingress("Deny")), DENY),
    (cnp("a", "Baseline", 10, ingress("Deny")), DENY),
    (cnp("a", "Admin", 10, ingress("Deny")) + NETWORK, DENY),
    (cnp("a", "Admin", 10, ingress("Pass")) + NETWORK, ALLOW),
    (cnp("a", "Admin", 10, ingress("Pass")) + cnp("b", "Admin", 11, ingress("Deny")) + NETWORK, ALLOW),
    (cnp("a", "Admin", 10, ingress("Pass")) + cnp("b", "Baseline", 0, ingress("Deny")), DENY),
    (cnp("a", "Admin", 10, ingress("Pass")) + cnp("b", "Baseline", 0, ingress("Deny")) + NETWORK, ALLOW),
    (cnp("a", "Baseline", 1, ingress("Pass")) + cnp("b", "Baseline", 2, ingress("Deny")), ALLOW),
    (cnp("z", "Admin", 1, ingress("Accept")) + cnp("a", "Admin", 2, ingress("Deny")), ALLOW),
    (cnp("z", "Admin", 3, ingress("Accept")) + cnp("a", "Admin", 2, ingress("Deny")), DENY),
    (cnp("a", "Admin", 10, ingress("Deny", more=", protocols: [{tcp: {destinationPort: {number: 81}}}]")), ALLOW),
    (cnp("a", "Admin", 10, ingress("Deny", more=", protocols: [{destinationNamedPort: web}]")), DENY),
    (cnp("a", "Admin", 10, ingress("Deny", more=", protocols: [{tcp: {destinationPort: {range: {start: 79, end: 81}}}}]")),
     DENY),
])  # fmt: skip
def test_slytherin_to_gryffindor(text: str, expected: Verdict) -> None:
    assert verdict(text, SLY, GRY) is expected


def test_the_network_tier_decides_for_what_it_selects() -> None:
    text = NETWORK + cnp("b", "Baseline", 0, ingress("Accept", "hufflepuff"))
    assert verdict(text, HUF, GRY) is DENY
    assert verdict(text, HUF, RAV) is ALLOW


def test_a_named_port_is_the_destination_s_and_of_every_protocol_it_has() -> None:
    text = cnp("a", "Admin", 1, ingress("Deny", more=", protocols: [{destinationNamedPort: web}]"))
    assert verdict(text, SLY, GRY, "sctp/9003") is DENY
    assert verdict(text, SLY, GRY, "udp/53") is ALLOW
    assert verdict(text, SLY, pod("gryffindor", ports=(NamedPort("web", Protocol.TCP, 8080),))) is ALLOW


EGRESS = "  egress: [{action: %s, to: [%s]}, {action: Deny, to: [{networks: [0.0.0.0/0, '::/0']}]}]"


def test_networks_hold_pods_too_and_names_hold_what_was_asked_for() -> None:
    text = cnp("a", "Admin", 1, EGRESS % ("Accept", "{networks: [10.0.0.0/24]}"))
    assert verdict(text, GRY, pod("slytherin", address="10.0.0.9")) is ALLOW
    assert verdict(text, GRY, pod("slytherin", address="10.0.1.9")) is DENY
    text = cnp("a", "Admin", 1, EGRESS % ("Accept", "{domainNames: ['*.example.org']}"))
    address = (ipaddress.ip_address("192.0.2.1"),)
    for name, expected in (("www.example.org", ALLOW), ("a.b.example.org", ALLOW), ("example.org", DENY)):
        asked = Endpoint("w", kind=Kind.WORLD, addresses=address, dns=frozenset({name}))
        assert verdict(text, GRY, asked) is expected


def test_nodes_are_nodes() -> None:
    text = cnp("a", "Admin", 1, "  egress: [{action: Deny, to: [{nodes: {}}]}]")
    assert verdict(text, GRY, Endpoint("n", kind=Kind.NODE)) is DENY
    assert verdict(text, GRY, SLY) is ALLOW


ANP = """---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: %s
metadata: {name: default}
spec:
  %s
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {house: gryffindor}}}}
  ingress:
    - {action: Allow, from: [{namespaces: {matchLabels: {house: slytherin}}}], ports: [{portNumber: {protocol: TCP, port: 80}}]}
    - {action: Deny, from: [{namespaces: {}}], ports: [{portRange: {start: 1, end: 100}}, {namedPort: dns}]}
"""


@pytest.mark.parametrize(("kind", "more"), [("AdminNetworkPolicy", "priority: 5"), ("BaselineAdminNetworkPolicy", "")])
def test_the_forerunners(kind: str, more: str) -> None:
    text = ANP % (kind, more)
    assert verdict(text, SLY, GRY) is ALLOW
    assert verdict(text, SLY, GRY, "tcp/81") is DENY
    assert verdict(text, HUF, GRY) is DENY
    assert verdict(text, HUF, GRY, "udp/53") is DENY
    assert verdict(text, HUF, GRY, "udp/54") is ALLOW


def test_the_new_baseline_stands_before_the_old() -> None:
    old = ANP % ("BaselineAdminNetworkPolicy", "")
    assert verdict(old + cnp("n", "Baseline", 1000, ingress("Accept", "hufflepuff")), HUF, GRY) is ALLOW


@pytest.mark.parametrize(("text", "path"), [
    (cnp("a", "Admin", 1001, ""), "spec.priority"),
    (cnp("a", "Network", 1, ""), "spec.tier"),
    (cnp("a", "Admin", 1, "  ingress: [{action: Allow, from: [{namespaces: {}}]}]"), "ingress[0].action"),
    (cnp("a", "Admin", 1, "  ingress: [{action: Deny, from: []}]"), "ingress[0].from"),
    (cnp("a", "Admin", 1, "  ingress: [{action: Deny, from: [{}]}]"), "ingress[0].from[0]"),
    (cnp("a", "Admin", 1, "  ingress: [{action: Deny, from: [{networks: [10.0.0.0/8]}]}]"), "ingress[0].from[0]"),
    (cnp("a", "Admin", 1, "  egress: [{action: Deny, to: [{domainNames: [a.org]}]}]"), "to[0].domainNames"),
    (cnp("a", "Admin", 1, "  egress: [{action: Deny, to: [{nodes: {}}], protocols: [{destinationNamedPort: web}]}]"),
     "egress[0].protocols"),
    (cnp("a", "Admin", 1, ingress("Deny", more=", protocols: [{tcp: {destinationPort: {range: {start: 9, end: 9}}}}]")),
     "destinationPort.range"),
    (cnp("a", "Admin", 1, ingress("Deny", more=", protocols: [{tcp: {}}]")), "protocols[0].tcp"),
    (ANP % ("BaselineAdminNetworkPolicy", "priority: 5"), "[0].spec"),
    ((ANP % ("BaselineAdminNetworkPolicy", "")).replace("default", "other"), "metadata.name"),
])  # fmt: skip
def test_errors_name_their_path(text: str, path: str) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        parse(text.encode())
    assert path in caught.value.detail


OLDER = """
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicyList
metadata: {{resourceVersion: ""}}
items:
- apiVersion: policy.networking.k8s.io/v1alpha1
  kind: AdminNetworkPolicy
  metadata: {{name: older, creationTimestamp: null}}
  spec:
    priority: 5
    subject: {{namespaces: {{matchLabels: {{house: gryffindor}}}}}}
    ingress:
    - {{name: one, action: Deny, from: [{peer}], ports: [{{portNumber: {{protocol: "", port: 80}}}}]}}
  status: {{conditions: null}}
"""


@pytest.mark.parametrize("peer", [
    "{namespaces: {namespaceSelector: {matchLabels: {house: slytherin}}}}",
    "{namespaces: {namespaceSelector: {}}}",
    "{namespaces: {}}",
    "{pods: {namespaces: {namespaceSelector: {matchLabels: {house: slytherin}}}, podSelector: {}}}",
    "{pods: {namespaces: {namespaceSelector: {}}, podSelector: {matchLabels: {house: slytherin}}}}",
    "{pods: {namespaceSelector: {}, podSelector: {matchLabels: {house: slytherin}}}}",
])  # fmt: skip
def test_the_first_form_of_v1alpha1_and_lists_of_a_kind(peer: str) -> None:
    """v0.1.1 had the namespaces' selector one level deeper; what Go writes of such an object is read as it is."""
    text = OLDER.format(peer=peer)
    assert verdict(text, SLY, GRY) is DENY
    assert verdict(text, SLY, GRY, "udp/80") is ALLOW
    only_slytherin = "slytherin" in peer
    assert verdict(text, HUF, GRY) is (ALLOW if only_slytherin else DENY)
    assert verdict(text, SLY, HUF) is ALLOW


@pytest.mark.parametrize(("peer", "word"), [
    ("{namespaces: {sameLabels: [no key]}}", "not a label's key"),
    ("{namespaces: {sameLabels: tenant}}", "not a list"),
    ("{namespaces: {namespaceSelector: {}, sameLabels: [tenant]}}", "exactly one"),
    ("{pods: {namespaces: {}, podSelector: {}}}", "exactly one"),
    ("{pods: {namespaces: {namespaceSelector: {}}}}", "podSelector"),
    ("{pods: {namespaces: {namespaceSelector: {}}, namespaceSelector: {}, podSelector: {}}}", "unknown field"),
    ("{namespaces: {namespaceSelector: {}, matchLabels: {}}}", "unknown field"),
])  # fmt: skip
def test_what_the_first_form_cannot_say_is_refused(peer: str, word: str) -> None:
    with pytest.raises(PolicyInvalid, match=word):
        parse(OLDER.format(peer=peer).encode())


def of(project: str, **held: str) -> Endpoint:
    return Endpoint(project, project, labels({"house": "gryffindor"}), labels({"house": "gryffindor", **held}))


@pytest.mark.parametrize(("peer", "closed"), [
    ("{namespaces: {sameLabels: [tenant]}}", {"a1-a2"}),
    ("{namespaces: {notSameLabels: [tenant]}}", {"a1-b1"}),
    ("{namespaces: {sameLabels: [tenant, stage]}}", set()),
    ("{namespaces: {notSameLabels: [tenant, stage]}}", {"a1-a2", "a1-b1"}),
    ("{pods: {namespaces: {sameLabels: [tenant]}, podSelector: {matchLabels: {house: gryffindor}}}}", {"a1-a2"}),
    ("{pods: {namespaces: {sameLabels: [tenant]}, podSelector: {matchLabels: {house: slytherin}}}}", set()),
    ("{namespaces: {sameLabels: []}}", set()),
    ("{namespaces: {notSameLabels: []}}", set()),
])  # fmt: skip
def test_peers_by_what_their_project_has_in_common(peer: str, closed: set[str]) -> None:
    """Both must have every label that is named; without one nothing is selected."""
    ends = {
        "a1": of("a1", tenant="a", stage="1"), "a2": of("a2", tenant="a", stage="2"),
        "b1": of("b1", tenant="b", stage="1"), "none": of("none"),
    }  # fmt: skip
    text = OLDER.format(peer=peer)
    pairs = [("a1", "a2"), ("a1", "b1"), ("a1", "none"), ("none", "a1")]
    assert {f"{one}-{other}" for one, other in pairs if verdict(text, ends[one], ends[other]) is DENY} == closed


def test_a_rule_by_kinship_follows_the_projects_that_come_and_go() -> None:
    """Each value is an instance of the rule for as long as a pod has it."""
    rules = parse(OLDER.format(peer="{namespaces: {sameLabels: [tenant]}}").encode()).in_force(0)
    planner = Planner(rules, [of("a1", tenant="a")])
    first = planner.start
    came = [planner.put(of(name, tenant="b")) for name in ("b1", "b2")]
    cells = planner.compiler.cells(planner.number("b1"), planner.number("b2"))
    decision = cell_at(cells, place(Protocol.TCP, 80)).decision
    assert (decision.verdict, decision.rule) == (DENY, "AdminNetworkPolicy/older:ingress[0]")
    assert all(done.size for done in came)
    planner.replace_rules(parse(b"").in_force(0))
    planner.replace_rules(rules)
    for name in ("b2", "b1"):
        planner.drop(name)
    assert planner.whole().size == first.size


def test_the_later_kind_has_the_later_form_alone() -> None:
    text = cnp("a", "Admin", 10, "  ingress: [{action: Deny, from: [{namespaces: {namespaceSelector: {}}}]}]")
    with pytest.raises(PolicyInvalid, match="namespaceSelector"):
        parse(text.encode())
