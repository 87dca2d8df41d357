"""The scratch file of a micro-VM's container: a file system in a sparse file, which is its writable layer.

It is made empty here, and from then on belongs to guests: hostd never mounts it and reads nothing of it. Its descriptor
goes to QEMU; a guest that was killed has left a journal, by which the next one brings it in order.
"""

from __future__ import annotations

import os
from pathlib import Path

from casemate.host import programs
from casemate.host.netns import in_own_thread
from casemate.isolation.microvm import bundles
from casemate.isolation.microvm.errors import ScratchUnfit
from casemate.spec.errors import DiskFull

#: The file in a container's state folder.
NAME = f"writable{bundles.SCRATCH_SUFFIX}"
#: Below, journal and tables (4 MiB) leave hardly anything.
LEAST_BYTES, MOST_BYTES = 16 << 20, 16 << 40
_MKFS_TIMEOUT_S, _COPY_TIMEOUT_S = 60.0, 60.0
_CHUNK = 1 << 20
#: Tables are written when they are first needed, and space for growth is not: 200 KB instead of 100 MB for 10 GiB.
_MKFS = (
    *("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-J", "size=4", "-O", "^resize_inode"),
    *("-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"),
)


def check_size(size_bytes: int) -> None:
    """:class:`ScratchUnfit` for what no scratch file can have."""
    if not LEAST_BYTES <= size_bytes <= MOST_BYTES:
        raise ScratchUnfit(
            f"a writable layer of {size_bytes} bytes; at level microvm allowed are {LEAST_BYTES} to {MOST_BYTES}",
            size_bytes=size_bytes,
        )


async def make(templates: Path, path: Path, size_bytes: int) -> None:
    """An empty file system of *size_bytes* at *path*, copied from the one of this size below *templates*.

    Whole or not at all. Raises :class:`ScratchUnfit`, :class:`~casemate.spec.errors.DiskFull`.
    """
    check_size(size_bytes)
    model = templates / f"scratch-{size_bytes}{bundles.SCRATCH_SUFFIX}"
    temporary = path.with_suffix(".tmp")
    try:
        if not model.exists():
            await _format(model, size_bytes)
        await in_own_thread(lambda: _copy_data(model, temporary), timeout_s=_COPY_TIMEOUT_S)
        temporary.rename(path)
    except OSError as error:
        raise DiskFull(f"the scratch file of {size_bytes} bytes: {error.strerror}", path=str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


async def _format(model: Path, size_bytes: int) -> None:
    model.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A name of its own: two starts may be the first at once.
    made = model.with_suffix(f".{os.getpid()}.{id(model):x}.tmp")
    try:
        made.touch(mode=0o600)
        os.truncate(made, size_bytes)
        await programs.run([*_MKFS, str(made)], timeout_s=_MKFS_TIMEOUT_S)
        made.rename(model)
    except programs.ProgramMissing as error:
        raise ScratchUnfit(f"a writable layer on disk takes mkfs.ext4: {error.detail}") from error
    finally:
        made.unlink(missing_ok=True)


def _copy_data(source: Path, target: Path) -> None:
    """Copy a sparse file: its data, not its holes."""
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        writing = os.open(target, flags, 0o600)
        try:
            size = os.fstat(reading).st_size
            os.ftruncate(writing, size)
            end = 0
            while end < size and (start := _next_data(reading, end)) is not None:
                end = os.lseek(reading, start, os.SEEK_HOLE)
                for offset in range(start, end, _CHUNK):
                    _write_all(writing, os.pread(reading, min(_CHUNK, end - offset), offset), offset)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _next_data(number: int, offset: int) -> int | None:
    try:
        return os.lseek(number, offset, os.SEEK_DATA)
    except OSError:  # ENXIO: nothing but a hole is left
        return None


def _write_all(number: int, data: bytes, offset: int) -> None:
    while data:
        done = os.pwrite(number, data, offset)
        data, offset = data[done:], offset + done
