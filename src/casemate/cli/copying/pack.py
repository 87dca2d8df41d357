"""A file or folder of this side as a tar stream, made while it is sent; nothing is held in memory or on disk."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

from casemate.cli.errors import FileUnusable

CHUNK_BYTES = 1 << 20
#: Folders nested deeper than this are no tree that somebody means to copy (PATH_MAX allows 2048).
MAX_DEPTH = 1024


class Packer:
    """*owners* keeps uid and gid (``-a``); otherwise everything is root's in the container, as with Docker."""

    __slots__ = ("bytes_sent", "owners", "skipped")

    def __init__(self, owners: bool) -> None:
        self.owners = owners
        #: Bytes of file content.
        self.bytes_sent = 0
        #: Sockets and devices, which a copy cannot carry.
        self.skipped: list[str] = []

    def tree(self, source: str, name: str, follow: bool, contents_only: bool) -> Iterator[bytes]:
        """*source* under the name *name* in the archive; the folder's contents alone where *contents_only*."""
        at = os.path.realpath(source) if follow else source.rstrip("/") or "/"
        if not contents_only:
            yield from self._entry(at, name, 0)
        else:
            yield from self._folder(at, "", 0)
        yield tarfile.NUL * (2 * tarfile.BLOCKSIZE)

    def _entry(self, path: str, name: str, depth: int) -> Iterator[bytes]:
        if depth > MAX_DEPTH:
            raise FileUnusable(f"{path[:200]!r} is nested deeper than {MAX_DEPTH} folders")
        found = os.lstat(path)
        row = self._row(name, found)
        if stat.S_ISREG(found.st_mode):
            yield from self._file(path, row)
        elif stat.S_ISDIR(found.st_mode):
            row.type = tarfile.DIRTYPE
            yield _head(row)
            yield from self._folder(path, name, depth)
        elif stat.S_ISLNK(found.st_mode):
            row.type, row.linkname = tarfile.SYMTYPE, os.readlink(path)
            yield _head(row)
        elif stat.S_ISFIFO(found.st_mode):
            row.type = tarfile.FIFOTYPE
            yield _head(row)
        else:
            self.skipped.append(path)

    def _folder(self, path: str, name: str, depth: int) -> Iterator[bytes]:
        for held in sorted(os.listdir(path)):
            yield from self._entry(f"{path.rstrip('/')}/{held}", f"{name}/{held}" if name else held, depth + 1)

    def _row(self, name: str, found: os.stat_result) -> tarfile.TarInfo:
        row = tarfile.TarInfo(name)
        row.mode = stat.S_IMODE(found.st_mode)
        row.mtime = int(found.st_mtime)
        if self.owners:
            row.uid, row.gid = found.st_uid, found.st_gid
        return row

    def _file(self, path: str, row: tarfile.TarInfo) -> Iterator[bytes]:
        """The size is that of the open file; one that grows is cut there, one that shrinks is filled with zeros."""
        with Path(path).open("rb", buffering=0) as file:
            row.size = left = os.fstat(file.fileno()).st_size
            self.bytes_sent += left
            yield _head(row)
            while left:
                data = file.read(min(left, CHUNK_BYTES)) or bytes(min(left, CHUNK_BYTES))
                left -= len(data)
                yield data
        rest = row.size % tarfile.BLOCKSIZE
        if rest:
            yield bytes(tarfile.BLOCKSIZE - rest)


def _head(row: tarfile.TarInfo) -> bytes:
    return row.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
