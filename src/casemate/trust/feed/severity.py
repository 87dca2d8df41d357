"""Severity from CVSS vectors (2.0, 3.0, 3.1, 4.0) and from the words that feeds use.

The ``cvss`` package computes the scores; it is loaded when the first vector is met.
"""

from __future__ import annotations

from functools import lru_cache

from casemate.spec.errors import HostLacks
from casemate.trust.feed.model import SEVERITIES, FeedInvalid, Severity

_WORDS: dict[str, Severity] = {
    "none": "none", "unimportant": "none", "low": "low", "minor": "low", "negligible": "low", "medium": "medium",
    "moderate": "medium", "high": "high", "important": "high", "critical": "critical",
}  # fmt: skip
#: The longest CVSS 4.0 vector with every optional metric has 221 characters.
_MAX_VECTOR_CHARS = 400


def from_word(word: str) -> Severity:
    """What a feed's own word means here; ``unknown`` for one that is not known."""
    return _WORDS.get(word.lower().strip("*"), "unknown")


def from_score(score: int) -> Severity:
    """The word for a base score times ten (CVSS 3.1 section 5, 4.0 section 6); -1 is unknown."""
    if score < 0:
        return "unknown"
    for word, least in (("critical", 90), ("high", 70), ("medium", 40), ("low", 1)):
        if score >= least:
            return from_word(word)
    return "none"


def worse(one: Severity, other: Severity) -> Severity:
    """The worse of two."""
    return one if SEVERITIES.index(one) >= SEVERITIES.index(other) else other


@lru_cache(maxsize=10_000)
def base_score(vector: str) -> int:
    """The base score times ten of *vector*; raises :class:`FeedInvalid` when it is none.

    Raises :class:`HostLacks` where the package ``cvss`` is not installed.
    """
    try:
        import cvss  # type: ignore[import-untyped]  # noqa: PLC0415 - only the import of a feed needs it
    except ImportError as error:
        raise HostLacks("the Python package cvss is not installed", remedy="pip install 'cvss>=3.4'") from error
    if len(vector) > _MAX_VECTOR_CHARS:
        raise FeedInvalid(f"a CVSS vector of {len(vector)} characters")
    try:
        if vector.startswith("CVSS:4"):
            score = cvss.CVSS4(vector).base_score
        else:
            score = (cvss.CVSS3 if vector.startswith("CVSS:3") else cvss.CVSS2)(vector).base_score
        if score is None:
            raise FeedInvalid(f"{vector[:100]!r} gives no base score")
        return round(float(score) * 10)
    except (cvss.CVSSError, ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise FeedInvalid(f"{vector[:100]!r} is no CVSS vector: {error}") from error
