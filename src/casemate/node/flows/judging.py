"""Which rule decides a connection that was seen: by the planner's own cells, so a record says what the kernel does."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from casemate.node.flows.wire import MAX_RULE_BYTES, Question, Ruling, bounded
from casemate.node.policy.ends import at_address, outside
from casemate.node.policy.state import Policy
from casemate.policy.cells import cell_at
from casemate.policy.decision import UNGOVERNED
from casemate.policy.identity import Connection, Endpoint, Kind
from casemate.policy.plan import Planner
from casemate.policy.ports import SPAN, WITH_PORTS, Protocol, place
from casemate.spec.api.flows import FlowEnd, FlowRow

_PROTOCOLS = {protocol.value: protocol for protocol in Protocol}
#: In place of a rule: no document is in force; an address of the pool that no pod has.
NO_POLICY, NOBODYS = "(no policy)", "Guard:pool"
#: ICMPv6's types are asked for as ICMP's.
_PROTOCOLS[58] = Protocol.ICMP
_BY_NAME = {"tcp": Protocol.TCP, "udp": Protocol.UDP, "sctp": Protocol.SCTP, "icmp": Protocol.ICMP,
            "icmpv6": Protocol.ICMP}  # fmt: skip


def judged(policy: Policy, questions: Sequence[Question]) -> list[Ruling]:
    """A ruling for each of *questions* by the rules in force."""
    planner = policy.planner
    if planner is None or not policy.active:
        # "rule" is never empty where something passed because nothing forbids it.
        return [Ruling(rule=NO_POLICY)] * len(questions)
    return [_judged(planner, question) for question in questions]


def _judged(planner: Planner, question: Question) -> Ruling:
    source, destination = ipaddress.ip_address(question.source), ipaddress.ip_address(question.destination)
    pair = (planner.number_at(source), planner.number_at(destination, question.source))
    identities = planner.compiler.identities
    if any(number not in identities for number in pair):
        return Ruling("deny", NOBODYS, *pair, note="an address of the pool that nobody has")
    if Kind.POD not in (identities[pair[0]].kind, identities[pair[1]].kind):
        return Ruling("allow", UNGOVERNED, *pair)
    protocol = _PROTOCOLS.get(question.protocol, Protocol.OTHER)
    port = question.port if protocol is not Protocol.OTHER else 0
    decision = cell_at(planner.compiler.cells(*pair), place(protocol, port)).decision
    return Ruling(decision.verdict.word, bounded(decision.rule, MAX_RULE_BYTES), *pair)


def connections(policy: Policy, flows: Iterable[tuple[FlowRow, int]]) -> list[tuple[Connection, int]]:
    """Records as policy's connections, for ``simulate`` and ``suggest``; what has no port of its own is left out."""
    ends: dict[tuple[str, str], Endpoint] = {}
    found = []
    for row, count in flows:
        protocol = _BY_NAME.get(row.protocol, Protocol.OTHER)
        port = row.destination.port if protocol is not Protocol.OTHER else 0
        if protocol in WITH_PORTS and not 0 < port < SPAN:
            continue
        pair = [_endpoint(policy, ends, end, name) for end, name in ((row.source, ""), (row.destination, row.dns))]
        found.append((Connection(pair[0], pair[1], protocol, port), count))
    return found


def _endpoint(policy: Policy, known: dict[tuple[str, str], Endpoint], end: FlowEnd, name: str) -> Endpoint:
    """The workload that has the record's name today, whatever its address was then; or the outside."""
    found = known.get((end.address, name))
    if found is None:
        workload = policy.workloads.get(end.pod)
        if workload is not None:
            found = policy.labelled(workload)
        else:
            address = ipaddress.ip_address(end.address)
            names = frozenset({name}) if name else frozenset()
            found = outside(address, names) if end.kind != "pod" else at_address(policy, address)
        known[end.address, name] = found
    return found
