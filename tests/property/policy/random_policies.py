"""Random rules, endpoints and connections: small alphabets, so that they meet each other often."""

from __future__ import annotations

import ipaddress

from hypothesis import strategies as st

from casemate.policy.addresses import Block, BlockGroup
from casemate.policy.conditions import Condition
from casemate.policy.identity import Connection, Endpoint, Kind
from casemate.policy.labels import Operator, Requirement, Selector, labels
from casemate.policy.ports import NamedPort, PortMatch, Protocol
from casemate.policy.rules import (
    Anyone,
    AuditedSegment,
    Blocks,
    Direction,
    Kin,
    Names,
    Rule,
    RuleSet,
    Tier,
    Workloads,
    rule_set,
)
from casemate.policy.verdict import Action

KEYS = ("app", "tier")
VALUES = ("a", "b", "c")
PROJECTS = ("x", "y")
PROTOCOLS = st.sampled_from(list(Protocol))
PORTS = st.sampled_from([0, 1, 8, 53, 79, 80, 81, 443, 8080, 65535])
NETWORKS = [
    ipaddress.ip_network(n)
    for n in ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "0.0.0.0/0", "fd00::/8", "10.1.2.4/32")
]
ADDRESSES = [
    ipaddress.ip_address(a)
    for a in ("10.1.2.3", "10.1.2.4", "10.1.9.9", "10.200.0.1", "192.0.2.7", "fd00::1", "0.0.0.0")
]

owners = st.sampled_from([(), (), (("owner", "a"),), (("owner", "b"),)])
label_sets = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=2).map(labels)
value_sets = st.frozensets(st.sampled_from(VALUES), min_size=1, max_size=2)
requirements = st.one_of(
    st.builds(Requirement, st.sampled_from(KEYS), st.sampled_from([Operator.IN, Operator.NOT_IN]), value_sets),
    st.builds(Requirement, st.sampled_from(KEYS), st.sampled_from([Operator.EXISTS, Operator.DOES_NOT_EXIST])),
)
selectors = st.builds(Selector, st.lists(requirements, max_size=2).map(tuple))
KINDS = st.sampled_from([Kind.POD, Kind.POD, Kind.POD, Kind.NODE])
workloads = st.builds(
    Workloads, selectors, st.none() | st.sampled_from(PROJECTS), st.none() | selectors, KINDS,
)  # fmt: skip
PROJECT_KEYS = ("project", "tier", "owner")
kins = st.builds(Kin, st.lists(st.sampled_from(PROJECT_KEYS), max_size=2, unique=True).map(tuple), st.booleans())
kindred = st.builds(Workloads, selectors, st.none(), st.none() | selectors, KINDS, kins)


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    network = draw(st.sampled_from(NETWORKS))
    inside = [n for n in NETWORKS if n.version == network.version and n.subnet_of(network)]  # type: ignore[arg-type]
    return Block(network, tuple(draw(st.lists(st.sampled_from(inside), max_size=1))))


peers = st.one_of(
    workloads,
    kindred,
    st.just(Anyone()),
    st.lists(blocks(), min_size=1, max_size=2).map(lambda found: Blocks(BlockGroup(tuple(found)))),
    st.just(Names(("*.example.org",))),
)
named = st.builds(NamedPort, st.sampled_from(["web", "dns"]), st.sampled_from([Protocol.TCP, Protocol.UDP]), PORTS)
port_ranges = st.tuples(PORTS, PORTS).map(sorted)
port_matches = st.one_of(
    # What has no ports can be named as a whole alone: no document says more.
    st.builds(lambda p, r: PortMatch(p, r[0], r[1]), PROTOCOLS.filter(lambda p: p is not Protocol.OTHER), port_ranges),
    st.builds(PortMatch, st.none() | st.just(Protocol.TCP), name=st.sampled_from(["web", "dns"])),
    st.builds(PortMatch, PROTOCOLS),
)


@st.composite
def rule_sets(draw: st.DrawFn, most: int = 8) -> RuleSet:
    count = draw(st.integers(0, most))
    rules = [draw(rules_named(f"r{n}")) for n in range(count)]
    audited = draw(
        st.lists(
            st.builds(AuditedSegment, st.just("seg"), workloads, st.frozensets(st.sampled_from(list(Tier)))), max_size=1
        )
    )
    default = draw(st.sampled_from([Action.ALLOW, Action.ALLOW, Action.DENY, Action.REFER]))
    return rule_set(rules, tuple(audited), default)


@st.composite
def rules_named(draw: st.DrawFn, rule_id: str) -> Rule:
    return Rule(
        rule_id,
        draw(st.sampled_from(list(Tier))),
        (draw(st.integers(0, 2)), "", 0),
        draw(st.sampled_from(list(Direction))),
        draw(workloads),
        tuple(draw(st.lists(peers, min_size=1, max_size=2))),
        draw(st.sampled_from(list(Action))),
        draw(st.none() | st.lists(port_matches, min_size=1, max_size=2).map(tuple)),
        audit=draw(st.booleans()),
        condition=draw(st.sampled_from([None, None, None, Condition("port > 79")])),
        least=draw(st.sampled_from([False, False, False, True])),
    )


@st.composite
def endpoints(draw: st.DrawFn, name: str = "e") -> Endpoint:
    kind = draw(st.sampled_from([Kind.POD, Kind.POD, Kind.POD, Kind.NODE, Kind.WORLD]))
    own = ADDRESSES[int(name[1:] or 0)]
    addresses = (own,) if draw(st.booleans()) else ()
    if kind is Kind.WORLD:
        dns = draw(st.sampled_from([frozenset(), frozenset({"api.example.org"}), frozenset({"example.org"})]))
        return Endpoint(name, kind=kind, addresses=addresses, dns=dns)
    project = draw(st.sampled_from(PROJECTS))
    # Labels of a project can change: two ends of one project may have been made before and after.
    of_project = {"project": project, "tier": "a" if project == "x" else "b", **dict(draw(owners))}
    ports = tuple(draw(st.lists(named, max_size=2))) if kind is Kind.POD else ()
    return Endpoint(name, project, draw(label_sets), labels(of_project), ports, addresses, kind)


@st.composite
def networks_of(draw: st.DrawFn, most: int = 5) -> list[Endpoint]:
    return [draw(endpoints(f"e{number}")) for number in range(draw(st.integers(2, most)))]


probes = st.lists(st.tuples(PROTOCOLS, PORTS), min_size=1, max_size=6)


def connections(ends: list[Endpoint], asked: list[tuple[Protocol, int]]) -> list[Connection]:
    """Every pair of which one end at least is a pod, at each place of *asked*."""
    return [
        Connection(source, destination, protocol, port)
        for source in ends
        for destination in ends
        if Kind.POD in (source.kind, destination.kind)
        for protocol, port in asked
    ]
