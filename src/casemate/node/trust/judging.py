"""Judging images by the trust policy, many with one reading of the feed. Runs in the child that judges only."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter, OrderedDict
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import TypeVar

from casemate.node.trust.documents import Case, CaseGiven, combine, parse_cases, parse_policies
from casemate.node.trust.jobs import FEED_FILE
from casemate.node.trust.judge_jobs import (
    Judged,
    JudgeJob,
    Judgements,
    Knowledge,
    Policies,
    ReadJob,
    Subject,
    Tested,
    TestJob,
    Tests,
)
from casemate.spec.errors import CasemateError
from casemate.trust.admission import Candidate
from casemate.trust.feed.apply import open_feed
from casemate.trust.feed.match import Finding, Match, Matcher
from casemate.trust.feed.model import FeedMissing, Source
from casemate.trust.packages.apply import CONTENTS_FOLDER, ContentsStore, LayerNotScanned
from casemate.trust.packages.merge import Found, FoundLeak, ImageContents, merge
from casemate.trust.packages.model import Distribution, LayerContents, Leak, Package, Setuid, Unreadable
from casemate.trust.rules.decide import Decision, Scan, decide, needs, repository_of
from casemate.trust.rules.model import PolicyInvalid, TrustPolicy
from casemate.trust.rules.settle import with_bills
from casemate.trust.signature.statement import Statement
from casemate.trust.signature.statement import Subject as StatementSubject
from casemate.trust.signature.verify import Evidence, Verified

#: Layers and images that are remembered between two subjects: a host has few bases under many images.
MAX_LAYERS, MAX_IMAGES = 256, 64
K = TypeVar("K")
V = TypeVar("V")


class Judge:
    """Remembers the feed (while it is the same file), layers and images between two questions."""

    def __init__(self) -> None:
        self._feed: sqlite3.Connection | None = None
        self._stamp: tuple[str, int, int, int] | None = None
        self._sources: tuple[Source, ...] = ()
        self._matcher: Matcher | None = None
        self._layers: OrderedDict[str, LayerContents] = OrderedDict()
        self._images: OrderedDict[tuple[str, ...], ImageContents] = OrderedDict()
        self._matches: OrderedDict[tuple[str, ...], Match] = OrderedDict()

    def judge(self, job: JudgeJob) -> Judgements:
        """The decisions. A damaged feed is an error; none at all is told to the policy, which refuses where it asks."""
        self._open(Path(job.state) / FEED_FILE)
        lists = ContentsStore(Path(job.state) / CONTENTS_FOLDER)
        today = date.fromisoformat(job.today)
        return Judgements(tuple(self._one(job, subject, lists, today) for subject in job.subjects))

    def _one(self, job: JudgeJob, subject: Subject, lists: ContentsStore, today: date) -> Judged:
        candidate = subject.candidate
        rule = job.policy.rule_for(repository_of(candidate.reference))
        wanted = needs(rule)
        scan: Scan | None = None
        knowledge = Knowledge()
        if wanted.contents or wanted.match:
            try:
                layers = _kept(self._images, subject.layers, lambda: self._merged(subject.layers, lists), MAX_IMAGES)
                contents = layers if rule is None else with_bills(layers, rule, subject.evidence)
            except LayerNotScanned as error:
                knowledge = Knowledge(missing=str(error.facts.get("diff_id", "")))
            else:
                matched = Match()
                if wanted.match and self._matcher is not None:
                    matcher = self._matcher
                    if contents is layers:
                        matched = _kept(self._matches, subject.layers, lambda: matcher.match(contents), MAX_IMAGES)
                    else:
                        matched = matcher.match(contents)
                scan = Scan(contents, matched, self._sources, job.today)
                knowledge = _knowledge(scan)
        return Judged(subject.key, decide(job.policy, candidate, subject.evidence, scan, today), knowledge)

    def _merged(self, layers: tuple[str, ...], lists: ContentsStore) -> ImageContents:
        return merge([_kept(self._layers, diff_id, lambda d=diff_id: lists.load(d), MAX_LAYERS) for diff_id in layers])  # type: ignore[misc]

    def _open(self, path: Path) -> None:
        try:
            status = path.stat()
            stamp = (str(path), status.st_ino, status.st_mtime_ns, status.st_size)
        except FileNotFoundError:
            stamp = None
        if stamp is not None and stamp == self._stamp:
            return
        self._matches.clear()
        if self._feed is not None:
            self._feed.close()
        self._feed, self._matcher, self._sources, self._stamp = None, None, (), None
        if stamp is None:
            return
        with contextlib.suppress(FeedMissing):
            self._feed, sources = open_feed(path)
            self._sources = tuple(sources)
            self._matcher = Matcher(self._feed)
            self._stamp = stamp


def _kept(cache: OrderedDict[K, V], key: K, make: Callable[[], V], bound: int) -> V:
    found = cache.get(key)
    if found is None:
        found = cache[key] = make()
        while len(cache) > bound:
            cache.popitem(last=False)
    else:
        cache.move_to_end(key)
    return found


def _knowledge(scan: Scan) -> Knowledge:
    system = scan.contents.distribution
    return Knowledge(
        packages=len(scan.contents.packages),
        counts=dict(Counter(row.severity for row in scan.match.findings)),
        distribution=f"{system.id} {system.version}".strip() if system else "",
        feeds=tuple(f"{source.name} of {source.date} ({source.digest[:19]})" for source in scan.feeds),
    )


def read(job: ReadJob) -> Policies:
    """Documents that fit together with those that are there already."""
    fresh = parse_policies(job.text, job.origin)
    names = {policy.name for policy in fresh}
    kept = [policy for policy in job.others if policy.name not in names]
    return Policies(fresh, combine([*kept, *fresh], date.fromisoformat(job.today)))


def test(job: TestJob) -> Tests:
    """Run a user's cases."""
    return Tests(tuple(_case(job.policy, case, day or job.today) for case, day in parse_cases(job.text, job.origin)))


def _case(policy: TrustPolicy, case: Case, day: str) -> Tested:
    given = case.given
    try:
        today = date.fromisoformat(day)
    except ValueError as error:
        raise PolicyInvalid(f"case {case.name}: today is {day[:40]!r}, no day of the form YYYY-MM-DD") from error
    candidate = Candidate(given.digest, given.image, given.project, given.level)
    evidence = Evidence(
        given.digest,
        tuple(Verified(name, "cosign-simple") for name in given.signers),
        documents=len(given.signers),
        attestations=tuple(
            (
                name,
                Statement("https://in-toto.io/Statement/v1", kind, (StatementSubject({"sha256": given.digest[7:]}),)),
            )
            for name, kinds in given.attestations.items()
            for kind in kinds
        ),
    )
    scan = _invented(given, today) if given.scanned else None
    try:
        decision = decide(policy, candidate, evidence, scan, today)
    except CasemateError as error:
        raise PolicyInvalid(f"case {case.name}: {error.detail}") from error
    return Tested(case.name, tuple(_lacks(case, decision)), decision)


def _invented(given: CaseGiven, today: date) -> Scan:
    """The scan that a case describes."""
    ident, _, version = given.distribution.partition(" ")
    made = (today - timedelta(days=given.feed_age_days)).isoformat()
    findings = tuple(
        Finding(
            Found(Package(row.type, row.package, row.version), row.path, row.layer), row.id, row.aliases, row.severity,
            round(row.score * 10) if row.score >= 0 else -1, row.fixed, "", row.epss, row.exploited,
        )
        for row in given.findings
    )  # fmt: skip
    contents = ImageContents(
        packages=tuple(row.found for row in findings),
        distribution=Distribution(ident, version) if ident else None,
        end_of_life=given.end_of_life or None,
        setuid=tuple(Setuid(path, 0o4755) for path in given.setuid),
        leaks=tuple(FoundLeak(Leak("path", rule), 0) for rule in given.leaks),
        unreadable=tuple(Unreadable(path, "as the case says") for path in given.unreadable),
    )
    source = Source("invented", "osv", made, "sha256:0", made, 1, 1, 0, ())
    return Scan(contents, Match(findings), (source,), (today - timedelta(days=given.scan_age_days)).isoformat())


def _lacks(case: Case, decision: Decision) -> list[str]:
    found = []
    for what in ("answer", "level", "segment", "rule", "running"):
        wanted, seen = getattr(case.expect, what), getattr(decision, what)
        if wanted is not None and wanted != seen:
            found.append(f"{what} is {seen!r}, expected {wanted!r}")
    told = {step.rule for step in decision.steps if step.outcome != "ok"}
    found += [f"{name!r} told nothing" for name in case.expect.steps if name not in told]
    return found
