"""dpkg's order (deb-version(7); Debian Policy 5.6.12): epoch, upstream version, revision.

A version has a key, a text that sorts by code points (and as UTF-8 by bytes) as dpkg sorts the version: feeds keep it,
so that a database can compare. In it a word ends in a mark, which sorts after ``~`` and before letters, and these
before all else; a number is led by its length.
"""

from __future__ import annotations

import re
from functools import lru_cache

_RUNS = re.compile(r"([0-9]+)")
_TILDE, _END, _OTHER = "\x01", "\x02", "\x7f"
#: Longer versions are no real ones, and must not fill the cache.
_CACHED_CHARS = 100


class _Order(dict[int, str | int]):
    """For str.translate."""

    def __missing__(self, point: int) -> str | int:
        if 0x41 <= point <= 0x5A or 0x61 <= point <= 0x7A:
            return point
        return _OTHER + chr(point)


_ORDER = _Order({0x7E: _TILDE})


@lru_cache(maxsize=10_000)
def _word(text: str) -> str:
    """Words are few: ``.``, ``+deb``, ``u``, ``~rc``."""
    return text.translate(_ORDER) + _END


def key(version: str) -> str:
    """The key. Leading and trailing blanks do not count; an epoch that is no number is part of the version, as nothing
    else could be made of it."""
    version = version.strip()
    epoch, colon, rest = version.partition(":")
    if not colon or not epoch.isascii() or not epoch.isdigit():
        epoch, rest = "", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return _number(epoch) + _part(upstream) + _part(revision)


def _number(digits: str) -> str:
    digits = digits.lstrip("0")
    if not digits:
        return "0"
    length = str(len(digits))
    return f"{len(length)}{length}{digits}"


def _part(text: str) -> str:
    """Words and numbers in turn, each word with a number after it; what is not there any more is an empty word."""
    runs = _RUNS.split(text)
    if not runs[-1] and len(runs) > 1:
        runs.pop()
    if len(runs) % 2:
        runs.append("")
    out = []
    for place in range(0, len(runs), 2):
        word = runs[place]
        out.append(_word(word) if len(word) < _CACHED_CHARS else word.translate(_ORDER) + _END)
        out.append(_number(runs[place + 1]))
    out.append(_END)
    return "".join(out)


def compare(left: str, right: str) -> int:
    """-1, 0 or 1."""
    if left == right:
        return 0
    a, b = key(left), key(right)
    return (a > b) - (a < b)
