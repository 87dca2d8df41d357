"""Debian's security tracker: its JSON export, and its lists of advisories (DSA, DLA) as tab-separated lines."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from casemate.trust.feed.ecosystems import DEBIAN_RELEASES
from casemate.trust.feed.model import (
    BY_SOURCE,
    MAX_IDENT_CHARS,
    MAX_SUMMARY_CHARS,
    Advisory,
    Affected,
    FeedInvalid,
    Severity,
    bounded,
)
from casemate.trust.feed.severity import from_word, worse
from casemate.trust.packages.model import MAX_NAME_CHARS, MAX_VERSION_CHARS

_HEADER = "advisory\trelease\tsource\tfixed\tcves"
_ADVISORY = re.compile(r"(DSA|DLA|ELA)-[0-9]+(-[0-9]+)?\Z")
#: Instead of a version: nobody repaired it there, and nobody will.
_OPEN = ("<end-of-life>", "<unfixed>", "<removed>", "<undetermined>")
_CVE = re.compile(r"CVE-[0-9]{4}-[0-9]{4,10}\Z")


def parse_advisories(path: str, data: bytes) -> Iterator[Advisory]:
    """The lines ``advisory, release, source, fixed version, CVEs`` under a header; the last one must end."""
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise FeedInvalid(f"{path}: {error}") from error
    if not text.endswith("\n"):
        raise FeedInvalid(f"{path}: the last line is cut off: {text[-60:]!r}")
    lines = text[:-1].split("\n")
    if lines[0] != _HEADER:
        raise FeedInvalid(f"{path}: begins with {lines[0][:80]!r}, not with the names of the columns")
    for number, line in enumerate(lines[1:], 2):
        fields = line.split("\t")
        if len(fields) != 5 or not _ADVISORY.match(fields[0]):
            raise FeedInvalid(f"{path}: line {number} is {line[:80]!r}, no advisory of five columns")
        ident, release, source, fixed, cves = fields
        aliases = tuple(cves.split())
        if not all(_CVE.match(cve) for cve in aliases) or not source or len(source) > MAX_NAME_CHARS:
            raise FeedInvalid(f"{path}: line {number} names the source {source[:60]!r} and the CVEs {cves[:60]!r}")
        if fixed == "<not-affected>":
            continue
        if fixed in _OPEN:
            fixed = ""
        elif not fixed[:1].isalnum() or len(fixed) > MAX_VERSION_CHARS:
            raise FeedInvalid(f"{path}: line {number} has the fixed version {fixed[:60]!r}")
        if release not in DEBIAN_RELEASES:
            raise FeedInvalid(f"{path}: line {number} names the release {release[:60]!r}, which is none of Debian's")
        yield Advisory(ident, (Affected(f"Debian:{DEBIAN_RELEASES[release]}", source, BY_SOURCE, "", fixed),), aliases)


class _Release(msgspec.Struct):
    status: str
    fixed_version: str | None = None
    urgency: str = ""


class _Issue(msgspec.Struct):
    releases: dict[str, _Release]
    description: str = ""


_TRACKER = msgspec.json.Decoder(dict[str, dict[str, _Issue]])


def parse_tracker(path: str, data: bytes) -> Iterator[Advisory]:
    """The tracker's JSON: source package, CVE, release. ``resolved`` in version 0: it was never affected."""
    try:
        packages = _TRACKER.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FeedInvalid(f"{path}: {error}") from error
    found: dict[str, tuple[list[Affected], Severity, str]] = {}
    for source, issues in packages.items():
        bounded(source, MAX_NAME_CHARS, f"{path}: source package")
        for ident, issue in issues.items():
            rows, severity, summary = found.get(ident) or ([], "unknown", issue.description)
            for release, state in issue.releases.items():
                # "sid" and suites of its kind are no release that an image could name.
                if release not in DEBIAN_RELEASES:
                    continue
                severity = worse(severity, from_word(state.urgency))
                row = _row(f"{path}: {ident}", source, DEBIAN_RELEASES[release], state)
                if row is not None:
                    rows.append(row)
            found[bounded(ident, MAX_IDENT_CHARS, f"{path}: CVE")] = (rows, severity, summary)
    for ident, (rows, severity, summary) in found.items():
        if rows:
            text = "".join(character for character in summary[:MAX_SUMMARY_CHARS] if character.isprintable())
            yield Advisory(ident, tuple(rows), (), text, severity)


def _row(what: str, source: str, release: str, state: _Release) -> Affected | None:
    match state.status:
        case "resolved":
            fixed = bounded(state.fixed_version, MAX_VERSION_CHARS, f"{what}: fixed version")
            return None if fixed == "0" else Affected(f"Debian:{release}", source, BY_SOURCE, "", fixed)
        case "open" | "undetermined":
            return Affected(f"Debian:{release}", source, BY_SOURCE)
        case _:
            raise FeedInvalid(f"{what}: {source} has the status {state.status[:60]!r}")
