"""Composer's order: PHP's ``version_compare`` (php-src ext/standard/versioning.c) without a leading ``v``.

Composer's comparator puts branches (``dev-name``) below every version.
"""

from __future__ import annotations

import re

from casemate.trust.version.digits import number, sign

_MARKS = re.compile(r"[-_+.]+")
_EDGE = re.compile(r"(?<=[0-9])(?=[^0-9.])|(?<=[^0-9.])(?=[0-9])")
#: In this order; PHP looks at the beginning of a word only.
_FORMS = (
    ("dev", 0), ("alpha", 1), ("a", 1), ("beta", 2), ("b", 2), ("RC", 3), ("rc", 3), ("#", 4), ("pl", 5), ("p", 5),
)  # fmt: skip
_UNKNOWN = -1
_A_NUMBER = 4


def parts(version: str) -> list[str]:
    """The canonical parts: marks become one dot, and a dot comes between digits and anything else."""
    if version[:1] in ("v", "V"):
        version = version[1:]
    return [part for part in _EDGE.sub(".", _MARKS.sub(".", version)).split(".") if part]


def compare(left: str, right: str) -> int:
    """-1, 0 or 1."""
    a, b = parts(left), parts(right)
    for one, other in zip(a, b, strict=False):
        one_is_number, other_is_number = _is_number(one), _is_number(other)
        if one_is_number and other_is_number:
            result = sign(number(one), number(other))
        else:
            result = sign(_form(one), _form(other))
        if result:
            return result
    if len(a) == len(b):
        return 0
    longer, more = (a, 1) if len(a) > len(b) else (b, -1)
    for part in longer[min(len(a), len(b)) :]:
        if _is_number(part):
            return more
        if result := sign(_form(part), _A_NUMBER):
            return result * more
    return 0


def _is_number(part: str) -> bool:
    return "0" <= part[0] <= "9"


def _form(part: str) -> int:
    if _is_number(part):
        return _A_NUMBER
    return next((rank for word, rank in _FORMS if part.startswith(word)), _UNKNOWN)
