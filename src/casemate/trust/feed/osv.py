"""OSV records (OSV schema 1.7): one JSON object for each advisory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cmp_to_key, partial
from typing import Any

import msgspec

from casemate.trust.feed.ecosystems import is_by_source, name_in_feed, normal, scheme_of
from casemate.trust.feed.model import (
    BY_NAME,
    BY_SOURCE,
    MAX_AFFECTED,
    MAX_ALIASES,
    MAX_IDENT_CHARS,
    MAX_SUMMARY_CHARS,
    Advisory,
    Affected,
    FeedInvalid,
    Severity,
    bounded,
)
from casemate.trust.feed.severity import base_score, from_score, from_word, worse
from casemate.trust.packages.model import MAX_NAME_CHARS, MAX_VERSION_CHARS
from casemate.trust.version.order import Compare, comparison


class _Package(msgspec.Struct):
    ecosystem: str = ""
    name: str = ""


class _Event(msgspec.Struct):
    introduced: str | None = None
    fixed: str | None = None
    last_affected: str | None = None
    limit: str | None = None


class _Range(msgspec.Struct):
    type: str
    events: list[_Event] = []


class _Severity(msgspec.Struct):
    type: str
    score: str


class _Affected(msgspec.Struct):
    package: _Package | None = None
    ranges: list[_Range] = []
    versions: list[str] | None = None
    severity: list[_Severity] | None = None
    ecosystem_specific: dict[str, Any] | None = None


class _Record(msgspec.Struct):
    id: str
    modified: str = ""
    withdrawn: str | None = None
    aliases: list[str] | None = None
    related: list[str] | None = None
    upstream: list[str] | None = None
    summary: str = ""
    severity: list[_Severity] | None = None
    affected: list[_Affected] | None = None
    database_specific: dict[str, Any] | None = None


_DECODER = msgspec.json.Decoder(_Record)
#: In an order where a later event of the same version closes what an earlier one opened.
_KINDS = ("introduced", "last_affected", "fixed")
_MAX_EVENTS = 10_000


def parse(path: str, data: bytes) -> Advisory | None:
    """The advisory in *data*; None when it is withdrawn or speaks of no package that can be matched.

    Raises :class:`FeedInvalid` for what is no OSV record.
    """
    try:
        record = _DECODER.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FeedInvalid(f"{path}: {error}") from error
    if record.withdrawn:
        return None
    ident = bounded(record.id, MAX_IDENT_CHARS, f"{path}: id")
    rows: list[Affected] = []
    doubtful = 0
    severity, score = _severity(record)
    for affected in record.affected or ():
        if affected.package is None:
            continue
        doubtful += _rows(ident, affected, rows)
        if len(rows) > MAX_AFFECTED:
            raise FeedInvalid(f"{ident}: affects more than {MAX_AFFECTED} ranges")
        severity = worse(severity, _specific(affected.ecosystem_specific))
    if not rows:
        return None
    aliases = dict.fromkeys((*(record.aliases or ()), *(record.upstream or ()), *(record.related or ())))
    if len(aliases) > MAX_ALIASES:
        raise FeedInvalid(f"{ident}: has {len(aliases)} aliases; {MAX_ALIASES} are allowed")
    return Advisory(
        ident,
        tuple(rows),
        tuple(bounded(alias, MAX_IDENT_CHARS, f"{ident}: alias") for alias in aliases if alias != ident),
        "".join(character for character in record.summary[:MAX_SUMMARY_CHARS] if character.isprintable()),
        severity,
        score,
        record.modified[:10],
        doubtful,
    )


def _severity(record: _Record) -> tuple[Severity, int]:
    score = -1
    vectors = list(record.severity or ())
    for affected in record.affected or ():
        vectors += affected.severity or ()
    word: Severity = "unknown"
    for row in vectors:
        if row.type.startswith("CVSS_"):
            score = max(score, base_score(row.score))
        else:
            word = worse(word, from_word(row.score))
    word = worse(word, _specific(record.database_specific))
    if score < 0 and word == "unknown":
        # AlmaLinux and Rocky put Red Hat's word before the summary: "Important: kernel security update".
        word = from_word(record.summary.partition(":")[0])
    return (worse(from_score(score), word) if score < 0 else from_score(score)), score


def _specific(values: dict[str, Any] | None) -> Severity:
    word = (values or {}).get("severity") or (values or {}).get("urgency")
    return from_word(word) if isinstance(word, str) else "unknown"


def _rows(ident: str, affected: _Affected, rows: list[Affected]) -> int:
    """Add the ranges of one package to *rows*; how many of them are doubtful."""
    assert affected.package is not None
    ecosystem = normal(bounded(affected.package.ecosystem, MAX_NAME_CHARS, f"{ident}: ecosystem"))
    scheme = scheme_of(ecosystem)
    if scheme is None:
        return 0
    name = name_in_feed(ecosystem, bounded(affected.package.name, MAX_NAME_CHARS, f"{ident}: package"))
    by = BY_SOURCE if is_by_source(ecosystem) else BY_NAME
    compare = comparison(scheme)
    doubtful = 0
    usable = False
    for span in affected.ranges:
        if span.type not in ("ECOSYSTEM", "SEMVER"):
            continue  # commits say nothing of packages
        usable = True
        doubtful += _intervals(ident, span, Affected(ecosystem, name, by), compare, rows)
    if not usable:
        for version in affected.versions or ():
            bounded(version, MAX_VERSION_CHARS, f"{ident}: version")
            rows.append(Affected(ecosystem, name, by, version, "", version))
    return doubtful


def _intervals(ident: str, span: _Range, base: Affected, compare: Compare, rows: list[Affected]) -> int:
    """OSV schema, "Evaluation": the events in the order of their versions open and close intervals."""
    events = [_event(ident, event) for event in span.events]
    if not events or len(events) > _MAX_EVENTS:
        raise FeedInvalid(f"{ident}: a range of {base.name!r} has {len(events)} events")
    if not any(kind == "introduced" for kind, _ in events):
        raise FeedInvalid(f"{ident}: a range of {base.name!r} never begins")
    if len(events) == 2 and events[0][0] == "introduced" and events[0][1] in ("0", ""):
        ordered = events  # by far the most
    else:
        by_version: Callable[[tuple[str, str], tuple[str, str]], int] = partial(_before, compare=compare)
        ordered = sorted(events, key=cmp_to_key(by_version))
    doubtful = 0
    if ordered[0][0] != "introduced":
        # Closed before it was opened: no version can be in it, so nobody knows what was meant.
        rows.append(Affected(base.ecosystem, base.name, base.by))
        return 1
    start: str | None = None
    for kind, version in ordered:
        if kind == "introduced":
            start = version if start is None else start
        elif start is not None:
            begin = "" if start == "0" else start
            if kind == "fixed":
                if version != start:
                    rows.append(Affected(base.ecosystem, base.name, base.by, begin, version))
            else:
                rows.append(Affected(base.ecosystem, base.name, base.by, begin, "", version))
            start = None
    if start is not None:
        rows.append(Affected(base.ecosystem, base.name, base.by, "" if start == "0" else start))
    return doubtful


def _event(ident: str, event: _Event) -> tuple[str, str]:
    for kind, value in (
        ("introduced", event.introduced),
        ("fixed", event.fixed),
        ("last_affected", event.last_affected),
    ):
        if value is not None:
            return kind, bounded(value, MAX_VERSION_CHARS, f"{ident}: version")
    if event.limit is not None:
        return "fixed", bounded(event.limit, MAX_VERSION_CHARS, f"{ident}: version")
    raise FeedInvalid(f"{ident}: an event that is none of introduced, fixed, last_affected, limit")


def _before(one: tuple[str, str], other: tuple[str, str], compare: Compare) -> int:
    if one[1] == other[1]:
        return _KINDS.index(one[0]) - _KINDS.index(other[0])
    if "0" in (one[1], other[1]):
        return -1 if one[1] == "0" else 1
    return compare(one[1], other[1]) or _KINDS.index(one[0]) - _KINDS.index(other[0])
