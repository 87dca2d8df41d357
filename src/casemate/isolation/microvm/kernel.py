"""The guest kernels of one host: a kernel and an initramfs each, below ``<state>/kernels/<version>``.

Both files and the manifest with their digests are root's. They come as descriptors from casemated, which took them
out of a distribution's package; nothing of them is parsed here, and they run nowhere but in guests.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.host import durable
from casemate.isolation.microvm.errors import KernelMissing
from casemate.spec.errors import DiskFull, InvalidArgument

_VERSION = re.compile(r"[0-9][A-Za-z0-9.+~_-]{0,63}\Z")
#: A generic kernel has 8 MB, its initramfs 3 MB.
MAX_FILE_BYTES = 128 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """A kernel that is ready: its *version*, files, and their SHA-256."""

    version: str
    kernel: Path
    initramfs: Path
    digest: str
    #: Modules that this kernel does not have; the features that need them are refused.
    lacks: tuple[str, ...] = ()
    #: The digest of the agent in the initramfs; empty where nobody said.
    agent: str = ""


def adopt(
    kernels: Path, version: str, kernel_fd: int, initramfs_fd: int, *, lacks: Sequence[str] = (), agent: str = ""
) -> GuestKernel:
    """Copy two files to ``<kernels>/<version>``, whole or not at all; a version that is there is replaced.

    *agent*: the digest of the agent in the initramfs.

    Raises :class:`InvalidArgument` for what is no regular file within the bound, :class:`DiskFull`.
    """
    if not _VERSION.match(version):
        raise InvalidArgument(f"kernel version {version[:80]!r}")
    kernels.mkdir(parents=True, exist_ok=True, mode=0o755)
    target, temporary = kernels / version, kernels / f".{version}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o755)
    try:
        manifest: dict[str, object] = {"version": version, "lacks": list(lacks), "agent": agent}
        for (name, file), number in zip(_FILES, (kernel_fd, initramfs_fd), strict=True):
            manifest[name] = _copy(number, temporary / file)
        durable.write_atomic(temporary / "manifest.json", json.dumps(manifest).encode(), mode=0o444)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    except OSError as error:
        raise DiskFull(f"guest kernel {version}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    durable.sync_folder(kernels)
    return load(kernels, version)


def _copy(number: int, path: Path) -> str:
    """Copy a regular file's content; its SHA-256 as it was written."""
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MAX_FILE_BYTES:
        raise InvalidArgument(f"{path.name}: {status.st_size} bytes, allowed is a file of 1..{MAX_FILE_BYTES}")
    digest = hashlib.sha256()
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        offset = 0
        while offset < status.st_size and (data := os.pread(number, _CHUNK, offset)):
            offset += len(data)
            digest.update(data)
            os.write(out, data)
        os.fsync(out)
    finally:
        os.close(out)
    return digest.hexdigest()


_FILES = (("kernel", "vmlinuz"), ("initramfs", "initramfs"))


def load(kernels: Path, version: str) -> GuestKernel:
    """The prepared kernel *version*; :class:`KernelMissing` when there is none, or it is damaged."""
    folder = kernels / version
    if not _VERSION.match(version) or not folder.is_dir():
        raise KernelMissing(f"kernel {version[:80]!r} is not installed", remedy="casemate system kernel ls")
    try:
        manifest = json.loads(durable.read_bounded(folder / "manifest.json", 64 << 10))
        digests = {name: hashlib.sha256((folder / file).read_bytes()).hexdigest() for name, file in _FILES}
        if any(manifest[name] != digest for name, digest in digests.items()):
            raise KernelMissing(f"kernel {version}: its files do not have the digests of its manifest")
        digest = hashlib.sha256("".join(digests.values()).encode()).hexdigest()
        return GuestKernel(
            version, folder / "vmlinuz", folder / "initramfs", digest, tuple(manifest["lacks"]), str(manifest["agent"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KernelMissing(f"kernel {version}: {error}") from error


def installed(kernels: Path) -> list[str]:
    """The versions below *kernels*, the one that was prepared last first."""
    folders = [one for one in kernels.glob("*/manifest.json") if not one.parent.name.startswith(".")]
    return [one.parent.name for one in sorted(folders, key=lambda one: one.stat().st_mtime_ns, reverse=True)]


def lacks_of(kernels: Path, version: str) -> tuple[str, ...]:
    """The optional modules that *version* does not have, by its manifest; none when that cannot be read."""
    try:
        manifest = json.loads(durable.read_bounded(kernels / version / "manifest.json", 64 << 10))
        return tuple(str(one) for one in manifest["lacks"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def use(kernels: Path, version: str) -> GuestKernel:
    """Let *version* be the kernel of machines that are made from now on. :class:`KernelMissing`."""
    found = load(kernels, version)
    durable.write_atomic(kernels / _CHOSEN, version.encode(), mode=0o444)
    return found


def remove(kernels: Path, version: str) -> None:
    """Remove *version*; machines that run keep it. :class:`KernelMissing`."""
    if not _VERSION.match(version) or not (kernels / version).is_dir():
        raise KernelMissing(f"kernel {version[:80]!r} is not installed", remedy="casemate system kernel ls")
    shutil.rmtree(kernels / version)
    if _read_chosen(kernels) == version:
        (kernels / _CHOSEN).unlink(missing_ok=True)


def chosen(kernels: Path) -> GuestKernel:
    """The kernel of new machines: the one that was chosen, else the one prepared last. :class:`KernelMissing`."""
    versions = installed(kernels)
    if not versions:
        raise KernelMissing("no guest kernel is installed")
    named = _read_chosen(kernels)
    version = named if named in versions else versions[0]
    key = tuple(_identity(kernels / version / file) for file in ("manifest.json", "vmlinuz", "initramfs"))
    # Hashing 11 MB for each start would be a tenth of it; what is hashed once is known by its inodes and times.
    if key not in _KNOWN:
        _KNOWN.clear()
        _KNOWN[key] = load(kernels, version)
    return _KNOWN[key]


_CHOSEN = "chosen"
_KNOWN: dict[tuple[tuple[str, int, int, int], ...], GuestKernel] = {}


def _identity(path: Path) -> tuple[str, int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise KernelMissing(f"{path}: {error.strerror}") from error
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns


def _read_chosen(kernels: Path) -> str:
    try:
        return durable.read_bounded(kernels / _CHOSEN, 200).decode("ascii", "replace").strip()
    except OSError:
        return ""
