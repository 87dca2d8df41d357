"""An image archive as named members: a tar file (perhaps packed), or a folder. Worker only.

A tar is read by its headers alone, with bounds; nothing is unpacked, so no name in it can reach the file system.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import IO, BinaryIO, Protocol

from casemate.image import tarheader as th
from casemate.image.convert import READ_BYTES
from casemate.image.decompress import PLAIN, decompressed, sniff
from casemate.image.errors import ArchiveInvalid, LayerInvalid, LayerTooLarge
from casemate.image.rewrite import clean_name
from casemate.image.workspace import Workspace
from casemate.spec.errors import CasemateError

MAX_MEMBERS = 20_000
MAX_LINK_DEPTH = 8
MAX_LONG_NAME = 4096


class Archive(Protocol):
    """Members by name; *read* is bounded, *chunks* streams."""

    def has(self, name: str) -> bool: ...
    def size(self, name: str) -> int: ...
    def read(self, name: str, max_bytes: int) -> bytes: ...
    def chunks(self, name: str) -> Iterator[bytes]: ...


class FolderArchive:
    """An OCI layout in a folder. Names come from documents, so each step is opened without following links."""

    def __init__(self, descriptor: int) -> None:
        self._root = descriptor

    def has(self, name: str) -> bool:
        try:
            os.close(self._open(name))
        except ArchiveInvalid:
            return False
        return True

    def size(self, name: str) -> int:
        descriptor = self._open(name)
        try:
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def read(self, name: str, max_bytes: int) -> bytes:
        with os.fdopen(self._open(name), "rb") as stream:
            return _bounded(stream.read(max_bytes + 1), name, max_bytes)

    def chunks(self, name: str) -> Iterator[bytes]:
        with os.fdopen(self._open(name), "rb") as stream:
            while chunk := stream.read(READ_BYTES):
                yield chunk

    def _open(self, name: str) -> int:
        here = os.dup(self._root)
        try:
            parts = clean_name(name.encode("utf-8", "surrogateescape")).split(b"/")
            for number, part in enumerate(parts):
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                flags |= os.O_DIRECTORY if number < len(parts) - 1 else 0
                following = os.open(part, flags, dir_fd=here)
                os.close(here)
                here = following
            if not stat.S_ISREG(os.fstat(here).st_mode):
                raise ArchiveInvalid(f"{name[:200]!r} in the folder is not a file")
        except (OSError, CasemateError) as error:
            os.close(here)
            raise ArchiveInvalid(f"{name[:200]!r} is not in the folder") from error
        return here


class TarArchive:
    """A tar in a seekable file; symbolic and hard links between members are followed, as old `docker save` needs."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._members: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        #: False when it has more members than were looked at: a root file system, or an attack.
        self.is_whole = True
        self._index()

    def has(self, name: str) -> bool:
        try:
            self._find(name)
        except ArchiveInvalid:
            return False
        return True

    def size(self, name: str) -> int:
        return self._find(name)[1]

    def read(self, name: str, max_bytes: int) -> bytes:
        offset, size = self._find(name)
        return _bounded(os.pread(self._stream.fileno(), min(size, max_bytes + 1), offset), name, max_bytes)

    def chunks(self, name: str) -> Iterator[bytes]:
        offset, size = self._find(name)
        while size:
            chunk = os.pread(self._stream.fileno(), min(READ_BYTES, size), offset)
            if not chunk:
                raise ArchiveInvalid(f"the archive ends {size} bytes before the end of {name[:200]!r}")
            offset += len(chunk)
            size -= len(chunk)
            yield chunk

    def _find(self, name: str) -> tuple[int, int]:
        for _ in range(MAX_LINK_DEPTH):
            if name in self._members:
                return self._members[name]
            if name not in self._links:
                break
            name = self._links[name]
        where = "the archive" if self.is_whole else f"the first {MAX_MEMBERS} members of the archive"
        raise ArchiveInvalid(f"{name[:200]!r} is not in {where}")

    def _index(self) -> None:
        descriptor = self._stream.fileno()
        position = count = 0
        end = os.fstat(descriptor).st_size
        long_name: bytes | None = None
        while True:
            block = os.pread(descriptor, th.BLOCK_BYTES, position)
            if len(block) < th.BLOCK_BYTES or block == th.ZERO_BLOCK:
                return
            entry = th.parse(block)
            position += th.BLOCK_BYTES
            size = 0 if entry.kind in th.HEADER_ONLY else entry.size
            count += 1
            if count > MAX_MEMBERS:
                self.is_whole = False
                return
            if size < 0 or position + size > end:
                raise ArchiveInvalid(
                    f"member {count} ({entry.name[:200]!r}, {size} bytes) does not fit into the archive"
                )
            if entry.kind in (th.PAX, th.GNU_LONG_NAME):
                long_name = self._long_name(entry, os.pread(descriptor, min(size, MAX_LONG_NAME), position))
            elif entry.kind != th.PAX_GLOBAL:
                self._note(entry, long_name if long_name is not None else entry.name, position, size)
                long_name = None
            position += size + -size % th.BLOCK_BYTES

    def _long_name(self, entry: th.Entry, data: bytes) -> bytes | None:
        if entry.kind == th.GNU_LONG_NAME:
            return data.partition(b"\0")[0]
        return dict(th.parse_pax(data)).get(b"path") if entry.size <= len(data) else None

    def _note(self, entry: th.Entry, name: bytes, position: int, size: int) -> None:
        key = os.fsdecode(clean_name(name))
        if entry.kind == th.REGULAR:
            self._members[key] = (position, size)
        elif entry.kind == th.HARD_LINK:
            self._links[key] = os.fsdecode(clean_name(entry.link))
        elif entry.kind == th.SYMLINK:
            parts: list[str] = key.split("/")[:-1]
            for part in os.fsdecode(entry.link).split("/"):
                if part == "..":
                    parts = parts[:-1]
                elif part not in ("", "."):
                    parts.append(part)
            self._links[key] = "/".join(parts)


def open_source(source: str) -> int:
    """A descriptor of *source*: ``fd:N`` is duplicated, a path opened (its last part may be a folder)."""
    try:
        if source.startswith("fd:") and source[3:].isdigit() and len(source) < 9:
            return os.dup(int(source[3:]))
        return os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ArchiveInvalid(f"{source[:300]!r} cannot be opened: {error.strerror}") from error


def open_archive(work: Workspace, descriptor: int) -> Archive:
    """The archive behind *descriptor*; what is packed, or cannot be read twice, is first unpacked into ``uploads/``."""
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        return FolderArchive(descriptor)
    stream = os.fdopen(os.dup(descriptor), "rb")
    try:
        if stat.S_ISREG(status.st_mode) and sniff(os.pread(descriptor, 8, 0)) == PLAIN:
            return TarArchive(stream)
        return TarArchive(_unpacked(work, stream))
    except LayerInvalid as error:
        raise ArchiveInvalid(f"the archive is not a tar: {error.detail}") from error


def file_chunks(stream: IO[bytes]) -> Iterator[bytes]:
    """What is left of *stream*, in chunks."""
    while chunk := stream.read(READ_BYTES):
        yield chunk


def _unpacked(work: Workspace, stream: BinaryIO) -> BinaryIO:
    path = work.store.temporary("uploads")
    written = 0
    plain: BinaryIO
    with path.open("x+b") as plain_file:
        path.unlink()  # nothing is left of it when this process ends
        for chunk in decompressed(file_chunks(stream)):
            work.check()
            written += len(chunk)
            if written > work.limits.max_layer_bytes:
                raise LayerTooLarge(
                    f"the archive unpacks to more than {work.limits.max_layer_bytes} bytes (image.max_layer_bytes)"
                )
            plain_file.write(chunk)
        plain_file.flush()
        plain = os.fdopen(os.dup(plain_file.fileno()), "rb")
    return plain


def _bounded(data: bytes, name: str, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise ArchiveInvalid(f"{name[:200]!r} has more than {max_bytes} bytes")
    return data
