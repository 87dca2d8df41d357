"""rpm's database: SQLite (RHEL 9, Fedora) and ndb (SUSE); Berkeley DB (RHEL 8 and older) is named, not read."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator

from casemate.trust.packages import rpm_header
from casemate.trust.packages.content import Content
from casemate.trust.packages.model import MAX_PACKAGES, Package, PackageListInvalid

_SQLITE_MAGIC = b"SQLite format 3\0"
#: A database may be a program (views, recursive queries): stop one that does not end. 200,000 rows take far fewer.
_MAX_SQLITE_STEPS = 50_000_000
_STEP_INTERVAL = 10_000
_ALLOWED = frozenset((sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ))

_NDB_MAGIC, _SLOT_MAGIC, _BLOB_MAGIC = b"RpmP", b"Slot", b"BlbS"
_NDB_PAGE_BYTES, _NDB_SLOT_BYTES, _NDB_BLOCK_BYTES = 4096, 16, 16


def headers(path: str, content: Content) -> Iterator[bytes]:
    """Each header of the database in *content*, by its file format."""
    magic = content.read(0, min(16, content.size))
    if magic == _SQLITE_MAGIC:
        return _sqlite_headers(path, content)
    if magic[:4] == _NDB_MAGIC:
        return _ndb_headers(path, content)
    if not content.size:
        return iter(())
    raise PackageListInvalid(f"{path}: an rpm database in a format that is not read (Berkeley DB, or damaged)")


def parse_database(path: str, content: Content, owned: set[bytes] | None = None) -> Iterator[Package]:
    """The installed packages; the files that they own are added to *owned*, where it is given."""
    for blob in headers(path, content):
        header = rpm_header.parse(blob, want_files=owned is not None)
        if owned is not None:
            owned |= header.files
        if header.package:
            yield header.package


def _sqlite_headers(path: str, content: Content) -> Iterator[bytes]:
    data = bytearray(content.whole())
    # Written with a write-ahead log, the header asks for one, which a database in memory cannot have (file format 1.3).
    data[18:20] = b"\1\1"
    steps = 0

    def tick() -> bool:
        nonlocal steps
        steps += _STEP_INTERVAL
        return steps > _MAX_SQLITE_STEPS

    database = sqlite3.connect(":memory:", isolation_level=None)
    try:
        database.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, rpm_header.MAX_DATA_BYTES)
        database.deserialize(bytes(data))
        database.execute("PRAGMA trusted_schema=OFF")
        database.execute("PRAGMA cell_size_check=ON")
        kind = database.execute("SELECT type FROM sqlite_master WHERE name = 'Packages'").fetchall()
        if kind != [("table",)]:
            raise PackageListInvalid(f"{path}: has no table Packages")
        database.set_progress_handler(tick, _STEP_INTERVAL)
        database.set_authorizer(_authorize)
        for number, (blob,) in enumerate(database.execute("SELECT blob FROM Packages")):
            if number >= MAX_PACKAGES or not isinstance(blob, bytes):
                raise PackageListInvalid(f"{path}: row {number} is no header, or one too many")
            yield blob
    except (sqlite3.Error, sqlite3.Warning, OverflowError, MemoryError) as error:
        raise PackageListInvalid(f"{path}: {error}") from error
    finally:
        database.close()


def _authorize(action: int, *_: object) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def _ndb_headers(path: str, content: Content) -> Iterator[bytes]:
    """rpm lib/backend/ndb/rpmpkg.c: a header of two slots, slots on *pages* pages, blobs in blocks of 16 bytes."""
    _, version, _, pages = struct.unpack("<4sIII", content.read(0, 16))
    if version != 0 or not 0 < pages <= content.size // _NDB_PAGE_BYTES:
        raise PackageListInvalid(f"{path}: ndb version {version} with {pages} slot pages in {content.size} bytes")
    slots = content.read(2 * _NDB_SLOT_BYTES, pages * _NDB_PAGE_BYTES - 2 * _NDB_SLOT_BYTES)
    seen: set[int] = set()
    for magic, number, block, blocks in struct.iter_unpack("<4sIII", slots):
        if magic != _SLOT_MAGIC:
            raise PackageListInvalid(f"{path}: a slot begins with {magic!r}")
        if not block:
            continue
        if number in seen or len(seen) >= MAX_PACKAGES:
            raise PackageListInvalid(f"{path}: package {number} is there twice, or one too many")
        seen.add(number)
        start = block * _NDB_BLOCK_BYTES
        blob_magic, blob_number, _, size = struct.unpack("<4sIII", content.read(start, 16))
        if blob_magic != _BLOB_MAGIC or blob_number != number or size > blocks * _NDB_BLOCK_BYTES:
            raise PackageListInvalid(f"{path}: the blob of package {number} is not where its slot says")
        yield content.read(start + 16, size)
