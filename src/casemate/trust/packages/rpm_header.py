"""One rpm header, as the database keeps it (rpm doc/manual/format_header.md): index entries, then their data."""

from __future__ import annotations

import struct
from typing import NamedTuple

from casemate.trust.packages.model import Package, PackageListInvalid, make_package

NAME, VERSION, RELEASE, EPOCH, ARCH, SOURCE_RPM = 1000, 1001, 1002, 1003, 1022, 1044
DIR_INDEXES, BASE_NAMES, DIR_NAMES, MODULARITY_LABEL = 1116, 1117, 1118, 5096
_WANTED = frozenset(
    (NAME, VERSION, RELEASE, EPOCH, ARCH, SOURCE_RPM, DIR_INDEXES, BASE_NAMES, DIR_NAMES, MODULARITY_LABEL)
)
_INT32, _STRING, _STRING_ARRAY, _I18N = 4, 6, 8, 9
#: rpm's own bounds: HEADER_TAGS_MAX and HEADER_DATA_MAX.
MAX_ENTRIES = 0xFFFF
MAX_DATA_BYTES = 256 << 20
#: What is in the database and is no package: keys to check signatures with.
_PUBLIC_KEY = "gpg-pubkey"


class Header(NamedTuple):
    """*package* is None for a public key. *files*: what the package owns, without the leading slash."""

    package: Package | None
    files: set[bytes]


def parse(blob: bytes, *, want_files: bool) -> Header:
    """The header in *blob*; raises :class:`PackageListInvalid`."""
    if len(blob) < 8:
        raise PackageListInvalid(f"an rpm header of {len(blob)} bytes")
    count, size = struct.unpack_from(">II", blob)
    if count > MAX_ENTRIES or size > MAX_DATA_BYTES or 8 + 16 * count + size > len(blob):
        raise PackageListInvalid(f"an rpm header of {len(blob)} bytes says {count} entries and {size} bytes of data")
    data = blob[8 + 16 * count : 8 + 16 * count + size]
    index: dict[int, tuple[int, int, int]] = {}
    for tag, kind, offset, number in struct.iter_unpack(">IIII", blob[8 : 8 + 16 * count]):
        if tag in _WANTED:
            if tag in index:
                raise PackageListInvalid(f"an rpm header holds tag {tag} twice")
            index[tag] = (kind, offset, number)
    name = _string(data, index, NAME)
    if name == _PUBLIC_KEY:
        return Header(None, set())
    return Header(_package(data, index, name), _files(data, index) if want_files else set())


def _package(data: bytes, index: dict[int, tuple[int, int, int]], name: str) -> Package:
    version, release = _string(data, index, VERSION), _string(data, index, RELEASE)
    epochs = _integers(data, index, EPOCH)
    full = f"{version}-{release}" if release else version
    if epochs and epochs[0]:
        full = f"{epochs[0]}:{full}"
    source, source_version = _split_source(_string(data, index, SOURCE_RPM))
    module = ":".join(_string(data, index, MODULARITY_LABEL).split(":")[:2])
    return make_package(
        "rpm",
        name,
        full,
        source=source,
        source_version=source_version,
        architecture=_string(data, index, ARCH),
        module=module,
    )


def _split_source(file_name: str) -> tuple[str, str]:
    """``name-version-release.src.rpm`` as name and version-release; the epoch is not in it."""
    stem = file_name.removesuffix(".rpm").removesuffix(".src").removesuffix(".nosrc")
    parts = stem.rsplit("-", 2)
    return (parts[0], f"{parts[1]}-{parts[2]}") if len(parts) == 3 else ("", "")


def _string(data: bytes, index: dict[int, tuple[int, int, int]], tag: int) -> str:
    if tag not in index:
        return ""
    kind, offset, _ = index[tag]
    if kind not in (_STRING, _I18N):
        raise PackageListInvalid(f"rpm tag {tag} has type {kind}, which is no string")
    end = data.find(b"\0", offset)
    if offset >= len(data) or end < 0:
        raise PackageListInvalid(f"rpm tag {tag} lies outside its header")
    return data[offset:end].decode(errors="replace")


def _integers(data: bytes, index: dict[int, tuple[int, int, int]], tag: int) -> tuple[int, ...]:
    if tag not in index:
        return ()
    kind, offset, number = index[tag]
    if kind != _INT32 or offset + 4 * number > len(data):
        raise PackageListInvalid(f"rpm tag {tag} has type {kind} and {number} values at {offset}")
    return struct.unpack_from(f">{number}I", data, offset)


def _strings(data: bytes, index: dict[int, tuple[int, int, int]], tag: int) -> list[bytes]:
    if tag not in index:
        return []
    kind, offset, number = index[tag]
    if kind != _STRING_ARRAY or number > len(data):
        raise PackageListInvalid(f"rpm tag {tag} has type {kind} and {number} strings")
    found = data[offset:].split(b"\0", number)
    if len(found) <= number:
        raise PackageListInvalid(f"rpm tag {tag} has {len(found) - 1} strings, not {number}")
    return found[:number]


def _files(data: bytes, index: dict[int, tuple[int, int, int]]) -> set[bytes]:
    folders = [folder.lstrip(b"/") for folder in _strings(data, index, DIR_NAMES)]
    numbers = _integers(data, index, DIR_INDEXES)
    names = _strings(data, index, BASE_NAMES)
    if len(numbers) != len(names) or any(number >= len(folders) for number in numbers):
        raise PackageListInvalid(f"an rpm header has {len(names)} files and {len(numbers)} folder numbers")
    return {folders[number] + name for number, name in zip(numbers, names, strict=True)}
