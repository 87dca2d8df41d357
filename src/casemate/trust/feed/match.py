"""Which advisories speak of an image's packages. Reads the feed through a connection that the caller opened."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import msgspec

from casemate.trust.feed.ecosystems import of_distribution, place_of, scheme_of
from casemate.trust.feed.model import BY_SOURCE, SEVERITIES, FeedMissing, Severity
from casemate.trust.feed.schema import KEYED_SCHEME
from casemate.trust.packages.merge import Found, ImageContents
from casemate.trust.packages.model import DISTRIBUTION_TYPES
from casemate.trust.version import dpkg
from casemate.trust.version.order import Compare, comparison

# One repair often ends a dozen advisories: a range is judged once. The index holds all of it, in this order.
_PLACE = (
    "SELECT introduced, fixed, last, group_concat(advisory) FROM affected "
    "WHERE ecosystem = ? AND by = ? AND name = ? AND fixed_key = '' GROUP BY introduced, fixed, last"
)
# Rows with a sort key are compared by the database.
_KEYED = "SELECT fixed, advisory FROM affected WHERE ecosystem = ? AND by = ? AND name = ? AND fixed_key > ?"
#: Of an advisory: id, aliases, summary, severity, score, EPSS, known to be exploited.
_Told = tuple[str, tuple[str, ...], str, Severity, int, float, bool]
_ADVISORY = "SELECT ident, aliases, summary, severity, score FROM advisory WHERE id = ?"


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One advisory that speaks of one package. *fixed*: the version that repairs it, empty while there is none.

    *score*: CVSS base score times ten, -1 unknown; *probability*: EPSS, -1 unknown; *exploited*: in the KEV catalogue.
    """

    found: Found
    ident: str
    aliases: tuple[str, ...] = ()
    severity: Severity = "unknown"
    score: int = -1
    fixed: str = ""
    summary: str = ""
    probability: float = -1.0
    exploited: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return (self.ident, *self.aliases)


class Match(msgspec.Struct, frozen=True, omit_defaults=True):
    """*uncovered*: ecosystems of the image of which no feed speaks. Where there is one, the answer is not whole."""

    findings: tuple[Finding, ...] = ()
    uncovered: tuple[str, ...] = ()


def is_affected(compare: Compare, version: str, introduced: str, fixed: str, last: str) -> bool:
    """Whether *version* lies in the range (see :class:`casemate.trust.feed.model.Affected`)."""
    if introduced and compare(version, introduced) < 0:
        return False
    if fixed:
        return compare(version, fixed) < 0
    return not last or compare(version, last) <= 0


#: (ecosystem, by which name, name, version) that :class:`Matcher` remembers at most: 200 MB.
MAX_REMEMBERED = 500_000
_Key = tuple[int, int, str, str]
_Hit = tuple[int, str]


class Matcher:
    """Matches many images with one feed: what was asked for one package is remembered for the next image.

    A feed never changes once it is open, so that nothing remembered goes stale.
    """

    def __init__(self, feed: sqlite3.Connection) -> None:
        self._feed = feed
        self._numbers: dict[str, int] = dict(feed.execute("SELECT name, id FROM ecosystem").fetchall())
        self._hits: dict[_Key, list[_Hit]] = {}
        self._advisories: dict[int, _Told] = {}
        self._scored = bool(
            feed.execute("SELECT EXISTS (SELECT 1 FROM epss) OR EXISTS (SELECT 1 FROM kev)").fetchone()[0]
        )

    def match(self, contents: ImageContents) -> Match:
        """All findings for *contents*, the worst first.

        A package whose file the distribution owns is judged by the distribution's feed alone.
        """
        distribution = of_distribution(contents.distribution)
        uncovered: dict[str, None] = {}
        findings: dict[tuple[Found, int, str], Finding] = {}
        for found in contents.packages:
            package = found.package
            if package.owned and package.type not in DISTRIBUTION_TYPES:
                continue
            ecosystem, by, name = place_of(package, distribution)
            if ecosystem is None or ecosystem not in self._numbers:
                uncovered[ecosystem or f"{package.type} of {_describe(contents)}"] = None
                continue
            version = package.advisory_version if by == BY_SOURCE else package.version
            places = [(self._numbers[ecosystem], by, name, version)]
            if package.type == "rpm":
                places.append((self._numbers[ecosystem], BY_SOURCE, package.advisory_name, version))
            for place in places:
                hits = self._hits.get(place)
                if hits is None:
                    hits = self._remember(place, ecosystem)
                for number, fixed in hits:
                    if (found, number, fixed) not in findings:
                        findings[found, number, fixed] = self._finding(found, number, fixed)
        return Match(tuple(sorted(findings.values(), key=_worst_first)), tuple(uncovered))

    def _remember(self, place: _Key, ecosystem: str) -> list[_Hit]:
        scheme = scheme_of(ecosystem)
        assert scheme is not None  # an ecosystem without an order is not imported
        compare = comparison(scheme)
        *where, version = place
        hits: list[_Hit] = []
        if scheme == KEYED_SCHEME:
            rows = self._feed.execute(_KEYED, (*where, dpkg.key(version)))
            hits += [(number, fixed) for fixed, number in rows]
        for introduced, fixed, last, advisories in self._feed.execute(_PLACE, where):
            if is_affected(compare, version, introduced, fixed, last):
                hits += [(int(number), fixed) for number in advisories.split(",")]
        if len(self._hits) >= MAX_REMEMBERED:
            self._hits.clear()
        self._hits[place] = hits
        return hits

    def _finding(self, found: Found, number: int, fixed: str) -> Finding:
        told = self._advisories.get(number)
        if told is None:
            if len(self._advisories) >= MAX_REMEMBERED:
                self._advisories.clear()
            ident, aliases, summary, severity, score = self._feed.execute(_ADVISORY, (number,)).fetchone()
            names = tuple(aliases.split())
            probability, exploited = _scores(self._feed, (ident, *names)) if self._scored else (-1.0, False)
            told = self._advisories[number] = (
                ident, names, summary, SEVERITIES[severity], score, probability, exploited,
            )  # fmt: skip
        ident, names, summary, word, score, probability, exploited = told
        return Finding(found, ident, names, word, score, fixed, summary, probability, exploited)


def match(feed: sqlite3.Connection, contents: ImageContents) -> Match:
    """All findings for *contents* (see :meth:`Matcher.match`)."""
    return Matcher(feed).match(contents)


def require_whole(result: Match) -> Match:
    """*result*, when a feed spoke of every ecosystem; raises :class:`FeedMissing` otherwise."""
    if result.uncovered:
        raise FeedMissing(f"no feed speaks of {', '.join(result.uncovered)[:300]}")
    return result


def _describe(contents: ImageContents) -> str:
    found = contents.distribution
    return f"{found.id} {found.version}" if found else "an unknown distribution"


def _scores(feed: sqlite3.Connection, names: Iterable[str]) -> tuple[float, bool]:
    probability, exploited = -1.0, False
    for name in names:
        if name.startswith("CVE-"):
            for (value,) in feed.execute("SELECT probability FROM epss WHERE cve = ?", (name,)):
                probability = max(probability, value)
            exploited = exploited or feed.execute("SELECT 1 FROM kev WHERE cve = ?", (name,)).fetchone() is not None
    return probability, exploited


def _worst_first(finding: Finding) -> tuple[object, ...]:
    return (
        not finding.exploited, -SEVERITIES.index(finding.severity), -finding.score, finding.ident,
        finding.found.package.name, finding.found.path,
    )  # fmt: skip
