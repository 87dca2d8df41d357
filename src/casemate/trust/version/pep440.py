"""Python's order (PEP 440; the version specifiers specification), with the older free form below all of it."""

from __future__ import annotations

import re

from casemate.trust.version.digits import ZERO, Number, number

_FORM = re.compile(
    r"""\s*v?(?:(?P<epoch>[0-9]+)!)?(?P<release>[0-9]+(?:\.[0-9]+)*)
    (?P<pre>[-_.]?(?P<pre_word>alpha|beta|preview|pre|a|b|c|rc)[-_.]?(?P<pre_number>[0-9]+)?)?
    (?P<post>-(?P<post_implicit>[0-9]+)|[-_.]?(?:post|rev|r)[-_.]?(?P<post_number>[0-9]+)?)?
    (?P<dev>[-_.]?dev[-_.]?(?P<dev_number>[0-9]+)?)?
    (?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?\s*\Z""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_PRE = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2}
_BEFORE, _AFTER = -1, 3
_LOCAL_SEPARATOR = re.compile(r"[-_.]")

Key = tuple[object, ...]


def key(version: str) -> Key:
    """A tuple that sorts as PEP 440 does."""
    found = _FORM.match(version)
    return _legacy(version) if found is None else _modern(found)


def _modern(found: re.Match[str]) -> Key:
    release = [number(part) for part in found["release"].split(".")]
    while release and release[-1] == ZERO:
        release.pop()
    pre: tuple[int, Number]
    if found["pre"] is not None:
        pre = (_PRE[found["pre_word"].lower()], number(found["pre_number"] or ""))
    else:
        # 1.0.dev1 comes before 1.0a1; otherwise what has no pre-release comes after all that have.
        pre = (_BEFORE if found["post"] is None and found["dev"] is not None else _AFTER, ZERO)
    post = (-1, "") if found["post"] is None else number(found["post_implicit"] or found["post_number"] or "")
    dev = (1, ZERO) if found["dev"] is None else (0, number(found["dev_number"] or ""))
    local: tuple[tuple[int, object], ...] = ()
    if found["local"] is not None:
        parts = _LOCAL_SEPARATOR.split(found["local"].lower())
        local = tuple((1, number(part)) if part.isdigit() else (0, part) for part in parts)
    return (0, number(found["epoch"] or ""), tuple(release), pre, post, dev, local)


_LEGACY_PART = re.compile(r"([0-9]+|[a-z]+|\.|-)")
_LEGACY_WORDS = {"pre": "c", "preview": "c", "-": "final-", "rc": "c", "dev": "@"}


def _legacy(version: str) -> Key:
    """What setuptools made of anything at all, before PEP 440; sorts below every version of PEP 440."""
    parts: list[str] = []
    for raw in _LEGACY_PART.split(version.lower()):
        part = _LEGACY_WORDS.get(raw, raw)
        if not part or part == ".":
            continue
        if part[0].isdigit() and part[0].isascii():
            parts.append(part.zfill(8))
        else:
            _legacy_word(parts, "*" + part)
    _legacy_word(parts, "*final")
    return (-1, tuple(parts))


def _legacy_word(parts: list[str], word: str) -> None:
    if word < "*final":
        while parts and parts[-1] == "*final-":
            parts.pop()
    while parts and parts[-1] == "00000000":
        parts.pop()
    parts.append(word)


def compare(left: str, right: str) -> int:
    """-1, 0 or 1."""
    a, b = key(left), key(right)
    return (a > b) - (a < b)
