"""Trust policies and their tests as people write them: YAML in, checked values out. Pure; runs in the child.

The YAML reader is the one of all policy documents (``casemate.policy.source``): no aliases, no tags, no duplicate keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from casemate.policy.source import load_documents
from casemate.spec.errors import CasemateError
from casemate.spec.workload import Level
from casemate.trust.feed.ignores import Ignore, check_ignore
from casemate.trust.rules.model import Exception_, PolicyInvalid, Rule, TrustPolicy, check_policy, check_signers
from casemate.trust.signature.verify import Signer

API_VERSION = "casemate/v1"
KIND, TESTS_KIND = "TrustPolicy", "TrustPolicyTest"
MAX_DOCUMENTS = 256
MAX_CASES = 10_000
#: A chain of certificates in PEM.
MAX_SCALAR = 256 << 10
#: Documents that another command takes.
NETWORK_KINDS = {
    ("casemate/v1", "Policy"), ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
    ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
    ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy"),
}  # fmt: skip
ELSEWHERE = {
    KIND: "This document is a trust policy: `casemate trust policy apply FILE`.",
    TESTS_KIND: "These are cases of a trust policy: `casemate trust policy test FILE`.",
}
T = TypeVar("T")


class Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(pattern=r"\A[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?\Z")]
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a policy; *dry_run* holds for all its rules."""

    signers: tuple[Signer, ...] = ()
    rules: tuple[Rule, ...] = ()
    exceptions: tuple[Exception_, ...] = ()
    ignores: tuple[Ignore, ...] = ()
    dry_run: bool = False


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    metadata: Metadata
    spec: Spec
    api_version: Literal["casemate/v1"] = msgspec.field(name="apiVersion")
    kind: Literal["TrustPolicy"]


class Named(msgspec.Struct, frozen=True):
    """One policy document, read."""

    name: str
    spec: Spec


class CaseFinding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A finding that a test case invents. *fixed* empty: nothing repairs it."""

    severity: Literal["unknown", "none", "low", "medium", "high", "critical"]
    id: str = "CVE-0000-0000"
    aliases: tuple[str, ...] = ()
    score: float = -1.0
    fixed: str = ""
    package: str = "package"
    version: str = "1"
    type: Literal["deb", "apk", "rpm", "pypi", "npm", "golang", "cargo", "maven", "gem", "composer"] = "deb"
    path: str = "var/lib/dpkg/status"
    layer: int = 0
    epss: float = -1.0
    exploited: bool = False


class CaseGiven(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a test case says is known of the image. *scanned* false: there is no scan at all."""

    image: str
    digest: str = "sha256:" + "0" * 64
    project: str = "default"
    level: Level = "namespace"
    signers: tuple[str, ...] = ()
    #: predicate types, by whom
    attestations: dict[str, tuple[str, ...]] = {}
    scanned: bool = True
    findings: tuple[CaseFinding, ...] = ()
    distribution: str = "debian 12"
    end_of_life: str = ""
    setuid: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    feed_age_days: int = 0
    scan_age_days: int = 0


class CaseExpected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must come out; what is left out is not looked at. *steps*: names of rules or grades that must have told."""

    answer: Literal["admit", "refuse"]
    level: Level | None = None
    segment: str | None = None
    rule: str | None = None
    running: Literal["report", "restart", "quarantine", "stop"] | None = None
    steps: tuple[str, ...] = ()


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    given: CaseGiven
    expect: CaseExpected


class _Tests(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cases: Annotated[tuple[Case, ...], Meta(min_length=1, max_length=MAX_CASES)]
    api_version: Literal["casemate/v1"] = msgspec.field(name="apiVersion")
    kind: Literal["TrustPolicyTest"]
    metadata: Metadata | None = None
    #: The day on which it is tested (YYYY-MM-DD); empty: today.
    today: str = ""


def parse_policies(text: str, origin: str) -> tuple[Named, ...]:
    """Every policy document of *text*; raises :class:`PolicyInvalid` with the path of what is wrong."""
    documents = _load(text, origin)
    found = [_converted(value, _Document, f"{origin}, document {number}") for number, value in enumerate(documents, 1)]
    names = [row.metadata.name for row in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise PolicyInvalid(f"{origin}: two documents are called {sorted(twice)[0]!r}")
    return tuple(Named(row.metadata.name, row.spec) for row in found)


def parse_cases(text: str, origin: str) -> list[tuple[Case, str]]:
    """The cases of all documents of *text*, each with its day."""
    found: list[tuple[Case, str]] = []
    for number, value in enumerate(_load(text, origin), 1):
        tests = _converted(value, _Tests, f"{origin}, document {number}")
        found += [(case, tests.today) for case in tests.cases]
    if len(found) > MAX_CASES:
        raise PolicyInvalid(f"{origin}: {len(found)} cases; {MAX_CASES} are allowed")
    return found


def merged(policies: Sequence[Named]) -> TrustPolicy:
    """All *policies* as one, as they stand in the store: they were checked together when they were applied."""
    rules: list[Rule] = []
    for policy in policies:
        rules += [
            msgspec.structs.replace(rule, dry_run=True) if policy.spec.dry_run else rule for rule in policy.spec.rules
        ]
    return TrustPolicy(
        signers=tuple(row for policy in policies for row in policy.spec.signers),
        rules=tuple(rules),
        exceptions=tuple(row for policy in policies for row in policy.spec.exceptions),
        ignores=tuple(row for policy in policies for row in policy.spec.ignores),
    )


def combine(policies: Sequence[Named], today: date) -> TrustPolicy:
    """:func:`merged`, checked: names, prefixes, references, conditions, keys, ends of ignores."""
    found = check_policy(merged(policies))
    check_signers(found)
    for ignore in found.ignores:
        check_ignore(ignore, today)
    return found


def _load(text: str, origin: str) -> list[object]:
    try:
        found = load_documents(text.encode(), origin, MAX_SCALAR)
    except CasemateError as error:
        raise PolicyInvalid(error.detail) from error
    if not 0 < len(found) <= MAX_DOCUMENTS:
        raise PolicyInvalid(f"{origin} holds {len(found)} documents; 1 to {MAX_DOCUMENTS} are read")
    return found


def _converted(value: object, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise PolicyInvalid(f"{where}: {error}"[:600], remedy=_elsewhere(value, kind)) from error


def _elsewhere(value: object, kind: type) -> str | None:
    """The command that takes the document *value*, where it is well-meant and only at the wrong place."""
    if not isinstance(value, dict) or not isinstance(name := value.get("kind"), str):
        return None
    if (value.get("apiVersion"), name) in NETWORK_KINDS:
        return "This document says who may talk to whom: `casemate policy apply -f FILE`."
    wanted = KIND if kind is _Document else TESTS_KIND
    return ELSEWHERE.get(name) if name != wanted else None
