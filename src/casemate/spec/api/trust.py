"""The trust policy: its documents, their tests, what they would change, and why something may run."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from casemate.spec.api.containers import Admission
from casemate.spec.workload import Value

#: The body of a request is at most 1 MiB.
Text = Annotated[str, Meta(min_length=1, max_length=1_000_000)]
PolicyName = Annotated[str, Meta(pattern=r"\A[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?\Z")]


class TrustPolicyRow(Value, frozen=True):
    """One document; *expired*: exceptions and ignores whose day has passed, a line each."""

    name: str
    applied_at: str
    who: str
    rules: int
    signers: int
    exceptions: int
    ignores: int
    dry_run: bool = False
    expired: tuple[str, ...] = ()


class TrustPolicyList(Value, frozen=True):
    """Without a document everything is admitted; with one, what no rule covers is refused."""

    policies: tuple[TrustPolicyRow, ...]


class TrustPolicyDocument(Value, frozen=True):
    """A document as it can be applied again; *metadata* holds its name, *spec* what it says."""

    api_version: str = field(name="apiVersion")
    kind: str
    metadata: dict[str, str]
    spec: dict[str, object]


class TrustPolicyText(Value, frozen=True):
    """Documents as text (YAML or JSON)."""

    text: Text
    origin: Annotated[str, Meta(max_length=255)] = "the request"


class TrustTestRequest(Value, frozen=True):
    """Run the cases of *text*; against the documents of *policy* alone, or (empty) against what is in force."""

    text: Text
    policy: Annotated[str, Meta(max_length=1_000_000)] = ""
    origin: Annotated[str, Meta(max_length=255)] = "the request"


class TrustTestRow(Value, frozen=True):
    """One case; *lacks*: what came out otherwise, none: it passed."""

    name: str
    passed: bool
    lacks: tuple[str, ...]
    answer: str
    level: str
    segment: str
    rule: str
    reason: str


class TrustTestAnswer(Value, frozen=True):
    passed: bool
    cases: tuple[TrustTestRow, ...]


class TrustApplied(Value, frozen=True):
    """*applied*: names of the documents that were stored."""

    applied: tuple[str, ...]


class TrustChange(Value, frozen=True):
    """What another policy would change for one container. *does*: what would be done with it while it runs."""

    container: str
    name: str
    image: str
    status: str
    answer: str
    answer_then: str
    level: str
    level_then: str
    segment: str
    segment_then: str
    rule_then: str
    reason_then: str
    does: Literal["nothing", "report", "restart", "quarantine", "stop"] = "nothing"


class TrustDryRun(Value, frozen=True):
    """*looked_at*: containers; *changes*: those for which something would be otherwise."""

    looked_at: int
    changes: tuple[TrustChange, ...]


class TrustWhy(Value, frozen=True):
    """Why something may run, or not. *then*: what was answered when a container was made or started last."""

    kind: Literal["container", "image"]
    name: str
    image: str
    digest: str
    repository: str
    now: Admission
    then: Admission | None = None
    level: str = ""


class TrustJudgement(Value, frozen=True):
    """What judging anew (*because* a feed, a document, a key or the day changed) found of one container in use.

    *was*: the answer before; *does*: what is done with it while it runs.
    """

    container: str
    name: str
    project: str
    at: str
    image: str
    digest: str
    answer: str
    was: str
    level: str = ""
    segment: str = ""
    rule: str = ""
    reason: str = ""
    because: str = ""
    does: str = "nothing"
