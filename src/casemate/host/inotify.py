"""Names that appear in a folder, on the loop: how conmon's exit files are seen at once and without polling."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path

from casemate.host import syscalls

_CLOSE_WRITE, _MOVED_TO, _DELETE, _DELETE_SELF = 0x8, 0x80, 0x200, 0x400
_Q_OVERFLOW, _IGNORED, _ONLYDIR = 0x4000, 0x8000, 0x01000000
_READ_BYTES = 1 << 16
#: Names held for a slow reader; beyond, it is told to look for itself (as when the kernel's queue overflows).
_MAX_WAITING = 4096


class FolderWatch:
    """Yields the names that were written or moved into one folder.

    ``None`` is yielded when events were lost: the reader lists the folder itself. A name may come twice.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loop = asyncio.get_running_loop()
        number = syscalls.libc_function("inotify_init1")(os.O_NONBLOCK | os.O_CLOEXEC)
        if number < 0:
            raise syscalls.last_error("inotify_init1")
        self._number = number
        mask = _CLOSE_WRITE | _MOVED_TO | _ONLYDIR
        if syscalls.libc_function("inotify_add_watch")(number, os.fsencode(folder), mask) < 0:
            error = syscalls.last_error(f"watching {folder}", folder)
            os.close(number)
            raise error
        self._waiting: asyncio.Queue[str | None] = asyncio.Queue()
        self._lost = False
        self._loop.add_reader(number, self._on_readable)

    def close(self) -> None:
        """Stop watching; may be called twice."""
        if self._number >= 0:
            self._loop.remove_reader(self._number)
            os.close(self._number)
            self._number = -1

    async def names(self) -> AsyncIterator[str | None]:
        """The names, for ever (until the watcher's task is cancelled)."""
        while True:
            name = await self._waiting.get()
            if name is None:
                self._lost = False
            yield name

    def _on_readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for name in parse_events(os.read(self._number, _READ_BYTES)):
                self._put(name)

    def _put(self, name: str | None) -> None:
        if name is not None and self._waiting.qsize() < _MAX_WAITING:
            self._waiting.put_nowait(name)
        elif not self._lost:
            self._lost = True
            self._waiting.put_nowait(None)


def parse_events(data: bytes) -> list[str | None]:
    """The names in a buffer of inotify(7) events; None for an overflow or the end of the folder."""
    names: list[str | None] = []
    offset = 0
    while offset + 16 <= len(data):
        _, mask, _, size = struct.unpack_from("=iIII", data, offset)
        raw = data[offset + 16 : offset + 16 + size].rstrip(b"\0")
        offset += 16 + size
        if mask & (_Q_OVERFLOW | _IGNORED):
            names.append(None)
        elif raw:
            names.append(os.fsdecode(raw))
    return names
