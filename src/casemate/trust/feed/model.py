"""The values of a feed, and its errors."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from casemate.spec.errors import CasemateError

Severity = Literal["unknown", "none", "low", "medium", "high", "critical"]
#: From the least to the worst. What nobody has judged is not harmless: policies name ``unknown`` by itself.
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

FeedKind = Literal["osv", "debian-tracker", "debian-advisories", "alpine-secdb", "csaf-vex", "epss", "kev"]
FEED_KINDS: tuple[FeedKind, ...] = get_args(FeedKind)

#: Which name of a package a row speaks of.
BY_NAME, BY_SOURCE = 0, 1

MAX_IDENT_CHARS = 128
MAX_SUMMARY_CHARS = 300
MAX_ALIASES = 512
#: The Linux kernel's worst record names 1,600 packages; a record of more is no advisory.
MAX_AFFECTED = 50_000


class FeedInvalid(CasemateError):
    code = "trust.feed_invalid"
    status = 422
    title = "A feed cannot be read"
    remedy = "Fetch the feed again, compare its digest with its maker's, and import it."


class FeedEmpty(FeedInvalid):
    code = "trust.feed_empty"
    title = "A feed holds no advisory"
    remedy = "Check that the file is the whole export and of the kind that was named."


class FeedMissing(CasemateError):
    code = "trust.feed_missing"
    status = 409
    title = "There is no feed to judge by"
    remedy = "Import one: `casemate feed import KIND FILE`; `casemate feed import --help` names the kinds."


class FeedStale(CasemateError):
    code = "trust.feed_stale"
    status = 409
    title = "A feed is older than the policy allows"
    remedy = "Import a newer export: `casemate feed import KIND FILE`, or `casemate feed update` from a mirror."


class FeedDigestMismatch(FeedInvalid):
    code = "trust.feed_digest_mismatch"
    title = "A feed is not the one that was asked for"
    remedy = "Compare the digest with its maker's, then fetch the file again."


class FeedBusy(CasemateError):
    code = "trust.feed_busy"
    status = 409
    title = "Another process imports a feed"
    remedy = "Wait until it has ended and try again."
    retryable = True


class Affected(msgspec.Struct, frozen=True, array_like=True):
    """One range of versions of one package: ``introduced <= v < fixed``, or ``v <= last`` where that is given.

    Empty *introduced*: from the first version on. Empty *fixed* and *last*: nothing repairs it yet.
    """

    ecosystem: str
    name: str
    by: int = BY_NAME
    introduced: str = ""
    fixed: str = ""
    last: str = ""


class Advisory(msgspec.Struct, frozen=True):
    """One advisory with all that it affects. *score*: the CVSS base score times ten, -1 where there is none."""

    ident: str
    affected: tuple[Affected, ...]
    aliases: tuple[str, ...] = ()
    summary: str = ""
    severity: Severity = "unknown"
    score: int = -1
    modified: str = ""
    #: Ranges that cannot hold a version, kept as "every version": too much is reported rather than too little.
    doubtful: int = 0


class Source(msgspec.Struct, frozen=True):
    """One imported feed. *date*: of its content (``YYYY-MM-DD``), by which its age is judged; *digest*: of the file."""

    name: str
    kind: FeedKind
    date: str
    digest: str
    imported: str
    rows: int
    advisories: int
    doubtful: int
    ecosystems: tuple[str, ...]


def bounded(text: object, limit: int, what: str) -> str:
    """*text* when it is a string of at most *limit* characters without control characters."""
    if not isinstance(text, str) or len(text) > limit or not text.isprintable():
        raise FeedInvalid(f"{what} is {str(text)[:60]!r}, which is no text of at most {limit} printable characters")
    return text
