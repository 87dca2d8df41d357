"""dpkg's order (deb-version(7); Debian Policy 5.6.12): epoch, upstream version, revision."""

from __future__ import annotations

import re
from functools import lru_cache

from casemate.trust.version.digits import number

_RUN = re.compile(r"([^0-9]*)([0-9]*)")
_END = "\x01"
#: Longer versions are no real ones, and must not fill the cache.
_CACHED_CHARS = 200


class _Order(dict[int, int]):
    """For str.translate: ``~`` before the end of a part, the end before letters, letters before all else."""

    def __missing__(self, point: int) -> int:
        if point == 0x7E:
            rank = 0
        elif 0x41 <= point <= 0x5A or 0x61 <= point <= 0x7A:
            rank = point + 2
        else:
            rank = min(point + 0x102, 0x10FFFF)
        self[point] = rank
        return rank


_ORDER = _Order()

Key = tuple[object, ...]


@lru_cache(maxsize=50_000)  # a match asks for the same few thousand again and again
def _key(version: str) -> Key:
    return key(version)


def key(version: str) -> Key:
    """A tuple that sorts as dpkg does. Leading and trailing blanks do not count; an epoch that is no number is part
    of the version, as nothing else could be made of it."""
    version = version.strip()
    epoch, colon, rest = version.partition(":")
    if not colon or not epoch.isascii() or not epoch.isdigit():
        epoch, rest = "", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return (number(epoch), _part(upstream), _part(revision))


def _part(text: str) -> Key:
    """Words and numbers in turn. Each word ends in a mark of its own, so that ``a~`` < ``a`` < ``ab``."""
    out: list[object] = []
    for word, digits in _RUN.findall(text):
        if word or digits:
            out.append(word.translate(_ORDER) + _END)
            out.append(number(digits))
    if not out:
        out = [_END, number("")]
    # What is not there any more counts as an empty word, which "~" still goes before.
    out.append(_END)
    return tuple(out)


def compare(left: str, right: str) -> int:
    """-1, 0 or 1."""
    if left == right:
        return 0
    a, b = (_key(left), _key(right)) if len(left) + len(right) < _CACHED_CHARS else (key(left), key(right))
    return (a > b) - (a < b)
