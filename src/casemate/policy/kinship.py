"""Rules whose peers are told by what their project's labels have in common with the subject's: one rule for each value.

The first releases of ``AdminNetworkPolicy`` (v1alpha1, to v0.1.1) had ``sameLabels`` and ``notSameLabels``. A rule with
such a peer says something else for each subject, so no set of peers is its own. For subjects of one and the same value
it does not: each value that a pod's project has gives an *instance* of the rule, for those subjects alone, with
plain selectors. The compiler sees instances; the reference evaluator compares the labels themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from casemate.policy.identity import Identity, Kind
from casemate.policy.labels import Operator, Requirement, Selector
from casemate.policy.rules import Kin, Peer, Rule, Workloads

#: A project's values at a rule's keys; None where it has no such label.
Values = tuple[str | None, ...]


class Kindred:
    """The instances that rules have among the identities there are. Rules without such peers pass through."""

    def __init__(self, identities: Iterable[Identity] = ()) -> None:
        self._projects = Counter(one.project_labels for one in identities if one.kind is Kind.POD)
        self._rules: dict[object, Rule] = {}

    def put(self, rules: Iterable[Rule]) -> list[Rule]:
        """What comes into force with *rules*."""
        return list(self._turned(rules, on=True))

    def take(self, rules: Iterable[Rule]) -> list[Rule]:
        """What goes with *rules*."""
        return list(self._turned(rules, on=False))

    def enter(self, identity: Identity) -> list[Rule]:
        """The instances that *identity* is the first to need."""
        return self._counted(identity, 1)

    def leave(self, identity: Identity) -> list[Rule]:
        """The instances that nobody needs once *identity* is gone."""
        return self._counted(identity, -1)

    def _turned(self, rules: Iterable[Rule], *, on: bool) -> Iterator[Rule]:
        for rule in rules:
            if not _kin_of(rule):
                yield rule
                continue
            if on:
                self._rules[rule.order] = rule
            else:
                del self._rules[rule.order]
            yield from self._instances(rule).values()

    def _counted(self, identity: Identity, step: int) -> list[Rule]:
        if identity.kind is not Kind.POD:
            return []
        more, less = (step > 0, step < 0)
        labels = identity.project_labels
        edge = self._projects[labels] == (0 if more else 1)
        before = [self._instances(rule) for rule in self._rules.values()] if edge else []
        self._projects[labels] += step
        if less and edge:
            del self._projects[labels]
        after = [self._instances(rule) for rule in self._rules.values()] if edge else []
        return [
            one
            for was, now in zip(before, after, strict=True)
            for key, one in (now if more else was).items()
            if key not in (was if more else now)
        ]

    def _instances(self, rule: Rule) -> dict[Values, Rule]:
        keys = tuple(sorted({key for kin in _kin_of(rule) for key in kin.keys}))
        found: dict[Values, Rule] = {}
        for labels in self._projects:
            held = dict(labels)
            values = tuple(held.get(key) for key in keys)
            if values not in found and (one := _instance(rule, keys, values)) is not None:
                found[values] = one
        return found


def _kin_of(rule: Rule) -> list[Kin]:
    return [peer.kin for peer in rule.peers if isinstance(peer, Workloads) and peer.kin is not None]


def _instance(rule: Rule, keys: tuple[str, ...], values: Values) -> Rule | None:
    """*rule* for the subjects whose project has *values* at *keys*; None where it has no peer for them."""
    held = {key: value for key, value in zip(keys, values, strict=True) if value is not None}
    peers = tuple(plain for peer in rule.peers for plain in _plain(peer, held))
    if not peers:
        return None
    its_own = Selector((*_requirements(rule.subject), *(_is(key, held.get(key)) for key in keys)))
    return replace(rule, subject=replace(rule.subject, projects=its_own), peers=peers, instance=repr(values))


def _plain(peer: Peer, held: dict[str, str]) -> Iterator[Peer]:
    """*peer* for subjects whose project has the labels *held*: no, one or several peers with selectors alone."""
    if not isinstance(peer, Workloads) or peer.kin is None:
        yield peer
        return
    keys = peer.kin.keys
    if not keys or not held.keys() >= set(keys):
        return
    stem = _requirements(peer)
    if peer.kin.same:
        yield replace(peer, projects=Selector((*stem, *(_is(key, held[key]) for key in keys))), kin=None)
        return
    there = tuple(Requirement(key, Operator.EXISTS) for key in keys)
    for key in keys:
        other = Requirement(key, Operator.NOT_IN, frozenset({held[key]}))
        yield replace(peer, projects=Selector((*stem, *there, other)), kin=None)


def _requirements(of: Workloads) -> tuple[Requirement, ...]:
    return of.projects.requirements if of.projects else ()


def _is(key: str, value: str | None) -> Requirement:
    if value is None:
        return Requirement(key, Operator.DOES_NOT_EXIST)
    return Requirement(key, Operator.IN, frozenset({value}))
