"""Files that are mostly holes: a guest's memory, of which a boot touches a few percent however large it is.

Only what is there is read, hashed, written and kept; a hole costs nothing, whether 128 MiB or 64 GiB lie around it. The
digest is of the content, not of where the holes are: pages of zeros count as none, in either file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from casemate.spec.errors import Corrupt

_CHUNK, _PAGE = 1 << 20, 4096
_ZEROS = bytes(_CHUNK)
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class TemplateDamaged(Corrupt):
    code = "microvm.template_damaged"
    title = "A template's files do not match its manifest"
    remedy = "It is made anew by itself; check the disk if this comes back."


def copy_out(number: int, path: Path) -> str:
    """Copy the file *number* to a new one at *path*, synced, with holes for its zeros; the content's digest."""
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        digest = _copy(number, out)
        os.fsync(out)
    finally:
        os.close(out)
    return digest


def sealed(path: Path, digest: str, most_bytes: int) -> int:
    """A memfd with the content of *path*, sealed when size and digest are right; :class:`TemplateDamaged` otherwise."""
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    number = os.memfd_create("casemate-template", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        size = os.fstat(source).st_size
        if size > most_bytes:
            raise TemplateDamaged(f"{path} has {size} bytes, allowed are {most_bytes}")
        found = _copy(source, number)
        if found != digest:
            raise TemplateDamaged(f"{path} has the digest {found}, the manifest says {digest}")
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, _SEALS)
        return number
    except BaseException:
        os.close(number)
        raise
    finally:
        os.close(source)


def _copy(source: int, out: int) -> str:
    """Write the runs of *source* into the empty *out*, which gets its size: SHA-256 of the size and of each run.

    Before each run stand where it begins and how long it is, so that the same bytes elsewhere are another content.
    """
    size = os.fstat(source).st_size
    digest = hashlib.sha256(struct.pack("<Q", size))
    os.ftruncate(out, size)
    for offset, data in runs(source, size):
        digest.update(struct.pack("<QQ", offset, len(data)))
        digest.update(data)
        os.pwrite(out, data, offset)
    return digest.hexdigest()


def runs(number: int, size: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of each run of pages that are not all zeros, in order; none crosses a boundary of 1 MiB.

    Moves the file's offset. Where a file system knows no holes, all of it is read, to the same result.
    """
    at = 0
    while at < size:
        try:
            at = os.lseek(number, at, os.SEEK_DATA) & ~(_CHUNK - 1)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        data = os.pread(number, min(_CHUNK, size - at), at)
        if data != _ZEROS[: len(data)]:
            yield from _pages(data, at)
        at += _CHUNK


def _pages(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    zero = _ZEROS[:_PAGE]
    start: int | None = None
    for at in range(0, len(data) + _PAGE, _PAGE):
        page = data[at : at + _PAGE]
        if page and page != zero[: len(page)]:
            start = at if start is None else start
        elif start is not None:
            yield offset + start, data[start:at]
            start = None
