"""Files that are either the old or the new one, whenever the power goes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from casemate.spec.errors import DiskFull, LimitExceeded

_ENOSPC = (28, 122)  # ENOSPC, EDQUOT


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, sync: bool = True) -> None:
    """Replace *path* by *data*: a temporary file beside it, fsync, rename, fsync of the folder.

    With ``sync=False`` the file is still replaced in one step, but a power cut may lose it (for what a reboot
    voids anyway). Raises :class:`DiskFull`, with nothing left behind, when the device is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(number, view) :]
            os.fchmod(number, mode)
            if sync:
                os.fsync(number)
        finally:
            os.close(number)
        temporary.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if error.errno in _ENOSPC:
            raise DiskFull(f"{path}: no space for {len(data)} bytes", path=str(path)) from error
        raise
    if sync:
        sync_folder(path.parent)


def remove(path: Path, *, sync: bool = True) -> None:
    """Remove the file *path* if it is there, so that it stays removed."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        if sync:
            sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in *path* durable."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """All of *path*, or :class:`LimitExceeded` when it is longer than *max_bytes*."""
    with path.open("rb", buffering=0) as file:
        parts: list[bytes] = []
        left = max_bytes + 1
        while left > 0 and (data := file.read(min(left, 1 << 20))):
            parts.append(data)
            left -= len(data)
    if left <= 0:
        raise LimitExceeded(f"{path} is longer than {max_bytes} bytes", path=str(path), limit=max_bytes)
    return b"".join(parts)
