"""apk's order (apk-tools 3, doc/apk-package.5 and src/version.c).

``number{.number}{letter}{_suffix{number}}{~hash}{-r#}``. Versions outside that form have no defined place; they are
put where apk's token by token comparison puts them.
"""

from __future__ import annotations

import re

from casemate.trust.version.digits import number, sign

_NUMBERS = re.compile(r"[0-9.a-z]*")
_TOKEN = re.compile(r"\.?([0-9]+)|\.|([a-z])")
_SUFFIX = re.compile(r"_(alpha|beta|pre|rc|cvs|svn|git|hg|p)([0-9]*)")
_HASH = re.compile(r"~([0-9a-f]+)")
_BUILD = re.compile(r"-r([0-9]*)")
_NOTHING, _LETTER, _DIGITS = range(3)
_RANK = {"alpha": -4, "beta": -3, "pre": -2, "rc": -1, "cvs": 0, "svn": 1, "git": 2, "hg": 3, "p": 4}


class _Version:
    """The parts, in the order in which they count. *rest*: what follows that is not understood."""

    __slots__ = ("build", "hash", "numbers", "rest", "suffixes")

    def __init__(self, text: str) -> None:
        found = _NUMBERS.match(text)
        assert found is not None  # it may be empty
        position = found.end()
        self.numbers: list[str] = [digits or letter for digits, letter in _TOKEN.findall(found[0])]
        if text[:1] == ".":
            self.numbers.insert(0, "")
        self.suffixes: list[tuple[int, str]] = []
        while found := _SUFFIX.match(text, position):
            self.suffixes.append((_RANK[found[1]], found[2]))
            position = found.end()
        self.hash = ""
        if found := _HASH.match(text, position):
            self.hash = found[1]
            position = found.end()
        self.build: str | None = None
        if found := _BUILD.match(text, position):
            self.build = found[1]
            position = found.end()
        self.rest = text[position:]


def compare(left: str, right: str) -> int:
    """-1, 0 or 1."""
    a, b = _Version(left), _Version(right)
    return (
        _numbers(a.numbers, b.numbers)
        or _suffixes(a.suffixes, b.suffixes)
        or sign(a.hash, b.hash)
        or sign(number(a.build or ""), number(b.build or ""))
        or sign(not a.rest, not b.rest)
        or (0 if a.rest else sign(a.build is not None, b.build is not None))
    )


def _numbers(left: list[str], right: list[str]) -> int:
    """Numbers and letters in turn; nothing (between two dots) before a letter, a letter before a number."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one == other:
            continue
        one_kind, other_kind = _kind(one), _kind(other)
        if one_kind != other_kind:
            return sign(one_kind, other_kind)
        # From the second on, a leading zero makes it a decimal fraction, as Gentoo's specification has it.
        if one_kind == _LETTER or (place and (one[0] == "0" or other[0] == "0")):
            return sign(one, other)
        if result := sign(number(one), number(other)):
            return result
    return sign(len(left), len(right))


def _kind(part: str) -> int:
    if not part:
        return _NOTHING
    return _LETTER if part >= "a" else _DIGITS


def _suffixes(left: list[tuple[int, str]], right: list[tuple[int, str]]) -> int:
    for (one, one_digits), (other, other_digits) in zip(left, right, strict=False):
        if result := sign(one, other) or sign(number(one_digits), number(other_digits)):
            return result
    if len(left) == len(right):
        return 0
    longer, more = (left, 1) if len(left) > len(right) else (right, -1)
    return more if longer[min(len(left), len(right))][0] >= 0 else -more
