"""Semantic Versioning 2.0.0 section 11, as npm, Go, Cargo and Hex use it; and Pub's variant, where the build counts."""

from __future__ import annotations

import re

from casemate.trust.version.digits import ZERO, number

_CORE = re.compile(r"[vV]?([0-9]*)(?:\.([0-9]*))?(?:\.([0-9]*))?", re.ASCII)

Key = tuple[object, ...]
#: After every identifier: a version without a pre-release is newer than all that have one.
_RELEASED: Key = ((2,),)


def key(version: str) -> Key:
    """A tuple that sorts as SemVer does. A leading ``v`` is passed over, missing numbers are 0; what follows the third
    number other than a pre-release is build information, which does not count."""
    return _split(version)[0]


def pub_key(version: str) -> Key:
    """As :func:`key`, and then the build, by the same rules as a pre-release; no build before any."""
    core, build = _split(version)
    return (core, (0,) if build is None else (1, _identifiers(build)))


def _split(version: str) -> tuple[Key, str | None]:
    found = _CORE.match(version)
    assert found is not None  # every group may be empty
    rest = version[found.end() :]
    pre, plus, build = rest.partition("+")
    released = _identifiers(pre[1:]) if pre.startswith("-") and len(pre) > 1 else _RELEASED
    core = tuple(number(group or "") for group in found.groups())
    return (*core, released), build if plus else None


def _identifiers(text: str) -> Key:
    """Numeric identifiers by number and below the others, which go by ASCII; more of them are newer."""
    return tuple((0, number(part)) if part.isascii() and part.isdigit() else (1, part) for part in text.split("."))


def nuget_key(version: str) -> Key:
    """NuGet (documentation, "Package versioning"): up to four numbers, pre-release without regard to case."""
    rest = version.partition("+")[0]
    core, dash, pre = rest.partition("-")
    numbers = [number(part) for part in core.split(".")]
    numbers += [ZERO] * (4 - len(numbers))
    return (tuple(numbers), _identifiers(pre.lower()) if dash else _RELEASED)


def compare(left: str, right: str) -> int:
    """-1, 0 or 1."""
    return _compare(key(left), key(right))


def pub_compare(left: str, right: str) -> int:
    """-1, 0 or 1 by Pub's rules."""
    return _compare(pub_key(left), pub_key(right))


def nuget_compare(left: str, right: str) -> int:
    """-1, 0 or 1 by NuGet's rules."""
    return _compare(nuget_key(left), nuget_key(right))


def _compare(a: Key, b: Key) -> int:
    return (a > b) - (a < b)
