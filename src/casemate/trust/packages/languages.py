"""Package lists of Python, npm, RubyGems and Composer: one small text or JSON file each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from casemate.trust.packages.content import Content
from casemate.trust.packages.model import MAX_PACKAGES, Package, PackageListInvalid, make_package

_FIELD = re.compile(r"^(Name|Version)[ \t]*+:(.*)$", re.MULTILINE | re.IGNORECASE)
_RUNS = re.compile(r"[-_.]+")


def parse_metadata(path: str, content: Content) -> Iterator[Package]:
    """Python's ``METADATA`` and ``PKG-INFO`` (core metadata): the fields before the first blank line.

    The name is normalised as PyPI does (name normalization specification).
    """
    text = content.text().replace("\r\n", "\n")
    head = text.partition("\n\n")[0]
    fields: dict[str, str] = {}
    for name, value in _FIELD.findall(head):
        fields.setdefault(name.lower(), value.strip(" \t"))
    if "name" not in fields or "version" not in fields:
        raise PackageListInvalid(f"{path}: has no Name or no Version")
    yield make_package("pypi", _RUNS.sub("-", fields["name"]).lower(), fields["version"])


class _NameVersion(msgspec.Struct):
    name: Any = None
    version: Any = None


def parse_package_json(path: str, content: Content) -> Iterator[Package]:
    """npm's ``package.json`` of an installed package; one without name or version (it only sets a type) gives none."""
    found = _decode(path, content, _NameVersion)
    if found.name is None or found.version is None:
        return
    if not isinstance(found.name, str) or not isinstance(found.version, str):
        raise PackageListInvalid(f"{path}: name or version is no string")
    yield make_package("npm", found.name, found.version.strip().removeprefix("="))


class _Installed(msgspec.Struct):
    packages: list[_NameVersion] = []


def parse_composer(path: str, content: Content) -> Iterator[Package]:
    """Composer's ``installed.json``: version 2 is an object with ``packages``, version 1 the list itself."""
    found: _Installed | list[_NameVersion] = _decode(path, content, _Installed | list[_NameVersion])
    for row in found.packages if isinstance(found, _Installed) else found:
        if not isinstance(row.name, str) or not isinstance(row.version, str):
            raise PackageListInvalid(f"{path}: name or version is no string")
        yield make_package("composer", row.name.lower(), row.version)


def _decode(path: str, content: Content, shape: Any) -> Any:
    data = content.whole().removeprefix(b"\xef\xbb\xbf")
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise PackageListInvalid(f"{path}: {error}") from error


# RubyGems writes this line since 2.0; the rest of the file is a program, which nobody should have to run.
_STUB = re.compile(r"^# stub: (\S+) (\S+) (\S+)", re.MULTILINE)
_GEM_NAME = re.compile(r"""^[ \t]*+\w++\.name[ \t]*+=[ \t]*+["']([^"'\n]++)["']""", re.MULTILINE)
_GEM_VERSION = re.compile(
    r"""^[ \t]*+\w++\.version[ \t]*+=[ \t]*+(?:Gem::Version\.new[ (]{0,4})?["']([^"'\n]++)["']""", re.MULTILINE
)


def parse_gemspec(path: str, content: Content) -> Iterator[Package]:
    """An installed gem's specification: its stub line, else the two assignments where they are plain strings."""
    text = content.text()
    if stub := _STUB.search(text):
        yield make_package("gem", stub[1], stub[2])
        return
    name, version = _GEM_NAME.search(text), _GEM_VERSION.search(text)
    if name is None or version is None:
        raise PackageListInvalid(f"{path}: name or version is computed, not written")
    yield make_package("gem", name[1], version[1])


def check_count(path: str, packages: list[Package]) -> None:
    """Raise when one list alone holds more than an image can have."""
    if len(packages) > MAX_PACKAGES:
        raise PackageListInvalid(f"{path}: {len(packages)} packages; {MAX_PACKAGES} are allowed")
