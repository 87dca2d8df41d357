"""Reading a container's log: from the descriptors that hostd hands out, read only, with tail, times and following.

Rotation: hostd hands the older file and the newer one. While following, a file that stops growing is compared with
those that hostd has now; one that was rotated away has been read to its end, and reading goes on in those after it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec

from casemate.hostd.protocol import ContainerLog
from casemate.node.core import Core
from casemate.node.errors import TooMany
from casemate.node.logformat import Line, Splitter, tail_offset
from casemate.node.rows import ALIVE, ContainerRow, select
from casemate.spec.errors import CasemateError

CHUNK_BYTES = 64 << 10
POLL_S = 0.1
#: Polls without growth between two questions to hostd whether the file is still the one (1 s).
CHECK_EVERY = 10
MAX_FOLLOWERS = 256


class Wanted(msgspec.Struct, frozen=True):
    """What of the log is asked for; *tail* None is all of it."""

    tail: int | None = None
    since: float = 0.0
    until: float = float("inf")
    stdout: bool = True
    stderr: bool = True
    follow: bool = False

    def takes(self, line: Line) -> bool:
        """Whether *line* is among it; the time is only parsed where it matters."""
        if not (self.stdout if line.stream == 1 else self.stderr):
            return False
        if not self.since and self.until == float("inf"):
            return True
        return self.since <= line.at <= self.until


@dataclass(slots=True)
class _Files:
    """Open files of one log, the older first."""

    descriptors: list[int]

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())


async def read(core: Core, container: str, wanted: Wanted) -> AsyncIterator[Line]:
    """Lines in the order of their writing; with *follow* until the container has ended and all was read."""
    if core.log_readers >= MAX_FOLLOWERS:
        raise TooMany(f"{MAX_FOLLOWERS} clients read logs already")
    core.log_readers += 1
    files = _Files([])
    try:
        row = await _row(core, container)
        if row is None or not (row.made or row.intent_at):
            return
        try:
            files = await _open(core, container)
        except CasemateError as error:
            if error.to_problem()["code"] != "hostd.container_missing":
                raise
            return  # its first start failed, and hostd took everything back: nothing was ever written
        offsets = await asyncio.to_thread(_offsets, files.descriptors, wanted.tail)
        for descriptor, offset in zip(files.descriptors[:-1], offsets, strict=False):
            async for line in _whole(descriptor, offset, wanted):
                yield line
        if files.descriptors:
            async for line in _growing(core, container, files, offsets[-1], wanted):
                yield line
    finally:
        core.log_readers -= 1
        files.close()


async def _growing(core: Core, container: str, files: _Files, offset: int, wanted: Wanted) -> AsyncIterator[Line]:
    splitter, idle = Splitter(), 0
    while True:
        # The state is looked at before the file: what was written before the end is then in the file.
        row = await _row(core, container)
        is_alive = row is not None and (row.status in ALIVE or row.status == "restarting")
        grown = False
        while data := await asyncio.to_thread(os.pread, files.descriptors[-1], CHUNK_BYTES, offset):
            offset += len(data)
            grown = True
            for line in splitter.feed(data):
                if wanted.takes(line):
                    yield line
        if not wanted.follow or core.clock() > wanted.until:
            return
        if grown:
            idle = 0
            continue
        idle += 1
        # A file that stops growing may have been rotated away: asked at once, then now and then, and at the end.
        if row is not None and (idle == 1 or idle % CHECK_EVERY == 0 or not is_alive):
            later = await _later_files(core, container, files)
            if later.descriptors:
                for descriptor in later.descriptors[:-1]:
                    async for line in _whole(descriptor, 0, wanted):
                        yield line
                files.descriptors, later.descriptors = later.descriptors, files.descriptors
                later.close()
                splitter, offset, idle = Splitter(), 0, 0
                continue
        if not is_alive:
            return
        await asyncio.sleep(POLL_S)


async def _later_files(core: Core, container: str, files: _Files) -> _Files:
    """The files that came after the newest of *files*; none when that is still the one that is written."""
    try:
        found = await _open(core, container)
    except CasemateError:
        return _Files([])  # it was removed meanwhile, or hostd is away: what there was has been read
    for number, descriptor in enumerate(found.descriptors):
        if _same(descriptor, files.descriptors[-1]):
            for seen in found.descriptors[: number + 1]:
                os.close(seen)
            found.descriptors = found.descriptors[number + 1 :]
            break
    return found


async def _whole(descriptor: int, offset: int, wanted: Wanted) -> AsyncIterator[Line]:
    splitter = Splitter()
    while data := await asyncio.to_thread(os.pread, descriptor, CHUNK_BYTES, offset):
        offset += len(data)
        for line in splitter.feed(data):
            if wanted.takes(line):
                yield line


def _offsets(descriptors: list[int], tail: int | None) -> list[int]:
    """Where to begin in each file so that *tail* lines come, the newest file first."""
    if tail is None:
        return [0] * len(descriptors)
    offsets: list[int] = []
    left = tail
    for descriptor in reversed(descriptors):
        size = os.fstat(descriptor).st_size
        offset, found = tail_offset(lambda length, at, d=descriptor: os.pread(d, length, at), size, left)  # type: ignore[misc]
        offsets.append(offset if left else size)
        left = max(0, left - found)
    return offsets[::-1]


def _same(one: int, other: int) -> bool:
    a, b = os.fstat(one), os.fstat(other)
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


async def _open(core: Core, container: str) -> _Files:
    answered = await core.hostd.call(ContainerLog(container))
    return _Files(answered.take())


async def _row(core: Core, container: str) -> ContainerRow | None:
    found = await core.db.read(lambda db: select(db, ContainerRow, "WHERE id=?", container))
    return found[0] if found else None
