"""The values of a package list, and the bounds on what an image may put into them."""

from __future__ import annotations

import re
from typing import Literal, get_args

import msgspec

from casemate.spec.errors import CasemateError

#: Raise it whenever a parser changes what it finds: cached lists of other versions are made anew.
SCANNER_VERSION = 2

#: As in package URLs (purl-spec, PURL-TYPES).
PackageType = Literal["deb", "apk", "rpm", "pypi", "npm", "golang", "cargo", "maven", "gem", "composer"]
PACKAGE_TYPES: tuple[PackageType, ...] = get_args(PackageType)
#: Those that a distribution's own tool installs.
DISTRIBUTION_TYPES: frozenset[PackageType] = frozenset(("deb", "apk", "rpm"))

#: The longest real name is a Maven coordinate of some 150 characters, the longest version a Go pseudo version of 60.
MAX_NAME_CHARS = 512
MAX_VERSION_CHARS = 512
#: A full distribution mirror has 100,000 packages; an image that says it has more lies.
MAX_PACKAGES = 200_000
#: Setuid files, secrets, whiteouts, unreadable files: enough for any real layer, and bounded.
MAX_FINDINGS = 10_000
MAX_HIDDEN = 200_000

_CONTROL = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class PackageListInvalid(CasemateError):
    code = "trust.package_list_invalid"
    status = 422
    title = "A package list inside the image cannot be read"
    remedy = "Rebuild the image from its sources; until then it counts as not wholly scanned."


class Package(msgspec.Struct, frozen=True, omit_defaults=True):
    """One package. *source* and *source_version*: what the distribution built it from (advisories speak of those).

    *owned*: the file that told of it belongs to a package of the distribution, whose feed alone then judges it.
    """

    type: PackageType
    name: str
    version: str
    source: str = ""
    source_version: str = ""
    architecture: str = ""
    #: rpm: the module that it belongs to (``name:stream``).
    module: str = ""
    owned: bool = False

    @property
    def advisory_name(self) -> str:
        return self.source or self.name

    @property
    def advisory_version(self) -> str:
        return self.source_version or self.version


class Setuid(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file that runs as its owner (mode & 0o4000) or its group (mode & 0o2000)."""

    path: str
    mode: int
    uid: int = 0
    gid: int = 0


class Leak(msgspec.Struct, frozen=True, omit_defaults=True):
    """What looks like a secret. Neither the secret nor a part of it is kept."""

    path: str
    rule: str
    line: int = 0


class Unreadable(msgspec.Struct, frozen=True):
    """A file that should have told of packages and did not."""

    path: str
    reason: str


class Distribution(msgspec.Struct, frozen=True, omit_defaults=True):
    """From os-release(5): ``debian`` ``12``, ``alpine`` ``3.18.4``; *like*: the family, nearest first."""

    id: str
    version: str = ""
    codename: str = ""
    name: str = ""
    like: tuple[str, ...] = ()


class LayerContents(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one layer holds. *lists*: path of a file that tells of packages, and these (perhaps none: it then hides the
    file of the same path below). *removed* and *opaque*: whiteouts and opaque folders, as in the OCI image-spec."""

    lists: dict[str, tuple[Package, ...]] = {}
    os_release: dict[str, Distribution] = {}
    setuid: tuple[Setuid, ...] = ()
    leaks: tuple[Leak, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    removed: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()
    scanner_version: int = SCANNER_VERSION


def make_package(kind: PackageType, name: str, version: str, **more: str) -> Package:
    """A :class:`Package` whose texts are bounded and hold no blank or control character.

    Raises :class:`PackageListInvalid`: a name or a version that cannot be real makes the list a lie.
    """
    source, source_version = more.pop("source", ""), more.pop("source_version", "")
    for what, text, limit in (
        ("name", name, MAX_NAME_CHARS),
        ("version", version, MAX_VERSION_CHARS),
        ("source", source, MAX_NAME_CHARS),
        ("source version", source_version, MAX_VERSION_CHARS),
    ):
        if len(text) > limit:
            raise PackageListInvalid(f"{kind} {what} {text[:40]!r}... has {len(text)} characters; {limit} are allowed")
        if found := _CONTROL.search(text):
            raise PackageListInvalid(f"{kind} {what} {text[:80]!r} holds {found[0]!r}")
    if not name or not version:
        raise PackageListInvalid(f"{kind} package {name[:80]!r} has version {version[:80]!r}; neither may be empty")
    if source == name:
        source = ""
    if source_version == version:
        source_version = ""
    return Package(
        kind, name, version, source, source_version,
        architecture=more.get("architecture", "")[:64], module=more.get("module", "")[:MAX_NAME_CHARS],
    )  # fmt: skip
