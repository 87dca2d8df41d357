"""RubyGems' order (Gem::Version): numbers and words in turn; a word makes a pre-release."""

from __future__ import annotations

import re

from casemate.trust.version.digits import ZERO, Number, number, sign

_SEGMENT = re.compile(r"[0-9]+|[a-z]+", re.IGNORECASE | re.ASCII)

Segment = Number | str


def segments(version: str) -> list[Segment]:
    """The canonical segments: no zeros at the end of the numbers, nor at the end of what follows the first word."""
    raw = _SEGMENT.findall(version.strip().replace("-", ".pre."))
    found: list[Segment] = [number(part) if part[0] <= "9" else part for part in raw]
    first_word = next((place for place, part in enumerate(found) if isinstance(part, str)), len(found))
    return _without_zeros(found[:first_word]) + _without_zeros(found[first_word:])


def _without_zeros(found: list[Segment]) -> list[Segment]:
    while found and found[-1] == ZERO:
        found.pop()
    return found


def compare(left: str, right: str) -> int:
    """-1, 0 or 1."""
    a, b = segments(left), segments(right)
    for one, other in zip(a, b, strict=False):
        if one == other:
            continue
        if isinstance(one, str) != isinstance(other, str):
            return -1 if isinstance(one, str) else 1
        return sign(one, other)
    longer, more = (a, 1) if len(a) > len(b) else (b, -1)
    for part in longer[min(len(a), len(b)) :]:
        if part != ZERO:
            return -more if isinstance(part, str) else more
    return 0
