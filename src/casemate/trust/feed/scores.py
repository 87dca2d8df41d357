"""How likely a vulnerability is used (EPSS), and which ones are known to be (CISA's KEV catalogue)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from casemate.trust.feed.model import FeedInvalid

_CVE = re.compile(r"CVE-[0-9]{4}-[0-9]{4,10}\Z")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def parse_epss(path: str, data: bytes) -> Iterator[tuple[str, float]]:
    """FIRST's daily file: a remark with the date, the header ``cve,epss,percentile``, then a line for each CVE."""
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise FeedInvalid(f"{path}: {error}") from error
    if lines.pop() != "":
        raise FeedInvalid(f"{path}: the last line is cut off")
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    if not lines or lines[0].split(",")[:2] != ["cve", "epss"]:
        raise FeedInvalid(f"{path}: has no header cve,epss,percentile")
    for number, line in enumerate(lines[1:], 1):
        fields = line.split(",")
        try:
            probability = float(fields[1])
        except (IndexError, ValueError) as error:
            raise FeedInvalid(f"{path}: row {number} is {line[:80]!r}") from error
        if not _CVE.match(fields[0]) or not 0 <= probability <= 1:
            raise FeedInvalid(f"{path}: row {number} is {line[:80]!r}")
        yield fields[0], probability


class _Known(msgspec.Struct, rename="camel"):
    cve_id: str = msgspec.field(name="cveID")
    date_added: str = ""


class _Catalogue(msgspec.Struct):
    vulnerabilities: list[_Known]
    count: int


def parse_kev(path: str, data: bytes) -> Iterator[tuple[str, str]]:
    """(CVE, the day it was added); the catalogue says how many it holds, so one that is cut short is noticed."""
    try:
        catalogue = msgspec.json.decode(data, type=_Catalogue)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FeedInvalid(f"{path}: {error}") from error
    if catalogue.count != len(catalogue.vulnerabilities):
        raise FeedInvalid(f"{path}: holds {len(catalogue.vulnerabilities)} vulnerabilities and says {catalogue.count}")
    for row in catalogue.vulnerabilities:
        if not _CVE.match(row.cve_id) or not _DATE.match(row.date_added):
            raise FeedInvalid(f"{path}: names {row.cve_id[:60]!r}, added {row.date_added[:60]!r}")
        yield row.cve_id, row.date_added[:10]
