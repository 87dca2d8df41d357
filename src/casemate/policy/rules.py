"""Rules as every kind of document becomes them: one ordered list, of which the first match decides.

Kubernetes' NetworkPolicy has no order: what some rule allows is allowed, and a pod that a policy selects is closed
otherwise. As a list that is: all its allows, then a deny for each policy that selects. A tier's ``Pass`` leaves the
rest of that tier out. What no rule decides is what the rule set's *default* says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from casemate.policy.addresses import BlockGroup
from casemate.policy.conditions import Condition
from casemate.policy.identity import Endpoint, Identity, Kind
from casemate.policy.labels import EVERYTHING, Selector
from casemate.policy.ports import PortMatch
from casemate.policy.verdict import Action
from casemate.policy.windows import Window

#: What rules are sorted by: tier, rank, id, instance.
Order = tuple[int, tuple[int, str, int], str, str]


class Tier(IntEnum):
    """In order of evaluation. ADMIN, NETWORK and BASELINE are Kubernetes' three.

    GUARD is for what Casemate itself lays before every document (quarantines, walls); no audit mode reaches it.
    """

    GUARD = -1
    OPERATOR = 0
    ADMIN = 1
    PROJECT = 2
    NETWORK = 3
    BASELINE = 4
    DEFAULT = 5


class Direction(Enum):
    EGRESS = "egress"
    INGRESS = "ingress"

    # Members are single objects; Enum's own hash is Python code, and these are hashed a million times a compile.
    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class Kin:
    """A peer's project by the subject's: both have all of *keys*, with the *same* values or with some that differ.

    ``sameLabels`` and ``notSameLabels`` of v1alpha1's first releases; without keys nothing is selected.
    """

    keys: tuple[str, ...]
    same: bool

    def holds(self, subject: Mapping[str, str], peer: Mapping[str, str]) -> bool:
        if not self.keys or any(key not in subject or key not in peer for key in self.keys):
            return False
        return all(subject[key] == peer[key] for key in self.keys) is self.same

    def describe(self) -> str:
        return f"{'same' if self.same else 'other'} {', '.join(self.keys) or 'nothing'}"


@dataclass(frozen=True, slots=True)
class Workloads:
    """Pods (or nodes) by project and labels. *project* names one; *projects* selects by the projects' labels.

    *kin* is for peers: what their project has to do with the subject's (:mod:`casemate.policy.kinship`).
    """

    selector: Selector = EVERYTHING
    project: str | None = None
    projects: Selector | None = None
    kind: Kind = Kind.POD
    kin: Kin | None = None
    #: Of a hundred thousand rules each is looked for a dozen times, by values within values.
    _hash: int = field(default=0, init=False, repr=False, compare=False)

    def __hash__(self) -> int:
        if not self._hash:
            values = (self.selector, self.project, self.projects, self.kind, self.kin)
            object.__setattr__(self, "_hash", hash(values) or 1)
        return self._hash

    def matches(self, end: Endpoint | Identity) -> bool:
        """Whether it selects *end*, its kinship aside: that takes the other end too (:meth:`is_kin`)."""
        if end.kind is not self.kind or self.project not in (None, end.project):
            return False
        if self.projects is not None and not self.projects.matches(dict(end.project_labels)):
            return False
        return self.selector.matches(dict(end.labels))

    def is_kin(self, end: Endpoint, subject: Endpoint) -> bool:
        return self.kin is None or self.kin.holds(dict(subject.project_labels), dict(end.project_labels))

    def describe(self) -> str:
        where = self.project or (f"projects({self.projects.describe()})" if self.projects else "*")
        if self.kin is not None:
            where += f"({self.kin.describe()})"
        return f"{where}/{self.selector.describe()}"


@dataclass(frozen=True, slots=True)
class Blocks:
    group: BlockGroup

    def describe(self) -> str:
        return self.group.describe()


@dataclass(frozen=True, slots=True)
class Names:
    """Outside addresses by the names that led there; ``*.`` stands for one label or more."""

    patterns: tuple[str, ...]

    def covers(self, dns: frozenset[str]) -> bool:
        return any(name_matches(pattern, name) for pattern in self.patterns for name in dns)

    def describe(self) -> str:
        return ", ".join(self.patterns)


@dataclass(frozen=True, slots=True)
class Anyone:
    def describe(self) -> str:
        return "any"


Peer = Workloads | Blocks | Names | Anyone


def gathered(peers: list[Peer]) -> tuple[Peer, ...]:
    """*peers* with all blocks as one group: each group makes outside identities, so a rule has one at most."""
    blocks = [block for peer in peers if isinstance(peer, Blocks) for block in peer.group.blocks]
    others = [peer for peer in peers if not isinstance(peer, Blocks)]
    return (*others, Blocks(BlockGroup(tuple(blocks)))) if blocks else tuple(others)


def name_matches(pattern: str, name: str) -> bool:
    """Case and a final dot do not count (RFC 4343)."""
    pattern, name = pattern.lower().rstrip("."), name.lower().rstrip(".")
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return name == pattern


@dataclass(frozen=True, slots=True)
class Rule:
    """*id* is stable and unique: ``KIND/[PROJECT/]NAME:direction[index]``; *ports* None means every protocol."""

    id: str
    tier: Tier
    rank: tuple[int, str, int]
    direction: Direction
    subject: Workloads
    peers: tuple[Peer, ...]
    action: Action
    ports: tuple[PortMatch, ...] | None = None
    name: str = ""
    audit: bool = False
    condition: Condition | None = None
    windows: tuple[Window, ...] = ()
    #: Decides nothing by itself: what rules after it would let pass is referred, what they forbid stays forbidden.
    least: bool = False
    #: Which of one rule's instances it is (:mod:`casemate.policy.kinship`); they share its *id*.
    instance: str = ""

    @property
    def order(self) -> Order:
        return (int(self.tier), self.rank, self.id, self.instance)

    def describe(self) -> str:
        ports = "any port" if self.ports is None else ", ".join(port.describe() for port in self.ports) or "no port"
        peers = "; ".join(peer.describe() for peer in self.peers) or "nobody"
        way = "to" if self.direction is Direction.EGRESS else "from"
        when = f" when {self.condition.source}" if self.condition else ""
        action = "at least refer" if self.least else self.action.name.lower()
        return f"{action} {self.subject.describe()} {way} {peers}, {ports}{when}"


@dataclass(frozen=True, slots=True)
class AuditedSegment:
    """Whose members are not stopped by rules of *tiers*: what those would deny or refer passes as AUDIT."""

    id: str
    subject: Workloads
    tiers: frozenset[Tier]


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Everything in force at one moment, in order of evaluation. Build it with :func:`rule_set`."""

    rules: tuple[Rule, ...] = ()
    audited: tuple[AuditedSegment, ...] = ()
    #: What holds for a pod where no rule decides; outside addresses are not asked for their side.
    default: Action = Action.ALLOW


def rule_set(
    rules: tuple[Rule, ...] | list[Rule], audited: tuple[AuditedSegment, ...] = (), default: Action = Action.ALLOW
) -> RuleSet:
    return RuleSet(tuple(sorted(rules, key=lambda rule: rule.order)), audited, default)


def block_groups(rules: RuleSet) -> list[BlockGroup]:
    """Every group of blocks that a rule names, once."""
    found = {peer.group.key: peer.group for rule in rules.rules for peer in rule.peers if isinstance(peer, Blocks)}
    return list(found.values())
