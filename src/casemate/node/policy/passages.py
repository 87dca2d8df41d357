"""What a quarantine lets through, from how people write it to rules' peers; and back from the store."""

from __future__ import annotations

import ipaddress

from casemate.node.core import Core
from casemate.node.policy import ends
from casemate.node.policy.errors import WorkloadUnknown
from casemate.node.policy.ruleset import Passage
from casemate.policy.addresses import Block, BlockGroup
from casemate.policy.errors import PolicyInvalid
from casemate.policy.identity import Kind
from casemate.policy.labels import Operator, Requirement, Selector
from casemate.policy.ports import WITH_PORTS, PortMatch, Protocol, parse_port
from casemate.policy.rules import Anyone, Blocks, Direction, Names, Peer, Workloads
from casemate.spec.api.policy import QuarantineAllow

_DIRECTIONS = {"to": (Direction.EGRESS,), "from": (Direction.INGRESS,), "both": tuple(Direction)}
_IPV4 = 4


async def passages_of(core: Core, allow: tuple[QuarantineAllow, ...], project: str) -> tuple[Passage, ...]:
    """Raises :class:`WorkloadUnknown` and :class:`PolicyInvalid` for what cannot be meant."""
    return tuple([await _passage(core, one, project) for one in allow])


async def load_passages(core: Core) -> None:
    """Those of the quarantines in the store. An end that is gone lets nothing through."""
    policy = core.policy
    await policy.load()
    for row in policy.quarantines.values():
        found: list[Passage] = []
        for one in row.allow:
            try:
                found.append(await _passage(core, one, row.workload.partition("/")[0]))
            except (WorkloadUnknown, PolicyInvalid):
                continue
        policy.passages[row.number] = tuple(found)


def names_outside(passages: tuple[Passage, ...]) -> tuple[str, ...] | None:
    """The names outside that who is in quarantine with *passages* may ask for; None: any."""
    peers = [peer for one in passages if Direction.EGRESS in one.directions for peer in one.peers]
    if any(isinstance(peer, Anyone) for peer in peers):
        return None
    return tuple(sorted({pattern for peer in peers if isinstance(peer, Names) for pattern in peer.patterns}))


async def _passage(core: Core, one: QuarantineAllow, project: str) -> Passage:
    ports = tuple(_ports(text) for text in one.ports) or None
    return Passage((await _peer(core, one.end, project),), ports, _DIRECTIONS[one.direction])


def _ports(text: str) -> PortMatch:
    if "/" not in text and text in ("tcp", "udp", "sctp", "icmp"):
        return PortMatch(Protocol[text.upper()])
    kind, _, number = text.partition("/")
    first, dash, last = number.partition("-")
    protocol, low = parse_port(f"{kind}/{first}")
    if not dash:
        return PortMatch(protocol, low, low)
    _, high = parse_port(f"{kind}/{last}")
    if protocol not in WITH_PORTS or high < low:
        raise PolicyInvalid(f"{text[:40]!r} is no range of ports")
    return PortMatch(protocol, low, high)


async def _peer(core: Core, text: str, project: str) -> Peer:
    """``any``, a network, an address, ``KEY=VALUE`` labels, a workload (all pods of its labels), a DNS name."""
    if text == "any":
        return Anyone()
    if "=" in text:
        key, _, value = text.partition("=")
        return Workloads(Selector((Requirement(key, Operator.IN, frozenset({value})),)), project=project)
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        pass
    else:
        if network.version != _IPV4:
            raise PolicyInvalid(f"{text[:60]!r}: pods have no IPv6, each packet of it is dropped; name an IPv4 address")
        return Blocks(BlockGroup((Block(network),)))
    found = await ends.end(core, text, project)
    if found.kind is not Kind.POD:
        return Names(tuple(sorted(found.dns)))
    labels = tuple(Requirement(key, Operator.IN, frozenset({value})) for key, value in found.labels)
    return Workloads(Selector(labels), project=found.project)
