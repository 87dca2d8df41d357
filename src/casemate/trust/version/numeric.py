"""Orders that know numbers only: R's ``package_version`` (CRAN) and Haskell's ``Data.Version`` (Hackage)."""

from __future__ import annotations

import re

from casemate.trust.version.digits import Number, number

_SEPARATOR = re.compile(r"[.-]")


def key(version: str) -> tuple[Number | tuple[int, str], ...]:
    """The numbers between dots and hyphens; with equal beginnings the longer one is newer.

    What is no number sorts above every number, by its text: such a version has no place in these orders.
    """
    parts = _SEPARATOR.split(version)
    return tuple(number(part) if part.isascii() and part.isdigit() else (1 << 62, part) for part in parts)


def compare(left: str, right: str) -> int:
    """-1, 0 or 1."""
    a, b = key(left), key(right)
    return (a > b) - (a < b)
