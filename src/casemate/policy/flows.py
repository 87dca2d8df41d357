"""Recorded flows against rules: what another policy would do with them, and the narrowest rules that admit them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from casemate.policy.addresses import BlockIndex
from casemate.policy.cells import cell_at
from casemate.policy.compile import Compiler
from casemate.policy.decision import UNGOVERNED, Decision, Side
from casemate.policy.document import API_VERSION, KIND, MAX_SEGMENTS
from casemate.policy.errors import PolicyTooLarge
from casemate.policy.identity import NOBODY, Connection, Endpoint, Kind, identity_of
from casemate.policy.ports import SPAN, WITH_PORTS, Protocol, place
from casemate.policy.rules import RuleSet, block_groups
from casemate.policy.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Difference:
    """*flow* would be decided otherwise; *count* is how often it was recorded."""

    flow: Connection
    count: int
    before: Decision
    after: Decision

    def describe(self) -> str:
        one, other = self.before, self.after
        return (
            f"{self.flow.describe()} ({self.count}): {one.verdict.word} by {one.rule}, "
            f"would be {other.verdict.word} by {other.rule}"
        )


def simulate(flows: Iterable[tuple[Connection, int]], before: RuleSet, after: RuleSet) -> list[Difference]:
    """The flows (each with its count) whose verdict *after* is not that of *before*; the most frequent first.

    Conditions are not asked: where a rule has one, the connection would be referred.
    """
    counted: dict[Connection, int] = {}
    for flow, count in flows:
        counted[flow] = counted.get(flow, 0) + count
    ends = {end for flow in counted for end in (flow.source, flow.destination)}
    old, new = _Judge(before, ends), _Judge(after, ends)
    found = [Difference(flow, count, old.decide(flow), new.decide(flow)) for flow, count in counted.items()]
    changed = [one for one in found if one.before.verdict is not one.after.verdict]
    return sorted(changed, key=lambda one: (-one.count, one.flow.describe()))


class _Judge:
    def __init__(self, rules: RuleSet, ends: set[Endpoint]) -> None:
        index = BlockIndex(block_groups(rules))
        self._identities = {end: identity_of(end, index) for end in ends}
        self._numbers = NOBODY.allocate(self._identities.values()).numbers
        self._compiler = Compiler(rules, {number: identity for identity, number in self._numbers.items()})

    def decide(self, flow: Connection) -> Decision:
        pair = (self._numbers[self._identities[flow.source]], self._numbers[self._identities[flow.destination]])
        if Kind.POD not in (flow.source.kind, flow.destination.kind):
            return _PASSES
        return cell_at(self._compiler.cells(*pair), place(flow.protocol, flow.port)).decision


_PASSES = Decision(Side(Verdict.ALLOW, UNGOVERNED), Side(Verdict.ALLOW, UNGOVERNED))


def suggest(flows: Iterable[Connection], name: str = "observed") -> dict[str, Any]:
    """An operator's policy document that admits *flows* and nothing else that labels can tell from them.

    Pods of equal labels are a segment that is closed by default; each pair of ends has a rule with its ports. An
    outside end is named by its DNS names where the pod asked for them, otherwise by its address alone.
    """
    ports: dict[tuple[str, str], set[str]] = {}
    peers: dict[str, dict[str, Any]] = {}
    segments: dict[str, dict[str, Any]] = {}
    known: dict[str, str] = {}
    for flow in flows:
        if Kind.POD not in (flow.source.kind, flow.destination.kind):
            continue
        pair = []
        for end in (flow.source, flow.destination):
            key = _key(end)
            if end.kind is Kind.POD and key not in known:
                known[key] = f"s{len(known)}"
                segments[known[key]] = {**_select(end), "default": "deny"}
            peers[key] = {"segment": known[key]} if end.kind is Kind.POD else _outside(end)
            pair.append(key)
        ports.setdefault((pair[0], pair[1]), set()).add(_port(flow))
    if len(segments) > MAX_SEGMENTS:
        raise PolicyTooLarge(
            f"the flows are of {len(segments)} segments, allowed are {MAX_SEGMENTS}; suggest for fewer"
        )
    rules = [
        {"from": [peers[one]], "to": [peers[other]], "ports": sorted(found), "action": "allow"}
        if "other" not in found
        else {"from": [peers[one]], "to": [peers[other]], "action": "allow"}
        for (one, other), found in sorted(ports.items())
    ]
    spec = {"tier": "operator", "segments": segments, "rules": rules}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}


def _key(end: Endpoint) -> str:
    if end.kind is Kind.POD:
        return f"pod {end.project} {end.labels}"
    return f"outside {sorted(end.dns) or sorted(map(str, end.addresses))}"


def _select(end: Endpoint) -> dict[str, Any]:
    return {"select": {"matchLabels": dict(end.labels)} if end.labels else {}, "project": end.project or "default"}


def _outside(end: Endpoint) -> dict[str, Any]:
    if end.dns:
        return {"names": sorted(end.dns)}
    address = end.addresses[0] if end.addresses else None
    return {"cidr": f"{address}/{32 if address.version == 4 else 128}"} if address else {"cidr": "0.0.0.0/0"}


def _port(flow: Connection) -> str:
    if flow.protocol is Protocol.OTHER:
        return "other"
    if flow.protocol in WITH_PORTS and not 0 < flow.port < SPAN:
        return flow.protocol.name.lower()
    return f"{flow.protocol.name.lower()}/{flow.port}"
