"""The one SQLite file that holds all feeds: its tables, how they are filled and read. No file is opened here.

A file is written once, by one writer, and then only read (``immutable``). ``meta.complete`` is set last, with the
counts that every reader compares: a file without it is half made.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from functools import lru_cache

import msgspec

from casemate.trust.feed.ecosystems import scheme_of
from casemate.trust.feed.model import SEVERITIES, Advisory, FeedInvalid, Source
from casemate.trust.version import dpkg
from casemate.trust.version.order import Scheme

SCHEMA_VERSION = "2"
#: The order for which rows carry sort keys; the others are compared one by one.
KEYED_SCHEME: Scheme = "dpkg"
_BATCH_ROWS = 20_000

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE source (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, info TEXT NOT NULL);
CREATE TABLE ecosystem (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE advisory (
    id INTEGER PRIMARY KEY, source INTEGER NOT NULL, ident TEXT NOT NULL, aliases TEXT NOT NULL, summary TEXT NOT NULL,
    severity INTEGER NOT NULL, score INTEGER NOT NULL
);
CREATE TABLE affected (
    ecosystem INTEGER NOT NULL, by INTEGER NOT NULL, name TEXT NOT NULL, introduced TEXT NOT NULL, fixed TEXT NOT NULL,
    last TEXT NOT NULL, advisory INTEGER NOT NULL,
    -- the sort key of "fixed" for ranges without a beginning, where versions have one; else empty
    fixed_key TEXT NOT NULL
);
CREATE TABLE epss (source INTEGER NOT NULL, cve TEXT NOT NULL, probability REAL NOT NULL);
CREATE TABLE kev (source INTEGER NOT NULL, cve TEXT NOT NULL, added TEXT NOT NULL);
"""
_INDEXES = """
CREATE INDEX affected_place ON affected (ecosystem, by, name, fixed_key, introduced, fixed, last, advisory);
CREATE INDEX epss_cve ON epss (cve);
CREATE INDEX kev_cve ON kev (cve);
"""
_COUNTED = ("source", "ecosystem", "advisory", "affected", "epss", "kev")


class FeedWriter:
    """Fills an empty database. The order: :meth:`keep_others`, then ``add_*``, :meth:`finish`."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._ecosystems: dict[str, int] = {}
        self._advisories: list[tuple[object, ...]] = []
        self._affected: list[tuple[object, ...]] = []
        self._next_advisory = 1
        self.source = 1
        self.rows = 0
        self.advisories = 0
        self.doubtful = 0
        self.newest = ""
        self._keyed: set[int] = set()
        # A repaired version stands in many rows: several advisories, several releases.
        self._key = lru_cache(maxsize=100_000)(dpkg.key)
        self.seen: set[str] = set()
        database.executescript(_TABLES)

    def keep_others(self, replaced: str) -> None:
        """Take over every source but *replaced* from the database attached as ``old``."""
        run = self._database.execute
        run("INSERT INTO ecosystem SELECT * FROM old.ecosystem")
        # The only texts put into statements are this one and names of our own tables.
        kept = "(SELECT id FROM old.source WHERE name <> ?)"
        run("INSERT INTO source SELECT * FROM old.source WHERE name <> ?", (replaced,))
        run(f"INSERT INTO advisory SELECT * FROM old.advisory WHERE source IN {kept}", (replaced,))  # noqa: S608 - ours
        run(
            f"INSERT INTO affected SELECT a.* FROM old.affected a JOIN old.advisory v ON v.id = a.advisory WHERE v.source IN {kept}",  # noqa: S608, E501 - ours
            (replaced,),
        )
        for table in ("epss", "kev"):
            run(f"INSERT INTO {table} SELECT * FROM old.{table} WHERE source IN {kept}", (replaced,))  # noqa: S608 - ours
        self._ecosystems = {str(name): int(ident) for ident, name in run("SELECT id, name FROM ecosystem")}
        for name, number in self._ecosystems.items():
            self._note_keyed(name, number)
        (self._next_advisory,) = run("SELECT coalesce(max(id), 0) + 1 FROM advisory").fetchone()
        (self.source,) = run("SELECT coalesce(max(id), 0) + 1 FROM source").fetchone()

    def add(self, advisory: Advisory) -> None:
        ident = self._next_advisory
        self._next_advisory += 1
        self.advisories += 1
        self.doubtful += advisory.doubtful
        self.rows += len(advisory.affected)
        self.newest = max(self.newest, advisory.modified)
        self._advisories.append(
            (ident, self.source, advisory.ident, " ".join(advisory.aliases), advisory.summary,
             SEVERITIES.index(advisory.severity), advisory.score)
        )  # fmt: skip
        for row in advisory.affected:
            number = self._ecosystems.get(row.ecosystem)
            if number is None:
                number = self._ecosystem(row.ecosystem)
            self.seen.add(row.ecosystem)
            key = self._key(row.fixed) if row.fixed and not row.introduced and number in self._keyed else ""
            self._affected.append((number, row.by, row.name, row.introduced, row.fixed, row.last, ident, key))
        if len(self._affected) >= _BATCH_ROWS:
            self._flush()

    def add_epss(self, rows: Iterable[tuple[str, float]]) -> None:
        before = self._database.total_changes
        self._database.executemany("INSERT INTO epss VALUES (?, ?, ?)", ((self.source, *row) for row in rows))
        self.rows += self._database.total_changes - before

    def add_kev(self, rows: Iterable[tuple[str, str]]) -> None:
        before = self._database.total_changes
        for cve, added in rows:
            self._database.execute("INSERT INTO kev VALUES (?, ?, ?)", (self.source, cve, added))
            self.newest = max(self.newest, added)
        self.rows += self._database.total_changes - before

    def finish(self, source: Source) -> None:
        """Note *source*, build the indexes, and say that the file is complete."""
        self._flush()
        run = self._database.execute
        run("INSERT INTO source VALUES (?, ?, ?)", (self.source, source.name, msgspec.json.encode(source).decode()))
        self._database.executescript(_INDEXES)
        run("INSERT INTO meta VALUES ('schema', ?)", (SCHEMA_VERSION,))
        for table in _COUNTED:
            run(f"INSERT INTO meta SELECT 'rows.{table}', count(*) FROM {table}")  # noqa: S608 - names of ours
        run("ANALYZE main")  # alone, it would write into the attached old feed, too
        run("INSERT INTO meta VALUES ('complete', 'yes')")
        self._database.commit()

    def _ecosystem(self, name: str) -> int:
        number = max(self._ecosystems.values(), default=0) + 1
        self._ecosystems[name] = number
        self._note_keyed(name, number)
        self._database.execute("INSERT INTO ecosystem VALUES (?, ?)", (number, name))
        return number

    def _note_keyed(self, ecosystem: str, number: int) -> None:
        if scheme_of(ecosystem) == KEYED_SCHEME:
            self._keyed.add(number)

    def _flush(self) -> None:
        self._database.executemany("INSERT INTO advisory VALUES (?, ?, ?, ?, ?, ?, ?)", self._advisories)
        self._database.executemany("INSERT INTO affected VALUES (?, ?, ?, ?, ?, ?, ?, ?)", self._affected)
        self._advisories.clear()
        self._affected.clear()


def check(database: sqlite3.Connection, path: str, *, thorough: bool) -> list[Source]:
    """The sources of a complete feed; raises :class:`FeedInvalid` for one that is half made or damaged.

    *thorough* also counts every row and has SQLite check every page.
    """
    try:
        meta = dict(database.execute("SELECT key, value FROM meta").fetchall())
        if meta.get("schema") != SCHEMA_VERSION or meta.get("complete") != "yes":
            raise FeedInvalid(f"{path}: is half made, or of schema {meta.get('schema')!r}, not {SCHEMA_VERSION!r}")
        sources = list(_sources(database))
        if not sources or str(len(sources)) != meta.get("rows.source"):
            raise FeedInvalid(f"{path}: holds {len(sources)} sources and says {meta.get('rows.source')}")
        if thorough:
            for table in _COUNTED:
                (count,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 - names of ours
                if str(count) != meta.get(f"rows.{table}"):
                    raise FeedInvalid(f"{path}: {table} has {count} rows and says {meta.get(f'rows.{table}')}")
            answer = database.execute("PRAGMA integrity_check(1)").fetchone()
            if answer != ("ok",):
                raise FeedInvalid(f"{path}: {answer[0][:200]}")
    except (sqlite3.Error, msgspec.MsgspecError) as error:
        raise FeedInvalid(f"{path}: {error}") from error
    return sources


def _sources(database: sqlite3.Connection) -> Iterator[Source]:
    for (info,) in database.execute("SELECT info FROM source ORDER BY name"):
        yield msgspec.json.decode(info, type=Source)
