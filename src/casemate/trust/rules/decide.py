"""The decision: a policy and what is known of an image in, a grade with its explanation out. Pure, and total.

Whatever is missing, stale or cannot be evaluated makes the answer stricter, never milder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from datetime import date
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from casemate.spec.errors import CasemateError
from casemate.spec.workload import Level
from casemate.trust.admission import Candidate, Grade, LevelTooWeak
from casemate.trust.feed.fresh import age_days, as_date
from casemate.trust.feed.ignores import judge
from casemate.trust.feed.match import Finding, Match
from casemate.trust.feed.model import SEVERITIES, Source
from casemate.trust.packages.merge import ImageContents
from casemate.trust.rules.condition import CONTENT_FACTS, MATCH_FACTS, SIGNATURE_FACTS, Condition, Facts
from casemate.trust.rules.model import LEVELS, RUNNING, GradeRule, Rule, Running, TrustPolicy
from casemate.trust.rules.settle import lacking, settle, vex_of
from casemate.trust.signature.verify import Evidence, require


class Scan(msgspec.Struct, frozen=True):
    """What is in the image, what is known of that, by which feeds, and on which day (``YYYY-MM-DD``) it was matched."""

    contents: ImageContents
    match: Match
    feeds: tuple[Source, ...]
    matched: str


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of the explanation. *running*: what it means for a container that runs; empty: what its rule says."""

    rule: str
    outcome: Literal["ok", "refuse", "raise", "warn", "excepted"]
    evidence: str
    running: str = ""


class Needs(msgspec.Struct, frozen=True):
    """What a rule has to know: signatures, the content of the image, its match with a feed."""

    signatures: bool = False
    contents: bool = False
    match: bool = False


class Decision(msgspec.Struct, frozen=True):
    """*level*: the least that the image may run at; *segment*: where, empty for the workload's own choice."""

    answer: Literal["admit", "refuse"]
    level: Level
    segment: str
    rule: str
    steps: tuple[Step, ...]
    warnings: tuple[str, ...] = ()
    dry_run: bool = False
    #: For a container that runs already: the hardest that any refusing or raising step asks for.
    running: Running = "report"
    quarantine: str = "quarantine"

    def grade(self) -> Grade:
        """As the admission step of a start takes it."""
        telling = [step for step in self.steps if step.outcome in ("refuse", "raise")] or list(self.steps[-1:])
        reason = "; ".join(f"{step.rule}: {step.evidence}" for step in telling)
        if self.segment:
            reason += f" (segment {self.segment})"
        return Grade(self.answer, ("dry run: " if self.dry_run else "") + reason, self.rule, self.level)


def needs(rule: Rule | None) -> Needs:
    """What :func:`decide` has to be told for *rule*. A condition that cannot be read needs nothing: it refuses."""
    if rule is None:
        return Needs()
    uses = _uses(rule)
    match = bool(rule.max_scan_age_days or rule.max_feed_age_days or uses & MATCH_FACTS)
    return Needs(
        signatures=bool(
            rule.signers or rule.attestations or rule.predicates or rule.vex or rule.bills or uses & SIGNATURE_FACTS
        ),
        contents=match or bool(uses & (CONTENT_FACTS | {"scanned"})),
        match=match,
    )


def _uses(rule: Rule) -> Set[str]:
    found: set[str] = set()
    for grade in rule.grades:
        try:
            found |= Condition(grade.when, grade.name).uses
        except CasemateError:
            continue
    return found


def decide(
    policy: TrustPolicy, candidate: Candidate, evidence: Evidence | None, scan: Scan | None, today: date
) -> Decision:
    """The decision on *candidate*. *evidence*: of its signatures, *scan*: of its content; None: there is none."""
    steps: list[Step] = []
    repository = repository_of(candidate.reference)
    rule = policy.rule_for(repository)
    if rule is None:
        steps.append(Step("default", "refuse", f"no rule covers {repository}"))
        return _sum_up(policy, None, ("namespace", ""), steps, ())
    steps.append(_signatures(rule, candidate, evidence))
    steps += _attestations(rule, evidence)
    warnings: tuple[str, ...] = ()
    facts = _facts(candidate, repository, evidence)
    conditions = _conditions(rule, steps)
    wanted = needs(rule)
    if wanted.match or wanted.contents:
        steps += _scanned(rule, wanted, scan, today)
    if scan is not None:
        said, faults = vex_of(rule, evidence)
        open_, settled = settle(scan.match.findings, said)
        if settled:
            steps.append(Step(rule.name, "ok", f"{len(settled)} findings settled by signed VEX: {settled[0]}"[:400]))
        judged = judge(open_, policy.ignores, today)
        warnings = (*judged.warnings, *faults)
        facts |= _scan_facts(scan, judged.findings, today)
        facts["findings"] = _told_findings(judged.findings, [condition for _, condition in conditions])
    level: Level = rule.floor
    segment = ""
    for grade, holds in _grades(conditions, facts, steps):
        if holds:
            steps.append(Step(grade.name, grade.then, grade.when, grade.running))
            if grade.then == "raise":
                level = grade.level if LEVELS.index(grade.level) > LEVELS.index(level) else level
                segment = segment or grade.segment
    steps.append(_requested(rule, candidate, level))
    steps = [_excepted(policy, candidate, step, today) for step in steps]
    return _sum_up(policy, rule, (level, segment), steps, warnings)


Conditions = list[tuple[GradeRule, Condition]]


def _conditions(rule: Rule, steps: list[Step]) -> Conditions:
    """The grades with their conditions; one that cannot be read adds a refusing step."""
    found: Conditions = []
    for grade in rule.grades:
        try:
            found.append((grade, Condition(grade.when, grade.name)))
        except CasemateError as error:
            steps.append(Step(grade.name, "refuse", f"its condition cannot be read: {error.detail}"[:400]))
    return found


def _grades(conditions: Conditions, facts: dict[str, Any], steps: list[Step]) -> Iterator[tuple[GradeRule, bool]]:
    """Each grade and whether its condition holds; one that cannot be answered adds a refusing step."""
    if not conditions:
        return
    prepared = Facts(facts, frozenset().union(*(condition.uses for _, condition in conditions)))
    for grade, condition in conditions:
        try:
            yield grade, condition.holds(prepared)
        except CasemateError as error:
            steps.append(Step(grade.name, "refuse", f"its condition cannot be answered: {error.detail}"[:400]))


def repository_of(reference: str) -> str:
    """The repository of a whole reference, without tag and digest."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


def _signatures(rule: Rule, candidate: Candidate, evidence: Evidence | None) -> Step:
    if not rule.signers:
        return Step(rule.name, "ok", "asks for no signature")
    given = evidence or Evidence(candidate.digest)
    if given.digest != candidate.digest:
        return Step(rule.name, "refuse", f"the signatures are of {given.digest}, not of {candidate.digest}")
    try:
        require(given, rule.signers, rule.threshold)
    except CasemateError as error:
        return Step(rule.name, "refuse", f"{error.title}: {error.detail}"[:600])
    return Step(rule.name, "ok", f"signed by {', '.join(sorted(given.signers & set(rule.signers)))}")


def _attestations(rule: Rule, evidence: Evidence | None) -> list[Step]:
    given = {
        statement.predicate_type
        for signer, statement in (evidence.attestations if evidence else ())
        if signer in rule.signers
    }
    return [
        Step(
            rule.name,
            "ok" if wanted in given else "refuse",
            f"attestation {wanted}" + ("" if wanted in given else " is missing"),
        )
        for wanted in rule.attestations
    ] + [
        Step(rule.name, "refuse" if lack else "ok", lack or f"attestation {wanted.type}: {wanted.when}"[:400])
        for wanted, lack in lacking(rule, evidence)
    ]


def _scanned(rule: Rule, wanted: Needs, scan: Scan | None, today: date) -> list[Step]:
    if scan is None:
        return [Step(rule.name, "refuse", "the image was not scanned")]
    steps = []
    if wanted.match:
        if not scan.feeds:
            steps.append(Step(rule.name, "refuse", "there is no feed to judge by"))
        for ecosystem in scan.match.uncovered:
            steps.append(Step(rule.name, "refuse", f"no feed speaks of {ecosystem}"))
    for row in scan.contents.unreadable[:5]:
        steps.append(Step(rule.name, "refuse", f"{row.path} cannot be read: {row.reason}"[:300]))
    try:
        age = (today - as_date(scan.matched, "the scan")).days
        if age < -1 or (rule.max_scan_age_days and age > rule.max_scan_age_days):
            steps.append(
                Step(rule.name, "refuse", f"the scan is of {scan.matched}; {rule.max_scan_age_days} days are allowed")
            )
        for source in scan.feeds:
            age = age_days(source, today)
            if rule.max_feed_age_days and age > rule.max_feed_age_days:
                steps.append(
                    Step(
                        rule.name,
                        "refuse",
                        f"feed {source.name} is {age} days old; {rule.max_feed_age_days} are allowed",
                    )
                )
    except CasemateError as error:
        steps.append(Step(rule.name, "refuse", error.detail))
    return steps or [Step(rule.name, "ok", f"scanned on {scan.matched}")]


def _facts(candidate: Candidate, repository: str, evidence: Evidence | None) -> dict[str, Any]:
    signers = sorted(evidence.signers) if evidence and evidence.digest == candidate.digest else []
    return {
        "repository": repository, "digest": candidate.digest, "project": candidate.project, "level": candidate.level,
        "signed": bool(signers), "signers": signers,
        "attestations": sorted({row.predicate_type for _, row in evidence.attestations}) if evidence else [],
        "scanned": False, "findings": [], "worst": "unknown", "counts": dict.fromkeys(SEVERITIES, 0),
        "exploited": False, "max_epss": -1.0, "end_of_life": False, "setuid": [], "leaks": [], "unreadable": [],
        "distribution": "",
    }  # fmt: skip


#: What a condition may ask of a finding.
FINDING_FIELDS: MappingProxyType[str, Callable[[Finding], Any]] = MappingProxyType({
    "id": lambda row: row.ident, "aliases": lambda row: row.aliases, "severity": lambda row: row.severity,
    "score": lambda row: row.score / 10, "fixable": lambda row: bool(row.fixed), "fixed": lambda row: row.fixed,
    "package": lambda row: row.found.package.name, "version": lambda row: row.found.package.version,
    "type": lambda row: row.found.package.type, "path": lambda row: row.found.path,
    "layer": lambda row: row.found.layer, "epss": lambda row: row.probability,
    "exploited": lambda row: row.exploited,
})  # fmt: skip


def _told_findings(findings: Sequence[Finding], conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    """The findings with the fields that a condition names; the same one only once where that cannot matter.

    Making CEL's values of 500 whole findings takes longer than all the rest of a decision.
    """
    asking = [condition for condition in conditions if "findings" in condition.uses]
    words = frozenset[str]().union(*(condition.words for condition in asking))
    fields = [name for name in FINDING_FIELDS if name in words]
    rows: Iterable[tuple[Any, ...]] = (tuple(FINDING_FIELDS[name](row) for name in fields) for row in findings)
    if all(condition.quantifies for condition in asking):
        rows = dict.fromkeys(rows)
    return [
        {name: list(value) if name == "aliases" else value for name, value in zip(fields, row, strict=True)}
        for row in rows
    ]


def _scan_facts(scan: Scan, findings: Sequence[Any], today: date) -> dict[str, Any]:
    counts = Counter(finding.severity for finding in findings)
    contents = scan.contents
    end = contents.end_of_life
    return {
        "scanned": True,
        "worst": max((row.severity for row in findings), key=SEVERITIES.index, default="none"),
        "counts": {severity: counts.get(severity, 0) for severity in SEVERITIES},
        "exploited": any(row.exploited for row in findings),
        "max_epss": max((row.probability for row in findings), default=-1.0),
        "end_of_life": end is not None and as_date(end, "end of life") < today,
        "setuid": [row.path for row in contents.setuid],
        "leaks": [row.leak.rule for row in contents.leaks],
        "unreadable": [row.path for row in contents.unreadable],
        "distribution": f"{contents.distribution.id} {contents.distribution.version}" if contents.distribution else "",
    }  # fmt: skip


def _requested(rule: Rule, candidate: Candidate, level: Level) -> Step:
    """A level that is too weak is raised; where it was asked for by name, :func:`check_level` refuses it."""
    if LEVELS.index(candidate.level) < LEVELS.index(level):
        return Step(rule.name, "raise", f"at least {level}, asked for {candidate.level}")
    return Step(rule.name, "ok", f"{candidate.level} is at least {level}")


def _excepted(policy: TrustPolicy, candidate: Candidate, step: Step, today: date) -> Step:
    if step.outcome != "refuse":
        return step
    for row in policy.exceptions:
        if row.rule == step.rule and row.digest == candidate.digest and as_date(row.until, row.rule) >= today:
            return Step(
                step.rule, "excepted", f"{step.evidence}; excepted until {row.until} by {row.owner}: {row.reason}"[:600]
            )
    return step


def _sum_up(
    policy: TrustPolicy, rule: Rule | None, where: tuple[Level, str], steps: list[Step], warnings: tuple[str, ...]
) -> Decision:
    refused = any(step.outcome == "refuse" for step in steps)
    dry_run = policy.dry_run or (rule is not None and rule.dry_run)
    asked = [
        step.running or (rule.running if rule is not None else "report")
        for step in steps
        if step.outcome in ("refuse", "raise")
    ]
    running: Running = max(asked, key=RUNNING.index, default="report")  # type: ignore[arg-type]  # the words of Running
    if dry_run:
        where, running = ("namespace", ""), "report"
    return Decision(
        "refuse" if refused and not dry_run else "admit",
        *where,
        rule.name if rule is not None else "default",
        tuple(steps),
        warnings,
        dry_run and any(step.outcome in ("refuse", "raise") for step in steps),
        running,
        rule.quarantine if rule is not None else "quarantine",
    )


def check_level(candidate: Candidate, decision: Decision, *, asked_by_name: bool) -> Level:
    """The level to run at. Asked for by name and too weak: raises :class:`LevelTooWeak`, with the rule's name."""
    if LEVELS.index(candidate.level) >= LEVELS.index(decision.level):
        return candidate.level
    if asked_by_name:
        raise LevelTooWeak(
            f"{candidate.reference}: rule {decision.rule} wants at least {decision.level}, not {candidate.level}",
            rule=decision.rule, level=decision.level,
        )  # fmt: skip
    return decision.level
