"""What rules say taken together: rules that never decide, that contradict each other, selectors that pick nobody."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from casemate.policy.compile import Compiler
from casemate.policy.identity import Endpoint, Identity
from casemate.policy.labels import Operator, Selector
from casemate.policy.parse import Policies
from casemate.policy.rules import Anyone, Blocks, Names, Peer, Rule, Workloads
from casemate.policy.verdict import Action

MAX_WARNINGS = 1000


def warnings(policies: Policies, compiler: Compiler, endpoints: Iterable[Endpoint]) -> list[str]:
    """What is allowed to be written and is hardly meant. At most :data:`MAX_WARNINGS` and a line."""
    ends = list(endpoints)
    out = [*_ipv6(policies.rules), *_unmatched(policies.rules, ends), *_contradictions(policies.rules)]
    out += _never(policies.rules, compiler)
    if len(out) > MAX_WARNINGS:
        return [*out[:MAX_WARNINGS], f"and {len(out) - MAX_WARNINGS} more warnings"]
    return out


def warnings_of(rules: Iterable[Rule], identities: Iterable[Identity]) -> list[str]:
    """The part of :func:`warnings` that needs no compiled rules: ends of *rules* that select nothing."""
    rules = list(rules)
    return [*_ipv6(rules), *_unmatched(rules, list(identities))][:MAX_WARNINGS]


def _ipv6(rules: Iterable[Rule]) -> list[str]:
    """Blocks that no pod's packet can be in."""
    return list(dict.fromkeys(
        f"{rule.id}: {block.network} matches nothing: pods have no IPv6, each packet of it is dropped and counted"
        for rule in rules
        for peer in rule.peers
        if isinstance(peer, Blocks)
        for block in peer.group.blocks
        if block.network.version == 6
    ))  # fmt: skip


def _unmatched(rules: Iterable[Rule], ends: Sequence[Endpoint | Identity]) -> list[str]:
    held = {pair for end in ends for pair in (*end.labels, *end.project_labels)}
    keys = {key for key, _ in held}
    all_ends = _Ends(ends)
    known: dict[Workloads, str] = {}
    out: list[str] = []
    for rule in rules:
        for what, picked in (("subject", rule.subject), *(("peer", peer) for peer in rule.peers)):
            if not isinstance(picked, Workloads):
                continue
            if picked not in known:
                known[picked] = "" if all_ends.has(picked) else _why(picked, held, keys)
            if known[picked]:
                out.append(f"{rule.id}: its {what} {picked.describe()} selects nothing{known[picked]}")
    return list(dict.fromkeys(out))


class _Ends:
    """Ends by their labels: of thousands of selectors each picks one of a thousand identities."""

    def __init__(self, ends: Sequence[Endpoint | Identity]) -> None:
        self._every = ends
        self._by_pair: dict[tuple[str, str], list[Endpoint | Identity]] = {}
        for end in ends:
            for pair in end.labels:
                self._by_pair.setdefault(pair, []).append(end)

    def has(self, picked: Workloads) -> bool:
        """Whether *picked* selects any."""
        return any(picked.matches(end) for end in self._candidates(picked.selector))

    def _candidates(self, selector: Selector) -> Iterable[Endpoint | Identity]:
        """All that *selector* can pick, and more: by the first label whose value it names."""
        for requirement in selector.requirements:
            if requirement.operator is Operator.IN:
                return chain.from_iterable(
                    self._by_pair.get((requirement.key, value), ()) for value in requirement.values
                )
        return self._every


def _why(picked: Workloads, held: set[tuple[str, str]], keys: set[str]) -> str:
    for selector in (picked.selector, picked.projects or Selector()):
        for requirement in selector.requirements:
            if requirement.operator in (Operator.IN, Operator.EXISTS) and requirement.key not in keys:
                return f": nothing has the label {requirement.key!r}"
            if requirement.operator is Operator.IN and not any(
                (requirement.key, v) in held for v in requirement.values
            ):
                return f": no {requirement.key!r} has that value"
    return "."


def _contradictions(rules: Iterable[Rule]) -> list[str]:
    """Rules of one tier about exactly the same connections that ask for different things."""
    seen: dict[object, Rule] = {}
    out: list[str] = []
    for rule in sorted(rules, key=lambda rule: rule.order):
        if rule.id.endswith(":isolation") or rule.condition or rule.windows:
            continue
        key = (rule.tier, rule.direction, rule.subject, rule.peers, rule.ports)
        first = seen.setdefault(key, rule)
        if first.action is not rule.action and not first.audit and first.action is not Action.PASS:
            out.append(f"{rule.id} contradicts {first.id}, which stands before it: {first.action.name.lower()} holds")
    return out


def _never(rules: Iterable[Rule], compiler: Compiler) -> list[str]:
    """Rules that pick somebody, and of which no pair of identities ever hears: earlier rules decide everything."""
    heard = compiler.heard()
    identities = list(compiler.identities.values())
    ends = _Ends(identities)
    known: dict[Workloads, bool] = {}

    def picks(workloads: Workloads) -> bool:
        if workloads not in known:
            known[workloads] = ends.has(workloads)
        return known[workloads]

    def is_there(peer: Peer) -> bool:
        match peer:
            case Workloads():
                return picks(peer)
            case Names():
                # Nobody was told such a name yet: there is no such end to decide about.
                return any(peer.covers(one.dns) for one in identities)
            case Blocks():
                # That those of IPv6 match nothing is said already.
                return any(block.network.version == 4 for block in peer.group.blocks)
            case Anyone():
                return True

    return [
        f"{rule.id} never decides: rules before it decide everything that it is about"
        for rule in rules
        if rule.id not in heard
        and rule.action is not Action.PASS
        and not rule.id.endswith(":isolation")
        and not rule.windows
        and picks(rule.subject)
        and any(is_there(peer) for peer in rule.peers)
    ]
