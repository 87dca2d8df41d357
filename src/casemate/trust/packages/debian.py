"""dpkg's status file (deb822 paragraphs; deb-control(5)), whole or one file for each package, and its file lists."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set

from casemate.trust.packages.content import Content
from casemate.trust.packages.model import Package, PackageListInvalid, make_package

_SOURCE = re.compile(r"(\S+)(?:\s+\((\S+)\))?\Z")
#: The fields that count; a paragraph's others (descriptions, conffiles) are passed over.
_FIELD = re.compile(r"^(Package|Status|Version|Source|Architecture):(.*)$", re.MULTILINE)
#: States in which no file of the package is there (dpkg(1), "Package states").
_GONE = ("not-installed", "config-files")


def parse_status(path: str, content: Content) -> Iterator[Package]:
    """The installed packages of a status file, or of one file below ``status.d`` (which has no Status field)."""
    one_file = "/status.d/" in path
    for paragraph in re.split(r"\n[ \t]*\n", content.text().replace("\r\n", "\n")):
        fields: dict[str, str] = {}
        for name, value in _FIELD.findall(paragraph):
            if name in fields:
                raise PackageListInvalid(f"{path}: a paragraph has two fields {name}")
            fields[name] = value.strip(" \t")
        if not fields:
            if paragraph.strip() and "Package" not in paragraph[:200]:
                raise PackageListInvalid(f"{path}: {paragraph.strip()[:60]!r} is no paragraph of dpkg's")
            continue
        if "Package" not in fields:
            raise PackageListInvalid(f"{path}: a paragraph has no field Package")
        if not one_file and fields.get("Status", "").rpartition(" ")[2] in ("", *_GONE):
            if "Status" not in fields:
                raise PackageListInvalid(f"{path}: {fields['Package'][:80]!r} has no field Status")
            continue
        yield _package(path, fields)


def _package(path: str, fields: dict[str, str]) -> Package:
    source = source_version = ""
    if text := fields.get("Source"):
        found = _SOURCE.match(text)
        if found is None:
            raise PackageListInvalid(f"{path}: {fields['Package'][:80]!r} has the source {text[:80]!r}")
        source, source_version = found[1], found[2] or ""
    return make_package(
        "deb", fields["Package"], fields.get("Version", ""), source=source, source_version=source_version,
        architecture=fields.get("Architecture", ""),
    )  # fmt: skip


def owned_files(path: str, content: Content, asked: Set[bytes]) -> set[bytes]:
    """Those of *asked* that a ``.list`` (one absolute path in a line) or ``.md5sums`` (digest, relative path) names."""
    lines = content.whole().split(b"\n")
    if path.endswith(".md5sums"):
        return {line[34:] for line in lines if line[32:34] == b"  "}.intersection(asked)
    # A layer may hold a million lines; the set of those that are asked for is small.
    return {line[1:] for line in {b"/" + name for name in asked}.intersection(lines)}
