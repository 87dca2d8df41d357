"""Effects: the feed's file, its lock, and the archives and folders that feeds come in.

A new file is built beside the old one, synced, and renamed over it; a reader sees the old or the new one, whole.
Importing into a feed copies its other sources into the new file. One import at a time, by a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import lzma
import os
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import IO, cast
from urllib.parse import quote

from casemate.host.durable import sync_folder
from casemate.trust.feed import alpine, csaf, debian, osv, scores
from casemate.trust.feed.fresh import as_date
from casemate.trust.feed.model import (
    Advisory,
    FeedBusy,
    FeedDigestMismatch,
    FeedEmpty,
    FeedInvalid,
    FeedKind,
    FeedMissing,
    Source,
    bounded,
)
from casemate.trust.feed.schema import FeedWriter, check

#: The whole OSV export has 500,000 records; the largest (the kernel's) 2 MiB. Debian's tracker is one file of 60 MiB.
MAX_MEMBERS = 3_000_000
MAX_RECORD_BYTES = 64 << 20
MAX_FILE_BYTES = 512 << 20
MAX_TOTAL_BYTES = 64 << 30
_READ_BYTES = 1 << 20
_SNIFFED_BYTES = 64
#: POSIX.1-2017 pax, "ustar Interchange Format": two blocks of zeros end an archive.
_TAR_END_BYTES = 1024

_UNREADABLE = (
    OSError,
    EOFError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    NotImplementedError,
)

Records = Iterator[tuple[str, bytes]]


def open_feed(path: Path, *, thorough: bool = False) -> tuple[sqlite3.Connection, list[Source]]:
    """The feed at *path*, read only, and its sources. Raises :class:`FeedMissing` and :class:`FeedInvalid`."""
    if not path.exists():
        raise FeedMissing(f"{path} is not there: no feed was imported yet")
    database = sqlite3.connect(_read_only(path), uri=True, isolation_level=None, check_same_thread=False)
    try:
        return database, check(database, str(path), thorough=thorough)
    except BaseException:
        database.close()
        raise


def _read_only(path: Path) -> str:
    """The address of a finished feed, which nobody writes any more (and whose mode allows nobody to)."""
    return f"file:{quote(str(path))}?mode=ro&immutable=1"


def import_feed(
    path: Path, kind: FeedKind, origin: Path, *, name: str, today: date, made: str = "", digest: str = ""
) -> Source:
    """Put the export *origin* into the feed at *path* as the source *name*, in the place of one of that name.

    *made*: the day of its content, for kinds that do not say; *digest*: what its maker says the file hashes to. Raises
    :class:`FeedInvalid` and its kin, :class:`FeedBusy`; the feed is then as it was.
    """
    bounded(name, 100, "the feed's name")
    if not origin.exists():
        raise FeedInvalid(f"{origin} is not there")
    with _locked(path):
        for leftover in path.parent.glob(f".{path.name}-*.tmp"):
            leftover.unlink(missing_ok=True)
        seen = _digest(origin)
        if digest and seen != digest:
            raise FeedDigestMismatch(f"{origin} hashes to {seen}, wanted is {digest}")
        temporary = path.with_name(f".{path.name}-{os.getpid()}.tmp")
        try:
            source = _build(
                temporary, path, kind, origin, Source(name, kind, made, seen, today.isoformat(), 0, 0, 0, ())
            )
            _sync_file(temporary)
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return source


def remove_source(path: Path, name: str) -> None:
    """Take the source *name* out of the feed; with the last one the file goes."""
    with _locked(path):
        database, sources = open_feed(path)
        database.close()
        if name not in {source.name for source in sources}:
            raise FeedMissing(f"the feed has no source {name!r}")
        if len(sources) == 1:
            path.unlink()
            sync_folder(path.parent)
            return
        kept = next(source for source in sources if source.name != name)
        temporary = path.with_name(f".{path.name}-{os.getpid()}.tmp")
        try:
            _without(temporary, path, name, kept)
            _sync_file(temporary)
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _without(temporary: Path, path: Path, name: str, kept: Source) -> None:
    with contextlib.closing(_connect(temporary, path)) as database:
        writer = FeedWriter(database)
        writer.keep_others(name)
        # `finish` writes one source: that one is taken out before it is written again.
        (writer.source,) = database.execute("SELECT id FROM source WHERE name = ?", (kept.name,)).fetchone()
        database.execute("DELETE FROM source WHERE name = ?", (kept.name,))
        writer.finish(kept)


def _build(temporary: Path, path: Path, kind: FeedKind, origin: Path, draft: Source) -> Source:
    with contextlib.closing(_connect(temporary, path)) as database:
        try:
            writer = FeedWriter(database)
            if path.exists():
                writer.keep_others(draft.name)
            _fill(writer, kind, origin)
            if not writer.rows:
                raise FeedEmpty(f"{origin} holds no advisory of the kind {kind}")
            source = _finished(writer, draft)
            writer.finish(source)
        except sqlite3.Error as error:
            raise FeedInvalid(f"{origin}: {error}") from error
    return source


def _finished(writer: FeedWriter, draft: Source) -> Source:
    made = draft.date or writer.newest
    if not made:
        raise FeedInvalid(
            f"a feed of the kind {draft.kind} does not say of which day it is",
            remedy="Give the day: `--date YYYY-MM-DD`.",
        )
    if (as_date(made, draft.name) - as_date(draft.imported, "today")).days > 1:
        raise FeedInvalid(f"feed {draft.name} is of {made}, and this host's clock says {draft.imported}")
    return Source(
        draft.name, draft.kind, made, draft.digest, draft.imported, writer.rows, writer.advisories, writer.doubtful,
        tuple(sorted(writer.seen)),
    )  # fmt: skip


def _connect(temporary: Path, old: Path) -> sqlite3.Connection:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(temporary, uri=True)
    # The file is thrown away unless it is finished and synced: a journal would protect nothing.
    database.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE;")
    if old.exists():
        opened, _ = open_feed(old)
        opened.close()
        database.execute("ATTACH ? AS old", (_read_only(old),))
    return database


def _fill(writer: FeedWriter, kind: FeedKind, origin: Path) -> None:
    parse: Callable[[str, bytes], Iterable[Advisory]]
    match kind:
        case "osv":
            for name, data in _records(origin):
                advisory = osv.parse(name, data)
                if advisory is not None:
                    writer.add(advisory)
            return
        case "epss":
            writer.add_epss(scores.parse_epss(origin.name, _single(origin)))
            return
        case "kev":
            writer.add_kev(scores.parse_kev(origin.name, _single(origin)))
            return
        case "debian-advisories":
            parse = debian.parse_advisories
        case "debian-tracker":
            parse = debian.parse_tracker
        case "alpine-secdb":
            parse = alpine.parse
        case "csaf-vex":
            parse = csaf.parse
    one = kind not in ("alpine-secdb", "csaf-vex")
    for name, data in [(origin.name, _single(origin))] if one else _records(origin):
        for advisory in parse(name, data):
            writer.add(advisory)


def _records(origin: Path) -> Records:
    """Every ``*.json`` of a folder, a zip or a tar archive, in the order in which they come; or one such file."""
    try:
        if origin.is_dir():
            yield from _bounded(_folder(origin))
        elif zipfile.is_zipfile(origin):
            yield from _bounded(_zip(origin))
        elif _is_json(origin):
            yield origin.name, _single(origin)
        else:
            yield from _bounded(_tar(origin))
    except (
        OSError,
        EOFError,
        lzma.LZMAError,
        tarfile.TarError,
        zipfile.BadZipFile,
        ValueError,
        NotImplementedError,
    ) as error:
        raise FeedInvalid(f"{origin}: cannot be read to its end: {error}") from error


def _bounded(records: Records) -> Records:
    left = MAX_TOTAL_BYTES
    for number, (name, data) in enumerate(records):
        left -= len(data)
        if number >= MAX_MEMBERS or left < 0:
            raise FeedInvalid(f"{name}: more than {MAX_MEMBERS} records or {MAX_TOTAL_BYTES} bytes")
        yield name, data


def _folder(origin: Path) -> Records:
    for folder, folders, names in os.walk(origin):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".json"):
                path = Path(folder, name)
                if path.stat(follow_symlinks=False).st_size > MAX_RECORD_BYTES or path.is_symlink():
                    raise FeedInvalid(f"{path}: is a link, or longer than {MAX_RECORD_BYTES} bytes")
                yield name, path.read_bytes()


def _zip(origin: Path) -> Records:
    with zipfile.ZipFile(origin) as archive:
        for info in archive.infolist():
            if info.filename.endswith(".json"):
                if info.file_size > MAX_RECORD_BYTES:
                    raise FeedInvalid(f"{info.filename}: is longer than {MAX_RECORD_BYTES} bytes")
                with archive.open(info) as file:
                    yield info.filename, file.read(MAX_RECORD_BYTES)


class _Tail:
    """A stream that remembers its last bytes, by which an archive that was cut off between two members is told."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile | lzma.LZMAFile) -> None:
        self._stream = stream
        self.tail = b""

    def read(self, count: int) -> bytes:
        data = self._stream.read(count)
        self.tail = (self.tail + data)[-_TAR_END_BYTES:]
        return data


def _tar(origin: Path) -> Records:
    with origin.open("rb") as packed, _unpacked(packed) as stream:
        watched = _Tail(stream)
        with tarfile.open(fileobj=cast("IO[bytes]", watched), mode="r|") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".json"):
                    file = archive.extractfile(member)
                    if file is None or member.size > MAX_RECORD_BYTES:
                        raise FeedInvalid(f"{member.name}: is longer than {MAX_RECORD_BYTES} bytes")
                    data = file.read()
                    if len(data) != member.size:
                        raise FeedInvalid(f"{member.name}: is cut off")
                    yield member.name, data
        # The packer's check sums stand at the very end.
        while watched.read(_READ_BYTES):
            pass
        if watched.tail != bytes(_TAR_END_BYTES):
            raise FeedInvalid(f"{origin}: the archive does not end as one does; it was cut off")


def _single(origin: Path) -> bytes:
    """One file, unpacked when it is gzip or xz."""
    try:
        with origin.open("rb") as packed, _unpacked(packed) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise FeedInvalid(f"{origin}: cannot be read to its end: {error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise FeedInvalid(f"{origin}: is longer than {MAX_FILE_BYTES} bytes")
    return data


def _is_json(origin: Path) -> bool:
    """Whether *origin*, unpacked, begins as a JSON document does; an upload has no name to tell by."""
    with origin.open("rb") as packed, _unpacked(packed) as file:
        return file.read(_SNIFFED_BYTES).lstrip()[:1] in (b"{", b"[")


def _unpacked(packed: IO[bytes]) -> IO[bytes] | gzip.GzipFile | lzma.LZMAFile:
    """The content of a file that may be packed by gzip or xz, told by its first bytes (RFC 1952 2.3.1, xz 2.1.1.1)."""
    magic = packed.read(6)
    packed.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=packed)
    return lzma.LZMAFile(packed) if magic == b"\xfd7zXZ\x00" else packed


def _digest(origin: Path) -> str:
    """Of the file; of a folder, over its files' names and digests."""
    whole = hashlib.sha256()
    if not origin.is_dir():
        with origin.open("rb") as file:
            while data := file.read(_READ_BYTES):
                whole.update(data)
    else:
        for path in sorted(origin.rglob("*.json")):
            whole.update(f"{path.relative_to(origin)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return f"sha256:{whole.hexdigest()}"


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    number = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FeedBusy(f"{path}: another process imports into it") from error
        yield
    finally:
        os.close(number)


def _sync_file(path: Path) -> None:
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(number, 0o440)
        os.fsync(number)
    finally:
        os.close(number)
