"""The folder that metadata stand in, for who publishes: read whole, changed whole. Used by the command line alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Generator
from pathlib import Path

from casemate.spec.errors import DiskFull
from casemate.trust.freshness.errors import RepositoryBusy, RepositoryInvalid
from casemate.trust.freshness.roles import MAX_TEAMS, STAGED, Change

MAX_FILE_BYTES = 5_000_000
#: Every role, each also staged, and each root that ever was.
MAX_FILES = 2 * MAX_TEAMS + 1000
LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: str) -> Generator[Path]:
    """Hold *folder* alone; raises :class:`RepositoryBusy` when another command does."""
    path = Path(folder)
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RepositoryInvalid(f"{folder}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RepositoryBusy(f"{folder} is in use") from error
        yield path
    finally:
        os.close(descriptor)


def read(folder: Path) -> dict[str, bytes]:
    """The metadata in *folder*, staged ones under ``staged/``; old roots (``N.root.json``) are left out."""
    found: dict[str, bytes] = {}
    for path in [*folder.glob("*.json"), *(folder / STAGED).glob("*.json")]:
        name = str(path.relative_to(folder))
        if name.partition(".")[0].isdigit():
            continue
        if len(found) >= MAX_FILES:
            raise RepositoryInvalid(f"{folder} holds more than {MAX_FILES} files")
        with path.open("rb") as stream:
            found[name] = stream.read(MAX_FILE_BYTES + 1)
        if len(found[name]) > MAX_FILE_BYTES:
            raise RepositoryInvalid(f"{path} has more than {MAX_FILE_BYTES} bytes")
    return found


def write(folder: Path, change: Change) -> None:
    """Do *change*, the timestamp last: until then a client sees what was there before, whole.

    A crash between two files leaves newer targets under an older snapshot; clients refuse that, and the same command
    once more heals it, since what was staged is removed at the very end.
    """
    try:
        (folder / STAGED).mkdir(mode=0o755, exist_ok=True)
        for name, data in change.files.items():
            if data is not None:
                _write(folder / name, data)
        for name, data in change.files.items():
            if data is None:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (28, 122):
            raise DiskFull(f"writing {folder}: {error.strerror}") from error
        raise RepositoryInvalid(f"writing {folder}: {error.strerror}") from error


def _write(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
