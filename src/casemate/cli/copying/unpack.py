"""Unpacking a tar stream from a container, which is hostile: no name in it leads out of the destination.

Every folder on the way is opened by descriptor without following links, and what is in the way of a file is removed,
never followed. Set-uid bits and owners come along only with ``-a``; devices never.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Generator, Iterator
from typing import IO, cast

from casemate.cli.errors import AnswerInvalid, FileUnusable

CHUNK_BYTES = 1 << 20
#: What the kernel allows for a path.
MAX_NAME_BYTES = 4096
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Source:
    """The chunks of an answer as the file that tarfile reads: of a stream it uses ``read`` alone."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._held = b""

    def read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            data = self._held or next(self._chunks, b"")
            if not data:
                break
            parts.append(data[:size])
            self._held = data[size:]
            size -= len(parts[-1])
        return b"".join(parts)


class Unpacker:
    """Unpacks below the folder *root* (its own path is the user's word, and may lead through links)."""

    def __init__(self, root: str, owners: bool) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._shown = root
        self._owners = owners
        #: Modes and times of folders, set at the end: a read-only one must take its files first.
        self._folders: list[tuple[tuple[str, ...], tarfile.TarInfo]] = []
        self._skip = 1
        self.bytes_received = 0
        self.skipped: list[str] = []

    def __enter__(self) -> Unpacker:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    def tree(self, chunks: Iterator[bytes], name: str | None, rooted: bool = True) -> None:
        """All of the archive, the first component of each name replaced by *name* (None: left out).

        An archive of ``/`` is not *rooted*: its names have no common first component.
        """
        self._skip = 1 if rooted else 0
        try:
            source = cast(IO[bytes], _Source(chunks))
            with tarfile.open(fileobj=source, mode="r|", errorlevel=2) as archive:
                for row in archive:
                    self._entry(archive, row, name)
        except tarfile.TarError as error:
            raise AnswerInvalid(f"the archive from the daemon cannot be read: {error}") from error
        for parts, row in reversed(self._folders):
            with self._folder(parts) as fd:
                self._finish(fd, row)

    def _entry(self, archive: tarfile.TarFile, row: tarfile.TarInfo, name: str | None) -> None:
        parts = self._parts(row.name, name)
        if row.isdir():
            self._make_folder(parts, row)
            return
        if not parts:
            raise FileUnusable(
                f"{row.name[:200]!r} is no folder, its contents cannot be copied", remedy="Leave out the /. at the end."
            )
        with self._folder(parts[:-1]) as parent:
            self._leaf(archive, row, parent, parts[-1], name)

    def _leaf(self, archive: tarfile.TarFile, row: tarfile.TarInfo, parent: int, last: str, name: str | None) -> None:
        if row.isdev() and not row.isfifo():
            self.skipped.append(row.name)
            return
        with contextlib.suppress(FileNotFoundError):
            try:
                os.unlink(last, dir_fd=parent)
            except IsADirectoryError:
                raise FileUnusable(f"{self._shown}: the folder {last!r} is in the way of a file") from None
        if row.issym():
            os.symlink(row.linkname, last, dir_fd=parent)
            if self._owners:
                os.chown(last, row.uid, row.gid, dir_fd=parent, follow_symlinks=False)
        elif row.islnk():
            target = self._parts(row.linkname, name)
            with self._folder(target[:-1]) as held:
                os.link(target[-1], last, src_dir_fd=held, dst_dir_fd=parent, follow_symlinks=False)
        elif row.isfifo():
            os.mkfifo(last, row.mode & 0o777, dir_fd=parent)
        elif row.isfile():
            self._file(archive, row, parent, last)
        else:
            self.skipped.append(row.name)

    def _file(self, archive: tarfile.TarFile, row: tarfile.TarInfo, parent: int, last: str) -> None:
        fd = os.open(last, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        try:
            held = archive.extractfile(row)
            while held is not None and (data := held.read(CHUNK_BYTES)):
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                self.bytes_received += len(data)
            self._finish(fd, row)
        finally:
            os.close(fd)

    def _finish(self, fd: int, row: tarfile.TarInfo) -> None:
        """Owner before mode: a change of owner takes the set-uid bits away."""
        if self._owners:
            os.fchown(fd, row.uid, row.gid)
        os.fchmod(fd, row.mode & (0o7777 if self._owners else 0o777))
        with contextlib.suppress(OverflowError, ValueError):
            os.utime(fd, (row.mtime, row.mtime))

    def _make_folder(self, parts: tuple[str, ...], row: tarfile.TarInfo) -> None:
        if not parts:
            return
        with self._folder(parts[:-1]) as parent:
            try:
                os.mkdir(parts[-1], 0o700, dir_fd=parent)
            except FileExistsError:
                return  # as it is, as Docker leaves it
        self._folders.append((parts, row))

    def _parts(self, text: str, name: str | None) -> tuple[str, ...]:
        """The components of an archive's name, below the destination; refuses what leads out of it."""
        parts = [part for part in text.split("/") if part not in ("", ".")]
        if text.startswith("/") or ".." in parts or len(text.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
            raise AnswerInvalid(f"the archive holds the name {text[:120]!r}, which leads out of the destination")
        if any("\0" in part for part in parts):
            raise AnswerInvalid(f"the archive holds a name with a zero byte: {text[:120]!r}")
        kept = parts[self._skip :]
        return tuple(kept) if name is None else (name, *kept)

    @contextlib.contextmanager
    def _folder(self, parts: tuple[str, ...]) -> Generator[int]:
        """The folder at *parts* below the destination, made where it is not there, never reached through a link."""
        fd = os.dup(self._root)
        try:
            for part in parts:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=fd)
                try:
                    inner = os.open(part, _FOLDER, dir_fd=fd)
                except OSError as error:
                    raise AnswerInvalid(
                        f"the archive wants to write through {part[:120]!r}, which is no folder but a link or file"
                    ) from error
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)
