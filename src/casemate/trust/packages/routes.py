"""Which file of a layer goes to which parser, by its path."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Set
from typing import NamedTuple

from casemate.trust.packages import alpine, binaries, debian, java, languages, rpm_database
from casemate.trust.packages.content import Content
from casemate.trust.packages.model import Package

Parser = Callable[[str, Content], Iterable[Package]]
#: (path, content, asked) -> those of the files *asked* (without a leading slash) that distribution packages own
OwnedFiles = Callable[[str, Content, Set[bytes]], set[bytes]]


class Route(NamedTuple):
    """*limit_bytes*: a longer file is not read but named as unreadable. *parse* None: it tells of files only."""

    name: str
    limit_bytes: int
    parse: Parser | None = None
    owned: OwnedFiles | None = None


_MIB = 1 << 20


def _apk_owned(_path: str, content: Content, asked: Set[bytes]) -> set[bytes]:
    return alpine.owned_files(content) & asked


def _rpm_owned(path: str, content: Content, asked: Set[bytes]) -> set[bytes]:
    found: set[bytes] = set()
    for _ in rpm_database.parse_database(path, content, found):
        pass
    return found & asked


# A real status file of 3,000 packages has 4 MiB, apk's database of 500 has 2, rpm's of 1,000 has 40.
DPKG_STATUS = Route("dpkg", 64 * _MIB, debian.parse_status)
DPKG_FILES = Route("dpkg-files", 32 * _MIB, None, debian.owned_files)
APK = Route("apk", 128 * _MIB, alpine.parse_installed, _apk_owned)
RPM = Route("rpm", 512 * _MIB, rpm_database.parse_database, _rpm_owned)
PYTHON = Route("python", 4 * _MIB, languages.parse_metadata)
NPM = Route("npm", 8 * _MIB, languages.parse_package_json)
GEM = Route("gem", 1 * _MIB, languages.parse_gemspec)
COMPOSER = Route("composer", 64 * _MIB, languages.parse_composer)
JAVA = Route("java", 512 * _MIB, java.parse_archive)
EXECUTABLE = Route("executable", 512 * _MIB, binaries.parse_executable)

_EXACT: dict[str, Route] = {
    "var/lib/dpkg/status": DPKG_STATUS,
    "lib/apk/db/installed": APK,
    "usr/lib/apk/db/installed": APK,
    **{
        f"{folder}/{name}": RPM
        for folder in ("var/lib/rpm", "usr/lib/sysimage/rpm", "usr/share/rpm")
        for name in ("rpmdb.sqlite", "Packages.db", "Packages")
    },
}
OS_RELEASE_PATHS = frozenset(("etc/os-release", "usr/lib/os-release"))
_BY_NAME: dict[str, Route] = {"METADATA": PYTHON, "PKG-INFO": PYTHON, "package.json": NPM, "installed.json": COMPOSER}
_NODE_MODULE = re.compile(r"(?:\A|/)node_modules/(?:@[^/]+/)?[^/]+/package\.json\Z")
#: An executable smaller than this holds neither a Go runtime nor Rust's standard library.
MIN_EXECUTABLE_BYTES = 100_000


def route(path: str, mode: int, size_bytes: int) -> Route | None:
    """The parser for a regular file at *path* (relative, ``/`` between parts), or None."""
    name = path[path.rfind("/") + 1 :]
    if found := _BY_NAME.get(name):
        return found if _fits(found, path) else None
    if path.startswith("var/lib/"):
        if path.startswith("var/lib/dpkg/"):
            return _dpkg(path, name)
        if found := _EXACT.get(path):
            return found
    elif (path.endswith("/apk/db/installed") or "/rpm/" in path) and (found := _EXACT.get(path)):
        return found
    if name.endswith(java.ARCHIVE_SUFFIXES):
        return JAVA
    if name.endswith(".gemspec"):
        return GEM if "/specifications/" in path else None
    if name.endswith(".egg-info"):
        return PYTHON
    if mode & 0o111 and size_bytes >= MIN_EXECUTABLE_BYTES and ".so" not in name:
        return EXECUTABLE
    return None


def _fits(found: Route, path: str) -> bool:
    if found is PYTHON:
        return path.endswith((".dist-info/METADATA", ".egg-info/PKG-INFO"))
    if found is NPM:
        return _NODE_MODULE.search(path) is not None
    return path.endswith("vendor/composer/installed.json")


def _dpkg(path: str, name: str) -> Route | None:
    if path == "var/lib/dpkg/status":
        return DPKG_STATUS
    if path.startswith("var/lib/dpkg/info/"):
        return DPKG_FILES if name.endswith(".list") else None
    if path.startswith("var/lib/dpkg/status.d/"):
        return DPKG_FILES if name.endswith(".md5sums") else DPKG_STATUS
    return None
