"""Which order an ecosystem has, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, get_args

from casemate.trust.version import apk, composer, dpkg, maven, numeric, pep440, rpm, rubygems, semver

Scheme = Literal[
    "dpkg", "apk", "rpm", "pep440", "semver", "maven", "rubygems", "composer", "nuget", "pub", "cran", "hackage"
]  # fmt: skip
Compare = Callable[[str, str], int]

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

_COMPARE: Mapping[Scheme, Compare] = MappingProxyType(
    {
        "dpkg": dpkg.compare,
        "apk": apk.compare,
        "rpm": rpm.compare,
        "pep440": pep440.compare,
        "semver": semver.compare,
        "maven": maven.compare,
        "rubygems": rubygems.compare,
        "composer": composer.compare,
        "nuget": semver.nuget_compare,
        "pub": semver.pub_compare,
        "cran": numeric.compare,
        "hackage": numeric.compare,
    }
)


def comparison(scheme: Scheme) -> Compare:
    """The function that compares two versions of *scheme*: -1, 0 or 1; it takes any text and raises nothing."""
    return _COMPARE[scheme]


def compare(scheme: Scheme, left: str, right: str) -> int:
    """-1, 0 or 1 as *left* is older than, the same as, or newer than *right*."""
    return _COMPARE[scheme](left, right)
