"""Alpine's secdb: for each origin the versions that repaired something, and what."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from casemate.trust.feed.model import BY_SOURCE, MAX_IDENT_CHARS, Advisory, Affected, FeedInvalid, bounded
from casemate.trust.packages.model import MAX_NAME_CHARS, MAX_VERSION_CHARS


class _Package(msgspec.Struct):
    name: str
    secfixes: dict[str, list[str] | None]


class _Entry(msgspec.Struct):
    pkg: _Package


class _Database(msgspec.Struct):
    distroversion: str
    packages: list[_Entry]


_DECODER = msgspec.json.Decoder(_Database)
_RELEASE = re.compile(r"(v[0-9]{1,3}\.[0-9]{1,3}|edge-main|edge)\Z")


def parse(path: str, data: bytes) -> Iterator[Advisory]:
    """The advisories of one file (``main.json``, ``community.json``). A fix in version 0: it was never affected."""
    try:
        database = _DECODER.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FeedInvalid(f"{path}: {error}") from error
    if not _RELEASE.match(database.distroversion):
        raise FeedInvalid(f"{path}: distroversion is {database.distroversion[:60]!r}")
    ecosystem = f"Alpine:{database.distroversion}"
    found: dict[str, list[Affected]] = {}
    aliases: dict[str, dict[str, None]] = {}
    for entry in database.packages:
        name = bounded(entry.pkg.name, MAX_NAME_CHARS, f"{path}: package")
        for version, idents in entry.pkg.secfixes.items():
            bounded(version, MAX_VERSION_CHARS, f"{path}: version of {name}")
            for line in idents or ():
                # "CVE-2019-1 CVE-2019-2 (+ regression fix)": several names for one thing, and remarks
                names = [word for word in line.split() if re.match(r"[A-Z]{2,10}-", word)] or line.split()[:1]
                if not names:
                    raise FeedInvalid(f"{path}: {name} {version} repairs something without a name")
                if version != "0":
                    ident = bounded(names[0], MAX_IDENT_CHARS, f"{path}: advisory")
                    found.setdefault(ident, []).append(Affected(ecosystem, name, BY_SOURCE, "", version))
                    more = (bounded(word, MAX_IDENT_CHARS, f"{path}: advisory") for word in names[1:])
                    aliases.setdefault(ident, {}).update(dict.fromkeys(more))
    for ident, rows in found.items():
        yield Advisory(ident, tuple(rows), tuple(aliases[ident]))
