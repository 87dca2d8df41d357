"""Kubernetes' ``NetworkPolicy`` (networking.k8s.io/v1), unchanged and with its exact meaning.

The API's words: a policy that selects a pod isolates it in each of its ``policyTypes``; what any policy allows is
allowed; an empty ``podSelector`` selects all pods of the namespace; an empty or absent ``from`` or ``to`` is anyone,
absent ``ports`` every port; ``namespaceSelector`` and ``podSelector`` in one peer both hold.
"""

from __future__ import annotations

from casemate.policy.addresses import BlockGroup
from casemate.policy.fields import MAX_RULES, MAX_VALUES, Field, metadata, shown
from casemate.policy.labels import EVERYTHING
from casemate.policy.ports import SPAN, PortMatch, Protocol
from casemate.policy.rules import Anyone, Blocks, Direction, Peer, Rule, Tier, Workloads, gathered
from casemate.policy.verdict import Action

API_VERSION = "networking.k8s.io/v1"
KIND = "NetworkPolicy"
#: IANA service names: what a port's name in a pod may be (RFC 6335).
MAX_PORT_NAME = 15


def network_policy(document: Field) -> list[Rule]:
    """The rules of one document: its allows, and one that closes each direction it isolates."""
    document.mapping({"apiVersion", "kind", "metadata", "spec", "status"}, ["metadata", "spec"])
    name, namespace = metadata(document, namespaced=True)
    spec = document.at("spec").mapping({"podSelector", "policyTypes", "ingress", "egress"})
    chosen = spec.get("podSelector")
    subject = Workloads(chosen.selector() if chosen else EVERYTHING, project=namespace)
    out: list[Rule] = []
    isolated = _directions(spec)
    for direction in Direction:
        prefix = f"{KIND}/{namespace}/{name}:{direction.value}"
        listed = spec.get(direction.value)
        fields = [] if listed is None else list(listed.items(MAX_RULES))
        for number, item in enumerate(fields):
            peers, ports = _rule(item, direction, namespace)
            if direction not in isolated:
                continue  # read, so that its errors are told; without its policyType it has no effect
            rank = (0, f"{namespace}/{name}", number)
            out.append(Rule(f"{prefix}[{number}]", Tier.NETWORK, rank, direction, subject, peers, Action.ALLOW, ports))
        if direction in isolated:
            rank = (1, f"{namespace}/{name}", 0)
            out.append(Rule(f"{prefix}:isolation", Tier.NETWORK, rank, direction, subject, (Anyone(),), Action.DENY))
    return out


def _directions(spec: Field) -> list[Direction]:
    """Absent ``policyTypes``: Ingress always, Egress where there are egress rules."""
    types = spec.get("policyTypes")
    if types is None or not types.value:
        return [Direction.INGRESS, *([Direction.EGRESS] if spec.get("egress") and spec.value["egress"] else [])]
    words = [item.choice(["Ingress", "Egress"]) for item in types.items(2)]
    return [direction for direction in Direction if direction.name.capitalize() in words]


def _rule(item: Field, direction: Direction, namespace: str) -> tuple[tuple[Peer, ...], tuple[PortMatch, ...] | None]:
    key = "from" if direction is Direction.INGRESS else "to"
    item.mapping({key, "ports"})
    listed, ports = item.get(key), item.get("ports")
    peers: tuple[Peer, ...] = (Anyone(),)
    if listed is not None and (fields := list(listed.items(MAX_RULES))):
        peers = gathered([_peer(field, namespace) for field in fields])
    matches = tuple(_port(field) for field in ports.items(MAX_VALUES)) if ports is not None else ()
    return peers, matches or None


def _peer(field: Field, namespace: str) -> Peer:
    field.mapping({"podSelector", "namespaceSelector", "ipBlock"})
    pods, projects, block = (field.get(key) for key in ("podSelector", "namespaceSelector", "ipBlock"))
    if block is not None:
        if pods is not None or projects is not None:
            raise field.fail("ipBlock stands alone, without podSelector and namespaceSelector")
        return Blocks(BlockGroup((block.block(),)))
    if pods is None and projects is None:
        raise field.fail("a peer needs podSelector, namespaceSelector or ipBlock")
    selector = pods.selector() if pods else EVERYTHING
    return Workloads(selector, projects=projects.selector()) if projects else Workloads(selector, project=namespace)


def _port(field: Field) -> PortMatch:
    field.mapping({"protocol", "port", "endPort"})
    kind = field.get("protocol")
    protocol = Protocol[kind.choice(["TCP", "UDP", "SCTP"])] if kind else Protocol.TCP
    port, end = field.get("port"), field.get("endPort")
    if port is None:
        if end is not None:
            raise end.fail("endPort needs port")
        return PortMatch(protocol)
    if isinstance(port.value, str):
        if end is not None:
            raise end.fail("endPort needs port to be a number")
        return PortMatch(protocol, name=port_name(port))
    first = port.integer(1, SPAN - 1)
    last = end.integer(1, SPAN - 1) if end else first
    if end is not None and last < first:
        raise end.fail(f"{shown(last)} is below port {first}")
    return PortMatch(protocol, first, last)


def port_name(field: Field) -> str:
    value = field.text(MAX_PORT_NAME)
    if not all(c.isascii() and (c.isdigit() or c.islower() or c == "-") for c in value) or not any(
        map(str.isalpha, value)
    ):
        raise field.fail(
            f"{shown(value)} is not a port's name: lower-case letters, digits, dashes, one letter at least"
        )
    return value
