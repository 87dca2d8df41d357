"""Policy: documents, explanations, referrals, quarantines, walls."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from casemate.spec.workload import Project, Value

#: A workload or outside end as people write it: NAME, PROJECT/NAME, a pod, an address, a DNS name.
EndText = Annotated[str, Meta(min_length=1, max_length=300)]
#: ``tcp/5432``, ``udp/53``, ``icmp/8``, ``tcp/NAME``.
PortText = Annotated[str, Meta(min_length=1, max_length=40)]
Reason = Annotated[str, Meta(max_length=1000)]
VerdictWord = Literal["allow", "audit", "refer", "hold", "deny"]


class PolicyRow(Value, frozen=True):
    """A document that is in force. *key* is ``KIND/[PROJECT/]NAME``; *project* is empty for the operator's."""

    key: str
    kind: str
    project: str
    name: str
    rules: int
    walls: int = 0
    applied_at: str = ""
    applied_by: str = ""


class PolicyState(Value, frozen=True):
    """What holds now. *enforced*: the firewall has it; *why_not* says what is in the way otherwise."""

    active: bool
    enforced: bool
    generation: int = 0
    rules: int = 0
    endpoints: int = 0
    identities: int = 0
    elements: int = 0
    default: str = "allow"
    why_not: str = ""
    counters: dict[str, int] = {}


class HoldRow(Value, frozen=True):
    """A pod that is held while it starts anew: how many connections wait for it, and for how long they still may."""

    pod: str
    workload: str
    waiting: int
    refused: int
    left_s: float


class PolicyStatus(Value, frozen=True):
    """What holds, what the firewall counted, what waits. Counters are since the daemons started."""

    state: PolicyState
    elements: dict[str, int]
    firewall: dict[str, int]
    referrals: dict[str, int]
    waiting: int
    holds: tuple[HoldRow, ...] = ()


class PolicyList(Value, frozen=True):
    documents: tuple[PolicyRow, ...]
    state: PolicyState


class PolicyDetail(Value, frozen=True):
    """One document: as a value, and as YAML."""

    row: PolicyRow
    document: dict[str, object]
    text: str


class PolicyChange(Value, frozen=True):
    """What a set of documents does to one of them. *diff* is a unified diff of their YAML."""

    key: str
    action: Literal["added", "changed", "unchanged", "removed"]
    diff: str = ""


class PolicyApplied(Value, frozen=True):
    """What was (or, with *dry_run*, would be) changed.

    *crossings*: paths that the rules leave across walls; those in *outside* lead through addresses that are no
    pod's. *elements*: how many of the kernel's map elements change;
    *tightened*: pairs of identities that may do less now, whose open connections are cut. *steps*: the first lines
    of the kernel's transaction.
    """

    dry_run: bool
    changes: tuple[PolicyChange, ...]
    warnings: tuple[str, ...] = ()
    crossings: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    elements: int = 0
    tightened: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    enforced: bool = False
    why_not: str = ""
    generation: int = 0


class ExplainRequest(Value, frozen=True):
    source: EndText
    destination: EndText
    port: PortText
    project: Project = "default"


class ExplainAnswer(Value, frozen=True):
    """Why a connection has its verdict. *changes*: what would change it; *wall*: what walls say to it."""

    verdict: VerdictWord
    rule: str
    lines: tuple[str, ...]
    egress_rule: str
    ingress_rule: str
    source: str
    destination: str
    changes: tuple[str, ...] = ()
    admit: str = ""
    wall: str = ""


class TestResult(Value, frozen=True):
    """One expectation: *held* says whether it is so."""

    __test__ = False

    name: str
    asked: str
    expected: str
    verdict: VerdictWord
    rule: str
    held: bool


class TestAnswer(Value, frozen=True):
    __test__ = False

    results: tuple[TestResult, ...]
    held: bool


class SimulatedFlow(Value, frozen=True):
    """Recorded connections that another policy would decide otherwise."""

    asked: str
    count: int
    before: VerdictWord
    before_rule: str
    after: VerdictWord
    after_rule: str


class SimulateAnswer(Value, frozen=True):
    flows: int
    connections: int
    differences: tuple[SimulatedFlow, ...]


class SuggestAnswer(Value, frozen=True):
    flows: int
    document: dict[str, object]
    text: str


class IdentityRow(Value, frozen=True):
    """An identity: the number that the kernel knows, what it stands for, and who has it."""

    number: int
    kind: str
    project: str
    labels: dict[str, str]
    workloads: tuple[str, ...]


class IdentityList(Value, frozen=True):
    identities: tuple[IdentityRow, ...]


class ReferralRow(Value, frozen=True):
    """A connection that no rule decided in the kernel. *answer* is empty while a person is asked.

    *by*: the rule, ``wall NAME``, ``deadline``, or the person. *until*: how long the answer holds for the same
    two ends and port. *packets*: first packets that waited for this answer. *dns*: the name under which the source was
    told of an outside destination's address last, if it asked the node's resolver: its owner says where it leads.
    """

    number: int
    at: str
    source: str
    destination: str
    protocol: str
    port: int
    asked_by: str = ""
    answer: Literal["", "allow", "deny"] = ""
    reason: str = ""
    by: str = ""
    deadline: str = ""
    until: str = ""
    packets: int = 1
    waited_ms: float = 0.0
    source_address: str = ""
    destination_address: str = ""
    dns: str = ""


class ReferralList(Value, frozen=True):
    waiting: tuple[ReferralRow, ...]
    decided: tuple[ReferralRow, ...]
    remembered: tuple[ReferralRow, ...] = ()
    counters: dict[str, int] = {}


class ReferralAnswer(Value, frozen=True):
    """A person's answer. *for_s*: how long it holds for the same two workloads and port; *remember*: until revoked."""

    allow: bool
    for_s: Annotated[int, Meta(ge=0, le=31_536_000)] = 0
    remember: bool = False
    reason: Reason = ""


class QuarantineAllow(Value, frozen=True):
    """What a quarantined pod may still do: with whom (an end as people write it), at which ports (empty: all)."""

    end: EndText
    ports: Annotated[tuple[PortText, ...], Meta(max_length=64)] = ()
    direction: Literal["to", "from", "both"] = "both"


class QuarantineRequest(Value, frozen=True):
    workload: EndText
    project: Project = "default"
    allow: Annotated[tuple[QuarantineAllow, ...], Meta(max_length=64)] = ()
    reason: Reason = ""
    #: Seconds until it ends by itself; 0: until it is released.
    for_s: Annotated[int, Meta(ge=0, le=31_536_000)] = 0


class QuarantineRow(Value, frozen=True):
    """A quarantine. *cause*: ``person``, ``rule NAME`` or ``admission``. *before*: whom it was connected to."""

    number: int
    workload: str
    since: str
    by: str
    cause: str
    reason: str
    until: str = ""
    allow: tuple[QuarantineAllow, ...] = ()
    before: tuple[str, ...] = ()
    released_at: str = ""
    released_by: str = ""
    release_reason: str = ""


class QuarantineList(Value, frozen=True):
    quarantines: tuple[QuarantineRow, ...]


class ReleaseRequest(Value, frozen=True):
    workload: EndText
    reason: Annotated[str, Meta(min_length=1, max_length=1000)]
    project: Project = "default"


class WallMember(Value, frozen=True):
    name: str
    workloads: tuple[str, ...]


class WallBound(Value, frozen=True):
    """A workload that has reached *member*, since when, and over which connection first."""

    workload: str
    member: str
    at: str
    peer: str = ""


class WallRow(Value, frozen=True):
    name: str
    document: str
    members: tuple[WallMember, ...]
    bound: tuple[WallBound, ...]
    crossings: tuple[str, ...] = ()
    #: Paths that lead through addresses that are no pod's.
    outside: tuple[str, ...] = ()


class WallList(Value, frozen=True):
    walls: tuple[WallRow, ...]


class WallEntry(Value, frozen=True):
    """A line of a wall's evidence; *chain* covers the line before it.

    *opened*: an officer let rules open a path between two members (*member* names both).
    """

    number: int
    at: str
    kind: Literal["reached", "refused", "released", "renamed", "opened"]
    wall: str
    workload: str
    member: str
    peer: str
    who: str
    reason: str
    chain: str


class WallReport(Value, frozen=True):
    """An auditor's evidence: the rules, what was reached and attempted, who released, and whether the chain holds."""

    at: str
    walls: tuple[WallRow, ...]
    documents: tuple[PolicyRow, ...]
    entries: tuple[WallEntry, ...]
    intact: bool
    chain: str
    digest: str


class WallRelease(Value, frozen=True):
    wall: Annotated[str, Meta(min_length=1, max_length=253)]
    workload: EndText
    reason: Annotated[str, Meta(min_length=1, max_length=1000)]
    project: Project = "default"
