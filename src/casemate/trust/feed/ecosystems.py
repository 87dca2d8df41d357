"""Names of ecosystems as OSV has them, how each orders its versions, and which one a package of an image is in."""

from __future__ import annotations

from types import MappingProxyType

from casemate.trust.feed.model import BY_NAME, BY_SOURCE, FeedKind
from casemate.trust.packages.distribution import release_of
from casemate.trust.packages.model import DISTRIBUTION_TYPES, Distribution, Package, PackageType
from casemate.trust.version.order import Scheme

#: By the part before the first colon.
_SCHEMES: MappingProxyType[str, Scheme] = MappingProxyType({
    "Debian": "dpkg", "Ubuntu": "dpkg", "Alpine": "apk", "Wolfi": "apk", "Chainguard": "apk", "MinimOS": "apk",
    "AlmaLinux": "rpm", "Rocky Linux": "rpm", "Red Hat": "rpm", "openSUSE": "rpm", "SUSE": "rpm",
    "Amazon Linux": "rpm",
    "Mageia": "rpm", "Azure Linux": "rpm", "openEuler": "rpm", "PyPI": "pep440", "npm": "semver", "Go": "semver",
    "crates.io": "semver", "Hex": "semver", "SwiftURL": "semver", "GitHub Actions": "semver", "Maven": "maven",
    "RubyGems": "rubygems", "Packagist": "composer", "NuGet": "nuget", "Pub": "pub", "CRAN": "cran",
    "Hackage": "hackage",
})  # fmt: skip
_LANGUAGES: MappingProxyType[PackageType, str] = MappingProxyType({
    "pypi": "PyPI", "npm": "npm", "golang": "Go", "cargo": "crates.io", "maven": "Maven", "gem": "RubyGems",
    "composer": "Packagist",
})  # fmt: skip
_DISTRIBUTIONS = MappingProxyType({
    "debian": "Debian:{0}", "ubuntu": "Ubuntu:{0}", "alpine": "Alpine:v{0}",
    "wolfi": "Wolfi", "chainguard": "Chainguard",
    "almalinux": "AlmaLinux:{0}", "rocky": "Rocky Linux:{0}", "rhel": "Red Hat:{0}", "centos": "Red Hat:{0}",
    "opensuse-leap": "openSUSE:Leap {0}", "amzn": "Amazon Linux:{0}",
})  # fmt: skip
#: Debian's releases by the names that its tracker uses.
DEBIAN_RELEASES = MappingProxyType({
    "woody": "3.0", "sarge": "3.1", "etch": "4", "lenny": "5", "squeeze": "6", "wheezy": "7", "jessie": "8",
    "stretch": "9",
    "buster": "10", "bullseye": "11", "bookworm": "12", "trixie": "13", "forky": "14", "duke": "15",
})  # fmt: skip
#: What a distribution says of itself goes before what others gather.
_KINDS: MappingProxyType[str, FeedKind] = MappingProxyType({
    "Debian": "debian-tracker", "Alpine": "alpine-secdb", "Wolfi": "alpine-secdb", "Chainguard": "alpine-secdb",
    "Red Hat": "csaf-vex",
})  # fmt: skip


def scheme_of(ecosystem: str) -> Scheme | None:
    """How *ecosystem* orders versions, or None when that is not known."""
    return _SCHEMES.get(ecosystem.partition(":")[0])


def normal(ecosystem: str) -> str:
    """One name for what feeds name in several ways (support levels, repositories of one release)."""
    family, _, rest = ecosystem.partition(":")
    if family == "Ubuntu":
        return f"Ubuntu:{rest.removesuffix(':LTS')}"
    if family == "Red Hat":
        parts = rest.split(":")
        if parts[0] == "enterprise_linux" and len(parts) > 1:
            return f"Red Hat:{parts[1].partition('.')[0]}"
    return ecosystem


def of_distribution(distribution: Distribution | None) -> str | None:
    """The ecosystem of the distribution's own packages; None when no feed that is known speaks of it."""
    if distribution is None or distribution.id not in _DISTRIBUTIONS:
        return None
    release = release_of(distribution)
    return (
        _DISTRIBUTIONS[distribution.id].format(release)
        if release or distribution.id in ("wolfi", "chainguard")
        else None
    )


#: Kinds whose content does not say of which day it is.
UNDATED: tuple[FeedKind, ...] = ("debian-tracker", "debian-advisories", "alpine-secdb", "epss")


def kind_for(ecosystem: str) -> FeedKind:
    """The kind of feed that its own maker publishes for *ecosystem*; OSV exports where there is none."""
    return _KINDS.get(ecosystem.partition(":")[0], "osv")


def import_command(ecosystem: str) -> str:
    """What to type to have *ecosystem* judged."""
    kind = kind_for(ecosystem)
    return f"`casemate feed import {kind} FILE{' --date YYYY-MM-DD' if kind in UNDATED else ''}`"


def place_of(package: Package, distribution: str | None) -> tuple[str | None, int, str]:
    """(ecosystem, by which name, the name) under which *package* is looked up."""
    if package.type not in DISTRIBUTION_TYPES:
        return _LANGUAGES[package.type], BY_NAME, package.name
    if package.type == "rpm":
        return distribution, BY_NAME, package.name
    return distribution, BY_SOURCE, package.advisory_name


def name_in_feed(ecosystem: str, name: str) -> str:
    """The name as our package lists have it."""
    if ecosystem == "PyPI":
        return "-".join(part for part in name.lower().replace("_", "-").replace(".", "-").split("-") if part)
    return name.lower() if ecosystem == "Packagist" else name


def is_by_source(ecosystem: str) -> bool:
    """Whether records of *ecosystem* speak of source packages."""
    return scheme_of(ecosystem) in ("dpkg", "apk")
