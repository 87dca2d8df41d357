"""A scan, as the trust child does it: package lists of layers, merged, matched with the feed, judged, reported.

Runs in the child only.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Sequence
from datetime import date
from functools import cmp_to_key
from pathlib import Path

import msgspec

from casemate.node.trust.jobs import FEED_FILE, Answer, FeedsJob, ScanJob, answer
from casemate.spec.api.scan import (
    FeedList,
    FeedRow,
    ScanAnswer,
    ScanFinding,
    ScanSecret,
    ScanSetuid,
    ScanUpgrade,
)
from casemate.spec.errors import CasemateError
from casemate.trust.feed.apply import open_feed
from casemate.trust.feed.ecosystems import import_command, of_distribution, place_of, scheme_of
from casemate.trust.feed.fresh import age_days, as_date
from casemate.trust.feed.ignores import Ignored, Judged, judge
from casemate.trust.feed.match import Finding, Match, match
from casemate.trust.feed.model import BY_SOURCE, SEVERITIES, FeedMissing, Severity, Source
from casemate.trust.packages.apply import CONTENTS_FOLDER, ContentsStore
from casemate.trust.packages.merge import ImageContents, merge
from casemate.trust.rules.settle import settle, vex_of, with_bills
from casemate.trust.version.order import comparison

#: What a table, a page or a code host can still show; the counts are of all.
MAX_FINDINGS = 20_000
MAX_ROWS = 2_000


def scan(job: ScanJob) -> Answer:
    """The scan of one image, in the form that was asked for. Raises ``LayerNotScanned`` and the feed's errors."""
    store = ContentsStore(Path(job.state) / CONTENTS_FOLDER)
    contents = merge([store.load(layer.diff_id) for layer in job.layers])
    if job.rule is not None:
        contents = with_bills(contents, job.rule, job.evidence)
    if job.form in ("cyclonedx", "spdx"):
        from casemate.trust.report.sbom import cyclonedx, spdx  # noqa: PLC0415 - only here

        bill = (cyclonedx if job.form == "cyclonedx" else spdx)(contents, job.digest, job.name, job.created)
        return Answer(text=_pretty(bill))
    database, sources = _feed_for(job, contents)
    with contextlib.closing(database):
        matched = match(database, contents)
    today = date.fromisoformat(job.today)
    said, faults = vex_of(job.rule, job.evidence) if job.rule is not None else ([], [])
    open_, settled = settle(matched.findings, said)
    judged = judge(open_, job.ignores, today)
    found = report(job, contents, matched, judged, sources)
    found = msgspec.structs.replace(found, settled=tuple(settled[:MAX_ROWS]), warnings=(*found.warnings, *faults))
    if job.form == "json":
        return answer(found)
    if job.form == "html":
        from casemate.trust.report.page import page  # noqa: PLC0415 - only here

        return Answer(text=page(found))
    from casemate.trust.report.sarif import sarif  # noqa: PLC0415 - only here

    return Answer(text=_pretty(sarif(judged.findings[:MAX_FINDINGS], found.gaps, job.digest, job.version)))


def _feed_for(job: ScanJob, contents: ImageContents) -> tuple[sqlite3.Connection, list[Source]]:
    """The feed; where there is none, the error says which commands bring what this image needs."""
    try:
        return open_feed(Path(job.state) / FEED_FILE)
    except FeedMissing as error:
        system = of_distribution(contents.distribution)
        places = {place_of(found.package, system)[0] for found in contents.packages if not found.package.owned}
        commands = dict.fromkeys(import_command(place) for place in sorted(filter(None, {system, *places})))
        if not commands:
            raise
        raise FeedMissing(error.detail, remedy=f"For this image: {', '.join(commands)}.") from error


def list_feeds(job: FeedsJob) -> FeedList:
    """The sources of the feed; none where there is no file. A damaged one is an error."""
    path = Path(job.state) / FEED_FILE
    try:
        database, sources = open_feed(path, thorough=job.thorough)
    except FeedMissing:
        return FeedList(str(path), ())
    database.close()
    today = date.fromisoformat(job.today)
    rows = tuple(feed_row(source, today, job.max_feed_age_days) for source in sources)
    return FeedList(str(path), rows, path.stat().st_size)


def feed_row(source: Source, today: date, max_age_days: int) -> FeedRow:
    try:
        age = age_days(source, today)
    except CasemateError:
        age = -1
    stale = age < 0 or (max_age_days > 0 and age > max_age_days)
    return FeedRow(**msgspec.structs.asdict(source), age_days=age, stale=stale)


def report(
    job: ScanJob, contents: ImageContents, matched: Match, judged: Judged, sources: Sequence[Source]
) -> ScanAnswer:
    """The values of a scan as the API answers them."""
    today = date.fromisoformat(job.today)
    feeds = tuple(feed_row(source, today, job.max_feed_age_days) for source in sources)
    gaps = _gaps(contents, matched, feeds)
    counts = Counter(finding.severity for finding in judged.findings)
    rows = [*(_finding(row) for row in judged.findings), *(_ignored(row) for row in judged.ignored)]
    warnings = list(judged.warnings)
    if len(rows) > MAX_FINDINGS:
        warnings.append(f"{len(rows)} findings; the worst {MAX_FINDINGS} are listed")
    end = contents.end_of_life
    system = contents.distribution
    return ScanAnswer(
        image=job.name,
        digest=job.digest,
        scanned_on=job.today,
        whole=not gaps,
        gaps=gaps,
        counts={severity: counts.get(severity, 0) for severity in SEVERITIES},
        distribution=(system.name or f"{system.id} {system.version}".strip()) if system else "",
        end_of_life=end or "",
        past_end_of_life=end is not None and as_date(end, "end of life") < today,
        packages=len(contents.packages),
        findings=tuple(rows[:MAX_FINDINGS]),
        upgrades=upgrades(judged.findings, contents)[:MAX_ROWS],
        layers=job.layers,
        secrets=tuple(
            ScanSecret(row.leak.path, row.leak.rule, row.layer, row.leak.line, row.hidden)
            for row in contents.leaks[:MAX_ROWS]
        ),
        setuid=tuple(
            ScanSetuid(row.path, f"{row.mode & 0o7777:04o}", row.uid, row.gid) for row in contents.setuid[:MAX_ROWS]
        ),
        feeds=feeds,
        warnings=tuple(warnings),
    )


def upgrades(findings: Sequence[Finding], contents: ImageContents) -> tuple[ScanUpgrade, ...]:
    """What to do, a row for each source package in each place, the worst first (as *findings* come)."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for row in findings:
        package = row.found.package
        key = (package.type, package.advisory_name, package.advisory_version, row.found.path, row.found.layer)
        groups.setdefault(key, []).append(row)
    distribution = of_distribution(contents.distribution)
    return tuple(_upgrade(rows, distribution) for rows in groups.values())


def _upgrade(rows: list[Finding], distribution: str | None) -> ScanUpgrade:
    found = rows[0].found
    package = found.package
    ecosystem, by, name = place_of(package, distribution)
    scheme = scheme_of(ecosystem or "")
    fixes = {row.fixed for row in rows if row.fixed}
    newest = max(fixes, key=cmp_to_key(comparison(scheme)), default="") if scheme else ", ".join(sorted(fixes))
    idents = {row.ident: bool(row.fixed) for row in rows}
    severities: list[Severity] = [row.severity for row in rows]
    installed = sorted({row.found.package.name for row in rows})
    return ScanUpgrade(
        package=name, version=package.advisory_version if by == BY_SOURCE else package.version, type=package.type,
        layer=found.layer, path=found.path, worst=max(severities, key=SEVERITIES.index),
        to=newest, repaired=sum(idents.values()), open=len(idents) - sum(idents.values()),
        exploited=any(row.exploited for row in rows), advisories=tuple(idents)[:200],
        installed=tuple(installed) if installed != [name] else (),
    )  # fmt: skip


def _gaps(contents: ImageContents, matched: Match, feeds: Sequence[FeedRow]) -> tuple[str, ...]:
    """Why the answer is not whole: nothing of this may pass for clean."""
    found = [_uncovered(ecosystem) for ecosystem in matched.uncovered]
    found += [f"{row.path} cannot be read: {row.reason}"[:300] for row in contents.unreadable[:MAX_ROWS]]
    for feed in feeds:
        if feed.age_days < 0:
            found.append(f"feed {feed.name} is of {feed.date}, which this host's clock has not reached")
        elif feed.stale:
            found.append(f"feed {feed.name} is of {feed.date}, {feed.age_days} days old")
    return tuple(found)


def _uncovered(ecosystem: str) -> str:
    """What is not an ecosystem (packages of a distribution that nobody knows) has no feed that could be named."""
    text = f"no feed speaks of {ecosystem}"
    return f"{text}; {import_command(ecosystem)} brings one" if scheme_of(ecosystem) else text


def _finding(row: Finding, ignored: str = "") -> ScanFinding:
    package = row.found.package
    return ScanFinding(
        id=row.ident, package=package.name, version=package.version, type=package.type, path=row.found.path,
        layer=row.found.layer, severity=row.severity, score=row.score / 10 if row.score >= 0 else -1.0,
        fixed=row.fixed, source=package.source, aliases=row.aliases, summary=row.summary, epss=row.probability,
        exploited=row.exploited, ignored=ignored,
    )  # fmt: skip


def _ignored(row: Ignored) -> ScanFinding:
    return _finding(row.finding, f"{row.by.owner}, until {row.by.until}: {row.by.reason}")


def _pretty(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=1).decode() + "\n"
