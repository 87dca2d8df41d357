"""``ClusterNetworkPolicy`` (policy.networking.k8s.io/v1alpha2) and its forerunners (v1alpha1).

Both tiers are ordered: the lower priority first, in a policy the rule that stands first. Where two policies of one
priority meet the API leaves the order open; here the name decides, so that it is the same on every node. ``Pass``
leaves the tier. An unknown peer is refused whole: the API lets an implementation fail closed, and this is how.
"""

from __future__ import annotations

import re

from casemate.policy.addresses import Block, BlockGroup
from casemate.policy.fields import Field, metadata
from casemate.policy.identity import Kind
from casemate.policy.kubernetes import port_name
from casemate.policy.labels import EVERYTHING, Selector
from casemate.policy.ports import SPAN, PortMatch, Protocol
from casemate.policy.rules import Blocks, Direction, Kin, Names, Peer, Rule, Tier, Workloads, gathered
from casemate.policy.verdict import Action

GROUP = "policy.networking.k8s.io"
CLUSTER = "ClusterNetworkPolicy"
ADMIN = "AdminNetworkPolicy"
BASELINE = "BaselineAdminNetworkPolicy"
#: v1alpha2 allows 25 rules, peers, ports; v1alpha1 100.
_MOST = {CLUSTER: 25, ADMIN: 100, BASELINE: 100}
_TIERS = {"Admin": Tier.ADMIN, "Baseline": Tier.BASELINE}
_ACTIONS = {
    CLUSTER: {"Accept": Action.ALLOW, "Deny": Action.DENY, "Pass": Action.PASS},
    ADMIN: {"Allow": Action.ALLOW, "Deny": Action.DENY, "Pass": Action.PASS},
    BASELINE: {"Allow": Action.ALLOW, "Deny": Action.DENY},
}
#: What the first releases of v1alpha1 had below ``namespaces``.
_OLDER = {"namespaceSelector", "sameLabels", "notSameLabels"}
DOMAIN_NAME = re.compile(
    r"(\*\.)?([a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?\Z"
)


def cluster_policy(document: Field, kind: str) -> list[Rule]:
    """The rules of a document of *kind* (one of the three above)."""
    document.mapping({"apiVersion", "kind", "metadata", "spec", "status"}, ["metadata", "spec"])
    name, _ = metadata(document, namespaced=False)
    spec = document.at("spec")
    known = {"subject", "ingress", "egress"}
    tier, priority = Tier.BASELINE, 0
    if kind == BASELINE:
        if name != "default":
            raise document.at("metadata").at("name").fail("this kind has one object, whose name is 'default'")
        # Behind every ClusterNetworkPolicy of the Baseline tier, which replaces it.
        priority = 1001
    else:
        known |= {"priority"} | ({"tier"} if kind == CLUSTER else set())
        priority = spec.mapping(known, ["priority"]).at("priority").integer(0, 1000)
        tier = Tier.ADMIN if kind == ADMIN else _TIERS[spec.at("tier").choice(list(_TIERS))]
    spec.mapping(known, ["subject"])
    subject = _pods(spec.at("subject"))
    out: list[Rule] = []
    for direction in (Direction.INGRESS, Direction.EGRESS):
        listed = spec.get(direction.value)
        for number, item in enumerate(listed.items(_MOST[kind]) if listed else ()):
            rank = (priority, f"{kind}/{name}", number)
            rule_id = f"{kind}/{name}:{direction.value}[{number}]"
            action, peers, ports, title = _rule(item, direction, kind)
            out.append(Rule(rule_id, tier, rank, direction, subject, peers, action, ports, name=title))
    return out


def _rule(
    item: Field, direction: Direction, kind: str
) -> tuple[Action, tuple[Peer, ...], tuple[PortMatch, ...] | None, str]:
    side = "from" if direction is Direction.INGRESS else "to"
    key = "protocols" if kind == CLUSTER else "ports"
    item.mapping({"name", "action", side, key}, ["action", side])
    action = _ACTIONS[kind][item.at("action").choice(list(_ACTIONS[kind]))]
    most = _MOST[kind]
    peers = gathered([_peer(field, direction, action, kind) for field in item.at(side).items(most, least=1)])
    listed, title = item.get(key), item.get("name")
    ports = None
    if listed is not None:
        read = _protocol if kind == CLUSTER else _port
        ports = tuple(read(field) for field in listed.items(most, least=1))
        outside = any(not isinstance(peer, Workloads) or peer.kind is Kind.NODE for peer in peers)
        if outside and any(port.name for port in ports):
            raise listed.fail("named ports need pods as peers; networks, nodes and names have no named ports")
    return action, peers, ports, title.text(100) if title else ""


def _pods(field: Field) -> Workloads:
    """``namespaces``, or ``pods`` with both selectors."""
    key, inner = field.one_of({"namespaces", "pods"})
    if key == "namespaces":
        return Workloads(EVERYTHING, projects=inner.selector())
    inner.mapping({"namespaceSelector", "podSelector"}, ["podSelector"])
    projects = inner.get("namespaceSelector")
    return Workloads(inner.at("podSelector").selector(), projects=projects.selector() if projects else EVERYTHING)


def _peer(field: Field, direction: Direction, action: Action, kind: str) -> Peer:
    if kind != CLUSTER and (older := _older_peer(field)) is not None:
        return older
    if direction is Direction.INGRESS:
        return _pods(field)
    known = {"namespaces", "pods", "nodes", "networks"} | ({"domainNames"} if kind != BASELINE else set())
    key, inner = field.one_of(known)
    match key:
        case "nodes":
            return Workloads(inner.selector(), kind=Kind.NODE)
        case "networks":
            return Blocks(BlockGroup(tuple(Block(item.network()) for item in inner.items(25, least=1))))
        case "domainNames":
            if action is not Action.ALLOW:
                raise inner.fail("domainNames are for rules that accept")
            return Names(tuple(domain_name(item) for item in inner.items(25, least=1)))
        case _:
            return _pods(field)


def _older_peer(field: Field) -> Workloads | None:
    """v1alpha1 as its first releases (to v0.1.1) had it: namespaces one level deeper, in ``namespaceSelector``.

    None where the peer is written in the later form, which an empty ``namespaces`` is too.
    """
    peer = field.mapping_of_any()
    if len(peer) != 1:
        return None
    if (spaces := field.get("namespaces")) is not None:
        return _older_pods(EVERYTHING, spaces) if _OLDER & spaces.mapping_of_any().keys() else None
    pods = field.get("pods")
    if pods is None or "namespaces" not in pods.mapping_of_any():
        return None
    pods.mapping({"namespaces", "podSelector"}, ["namespaces", "podSelector"])
    return _older_pods(pods.at("podSelector").selector(), pods.at("namespaces"))


def _older_pods(selector: Selector, field: Field) -> Workloads:
    key, inner = field.one_of(_OLDER)
    if key == "namespaceSelector":
        return Workloads(selector, projects=inner.selector())
    keys = tuple(sorted({item.label_key() for item in inner.items(_MOST[ADMIN])}))
    return Workloads(selector, kin=Kin(keys, same=key == "sameLabels"))


def domain_name(field: Field) -> str:
    value = field.text(253)
    if not DOMAIN_NAME.match(value):
        raise field.fail(f"{value[:80]!r} is not a domain name, with '*.' before it or without")
    return value.lower().rstrip(".")


def _protocol(field: Field) -> PortMatch:
    """v1alpha2: ``tcp: {destinationPort: {number: 80}}``, ``destinationNamedPort: web``."""
    key, inner = field.one_of({"tcp", "udp", "sctp", "destinationNamedPort"})
    if key == "destinationNamedPort":
        return PortMatch(None, name=port_name(inner))
    inner.mapping({"destinationPort"}, ["destinationPort"])
    which, value = inner.at("destinationPort").one_of({"number", "range"})
    protocol = Protocol[key.upper()]
    if which == "number":
        number = value.integer(1, SPAN - 1)
        return PortMatch(protocol, number, number)
    return _range(value.mapping({"start", "end"}, ["start", "end"]), protocol)


def _port(field: Field) -> PortMatch:
    """v1alpha1: ``portNumber``, ``portRange`` or ``namedPort``."""
    key, inner = field.one_of({"portNumber", "portRange", "namedPort"})
    if key == "namedPort":
        return PortMatch(None, name=port_name(inner))
    numbers = {"port"} if key == "portNumber" else {"start", "end"}
    inner.mapping({"protocol"} | numbers, sorted(numbers))
    kind = inner.get("protocol")
    # "" is how Go writes a protocol that nobody named.
    named = kind.choice(["TCP", "UDP", "SCTP", ""]) if kind else ""
    protocol = Protocol[named] if named else Protocol.TCP
    if key == "portNumber":
        number = inner.at("port").integer(1, SPAN - 1)
        return PortMatch(protocol, number, number)
    return _range(inner, protocol)


def _range(field: Field, protocol: Protocol) -> PortMatch:
    first, last = field.at("start").integer(1, SPAN - 1), field.at("end").integer(1, SPAN - 1)
    if first >= last:
        raise field.fail(f"start {first} is not below end {last}")
    return PortMatch(protocol, first, last)
