"""apk's installed database (Alpine wiki, "Apk spec"): lines of letter, colon, value; a blank line ends a package."""

from __future__ import annotations

from collections.abc import Iterator

from casemate.trust.packages.content import Content
from casemate.trust.packages.model import Package, PackageListInvalid, make_package


def parse_installed(path: str, content: Content) -> Iterator[Package]:
    """The packages; ``o:`` names the origin (the source package), whose version is the package's own."""
    fields: dict[str, str] = {}
    for line in content.text().split("\n"):
        if not line:
            if fields:
                yield _package(path, fields)
            fields = {}
        elif line[1:2] != ":":
            raise PackageListInvalid(f"{path}: the line {line[:60]!r} is none of apk's")
        elif line[0] in "PVoA":
            if line[0] in fields:
                raise PackageListInvalid(f"{path}: a package has two lines {line[:2]}")
            fields[line[0]] = line[2:]
    if fields:
        yield _package(path, fields)


def _package(path: str, fields: dict[str, str]) -> Package:
    if "P" not in fields or "V" not in fields:
        raise PackageListInvalid(f"{path}: a package has no name or no version")
    return make_package("apk", fields["P"], fields["V"], source=fields.get("o", ""), architecture=fields.get("A", ""))


def owned_files(content: Content) -> set[bytes]:
    """The files of all packages: ``F:`` is a folder, ``R:`` a file in it."""
    folder = b""
    found: set[bytes] = set()
    for line in content.whole().split(b"\n"):
        if line.startswith(b"F:"):
            folder = line[2:] + b"/" if len(line) > 2 else b""
        elif line.startswith(b"R:"):
            found.add(folder + line[2:])
    return found
