"""rpm's order: ``rpmvercmp`` (rpm lib/rpmvercmp.c, 4.15 and later with ``^``) over epoch, version and release."""

from __future__ import annotations

import re

from casemate.trust.version.digits import number, sign

# What is neither ASCII letter, digit, "~" nor "^" only separates.
_TOKEN = re.compile(r"~|\^|[0-9]+|[a-zA-Z]+")


def compare(left: str, right: str) -> int:
    """-1, 0 or 1 for ``[epoch:]version[-release]``; no epoch is epoch 0.

    A version without a release is older than the same one with any (as the ecosystem's records are compared).
    """
    left_epoch, left_version, left_release = split(left)
    right_epoch, right_version, right_release = split(right)
    result = part(left_epoch, right_epoch) or part(left_version, right_version)
    if result:
        return result
    if left_release is None or right_release is None:
        return (left_release is not None) - (right_release is not None)
    return part(left_release, right_release)


def split(version: str) -> tuple[str, str, str | None]:
    """Epoch ("0" when there is none), version, release (None when there is none)."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    name, dash, release = rest.partition("-")
    return epoch or "0", name, release if dash else None


def part(left: str, right: str) -> int:
    """``rpmvercmp`` of two versions or two releases."""
    if left == right:
        return 0
    a = _TOKEN.findall(left)
    b = _TOKEN.findall(right)
    for one, other in zip(a, b, strict=False):
        if one == other:
            continue
        if one == "~" or other == "~":
            return -1 if one == "~" else 1
        if one == "^" or other == "^":
            # A caret is newer than the end (below), and older than anything that goes on.
            return -1 if one == "^" else 1
        if one[0] <= "9" and other[0] <= "9":
            if result := sign(number(one), number(other)):
                return result
        elif one[0] <= "9" or other[0] <= "9":
            return 1 if one[0] <= "9" else -1  # a number is newer than letters
        else:
            return sign(one, other)
    if len(a) == len(b):
        return 0
    longer, more = (a, 1) if len(a) > len(b) else (b, -1)
    return -more if longer[min(len(a), len(b))] == "~" else more
