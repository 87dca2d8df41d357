"""Findings that somebody has judged: each with a reason, an owner and an end. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date

import msgspec

from casemate.spec.errors import CasemateError
from casemate.trust.feed.fresh import as_date
from casemate.trust.feed.match import Finding

#: An exception for longer is a policy, and belongs there.
MAX_DAYS = 366


class IgnoreInvalid(CasemateError):
    code = "trust.ignore_invalid"
    status = 422
    title = "An ignored finding is not fully described"
    remedy = "Give the advisory, a reason, an owner and an end at most a year away (YYYY-MM-DD)."


class Ignore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*ident*: the advisory's id or an alias; *package*: only there (empty: wherever it is found)."""

    ident: str
    reason: str
    owner: str
    until: str
    package: str = ""


class Ignored(msgspec.Struct, frozen=True):
    finding: Finding
    by: Ignore


class Judged(msgspec.Struct, frozen=True):
    """What is left, what was ignored, and warnings about ignores that have ended or that match nothing."""

    findings: tuple[Finding, ...]
    ignored: tuple[Ignored, ...] = ()
    warnings: tuple[str, ...] = ()


def check_ignore(ignore: Ignore, today: date) -> Ignore:
    """*ignore*, when it is fully described and its end is not too far away; for those who write one."""
    if not ignore.ident or not ignore.reason.strip() or not ignore.owner.strip():
        raise IgnoreInvalid(f"the ignore of {ignore.ident[:60]!r} lacks a reason or an owner")
    if (as_date(ignore.until, f"the ignore of {ignore.ident}") - today).days > MAX_DAYS:
        raise IgnoreInvalid(
            f"the ignore of {ignore.ident[:60]!r} ends on {ignore.until}, more than {MAX_DAYS} days away"
        )
    return ignore


def judge(findings: Sequence[Finding], ignores: Iterable[Ignore], today: date) -> Judged:
    """*findings* less those that an ignore in force covers. An ignore that has ended covers nothing."""
    in_force: list[Ignore] = []
    warnings: list[str] = []
    for ignore in ignores:
        if as_date(ignore.until, f"the ignore of {ignore.ident}") < today:
            warnings.append(f"the ignore of {ignore.ident} ended on {ignore.until} ({ignore.owner}): {ignore.reason}")
        else:
            in_force.append(ignore)
    used: set[Ignore] = set()
    left: list[Finding] = []
    ignored: list[Ignored] = []
    for finding in findings:
        cover = next((ignore for ignore in in_force if _covers(ignore, finding)), None)
        if cover is None:
            left.append(finding)
        else:
            used.add(cover)
            ignored.append(Ignored(finding, cover))
    warnings += [
        f"the ignore of {row.ident} ({row.owner}) matches nothing any more" for row in in_force if row not in used
    ]
    return Judged(tuple(left), tuple(ignored), tuple(warnings))


def _covers(ignore: Ignore, finding: Finding) -> bool:
    package = finding.found.package
    return ignore.ident in finding.names and ignore.package in ("", package.name, package.source or package.name)
