"""Runs of decimal digits compared as numbers without making numbers of them."""

from __future__ import annotations

from typing import Any

#: Sorts as the number does: how many digits without leading zeros, then the digits.
Number = tuple[int, str]
ZERO: Number = (0, "")


def number(digits: str) -> Number:
    """*digits* (ASCII decimal digits, perhaps none) as a key that sorts as the number; none is zero."""
    digits = digits.lstrip("0")
    return (len(digits), digits)


def sign(left: Any, right: Any) -> int:
    """-1, 0 or 1 as *left* is less than, equal to or greater than *right*."""
    return int(left > right) - int(left < right)
