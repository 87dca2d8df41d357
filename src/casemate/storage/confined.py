"""File work on untrusted trees, done by a confined child (:mod:`casemate.storage.confined_child`).

hostd names the tree and the task, hands over descriptors, and waits; it never reads what flows through them.
The child is the pod's root in the pod's own user namespace, chrooted to the tree in a mount namespace of its
own, without network, with capabilities for files only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from casemate.host import programs, safe_path
from casemate.spec.errors import DiskFull, InvalidArgument, NotFound

_CHILD = Path(__file__).with_name("confined_child.py")
#: Bounds of one call: enough for the largest trees that people have, finite for those that attackers make.
MAX_ENTRIES = 5_000_000
MAX_BYTES = 1 << 45
_CPU_S = 3600
#: Address space: the interpreter, tarfile's buffers, and the bookkeeping of hard links in a tree of that size.
_MEMORY_BYTES = 2 << 30
TIMEOUT_S = 4 * 3600.0


class TreeRefused(InvalidArgument):
    code = "storage.tree_refused"
    title = "Files could not be copied into or out of the container"
    remedy = "The detail names the entry; correct the archive or the path."


class PathMissing(NotFound):
    code = "storage.path_missing"
    title = "No such path in the container"
    remedy = "Look with `casemate exec NAME ls`, or `casemate diff NAME`."


async def archive(
    root: Path,
    userns_fd: int | None,
    path: str,
    out: int,
    *,
    follow: bool = False,
    mount_namespace: int | tuple[int, int] | None = None,
    cgroup_procs: Sequence[str] = (),
) -> None:
    """Stream a tar of *path* inside *root* into the descriptor *out*; ``/`` for all of it.

    *userns_fd*: the pod's namespace; None only for a pod that runs in the host's. *cgroup_procs*: files of the
    pod's cgroup that the child puts itself into, so that the pod pays. *mount_namespace*: a descriptor of a running
    container's (``/proc/<pid>/ns/mnt``); *path* is then looked up as that container sees it, with its volumes.
    Raises :class:`PathMissing`, :class:`TreeRefused`. A reader that closes its end ends the work without an error.
    """
    task: dict[str, object] = {"task": "archive", "path": path, "follow": follow, "cgroup_procs": list(cgroup_procs)}
    await _run(root, userns_fd, task, stdout=out, mount_namespace=mount_namespace)


async def extract(
    root: Path,
    userns_fd: int | None,
    path: str,
    source: int,
    *,
    keep_folders: bool = True,
    owner: tuple[int, int] | None = None,
    max_bytes: int = MAX_BYTES,
    mount_namespace: int | tuple[int, int] | None = None,
    cgroup_procs: Sequence[str] = (),
) -> None:
    """Unpack the tar read from the descriptor *source* into the folder *path* inside *root*.

    *owner*: (uid, gid) for every entry, as `docker cp` does; None takes the tar's. *keep_folders*: a file never
    replaces a folder nor the other way round. *mount_namespace* and *cgroup_procs* as for :func:`archive`.
    Raises :class:`TreeRefused` (with the entry's name; what was unpacked before it stays), :class:`DiskFull`.
    """
    task: dict[str, object] = {"task": "extract", "path": path, "keep_folders": keep_folders, "owner": owner}
    task |= {"max_bytes": max_bytes, "cgroup_procs": list(cgroup_procs)}
    await _run(root, userns_fd, task, stdin=source, mount_namespace=mount_namespace)


async def diff(root: Path, userns_fd: int | None, lower_fd: int, upper: Path, out: int) -> None:
    """Write ``A|C|D /path`` lines, each ended by a null byte, into *out*.

    *lower_fd*: a descriptor of the layers without the upper folder (:func:`casemate.storage.rootfs.lower_fd`).
    """
    number = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        await _run(root, userns_fd, {"task": "diff"}, stdout=out, fds={4: lower_fd, 5: number})
    finally:
        os.close(number)


async def copy_up(root: Path, userns_fd: int | None, path: str, volume_fd: int) -> None:
    """Copy the content of the folder *path* inside *root* into the empty volume of *volume_fd*.

    *volume_fd*: a descriptor of its idmapped copy (:meth:`casemate.storage.volumes.Volumes.clone_fd`). Must not be
    called while the container runs. A folder that is missing or empty (most are) takes no child: 0.1 ms, not 50.
    """
    if _nothing_to_copy(root, path, volume_fd):
        return
    await _run(root, userns_fd, {"task": "copy_up", "path": path}, fds={4: volume_fd})


def _nothing_to_copy(root: Path, path: str, volume_fd: int) -> bool:
    """Whether *path* has no content; the volume then has the folder's owner and mode (a database's own, say)."""
    root_fd = safe_path.open_root(root)
    try:
        number = safe_path.open_in_root(root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError, safe_path.PathUnsafe):
        return True
    finally:
        os.close(root_fd)
    try:
        with os.scandir(number) as entries:
            if next(entries, None) is not None:
                return False
        status = os.fstat(number)
        os.fchown(volume_fd, status.st_uid, status.st_gid)
        os.fchmod(volume_fd, status.st_mode & 0o7777)
        return True
    finally:
        os.close(number)


async def usage(
    root: Path, userns_fd: int | None, path: str = "/", *, max_entries: int = MAX_ENTRIES
) -> tuple[int, int]:
    """(bytes on disk, entries) of *path* inside *root*."""
    done = await _run(root, userns_fd, {"task": "usage", "path": path, "max_entries": max_entries})
    total, entries = done.stdout.split()
    return int(total), int(entries)


async def _run(
    root: Path,
    userns_fd: int | None,
    task: Mapping[str, object],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    fds: Mapping[int, int] | None = None,
    mount_namespace: int | tuple[int, int] | None = None,
) -> programs.Completed:
    bounds = {"max_entries": MAX_ENTRIES, "max_bytes": MAX_BYTES, "cpu_s": _CPU_S, "memory_bytes": _MEMORY_BYTES}
    document = {**bounds, **task, "root": str(root), "userns": userns_fd is not None}
    given = (mount_namespace,) if isinstance(mount_namespace, int) else mount_namespace or ()
    document |= {"mount_namespace": bool(given), "namespace_root": len(given) == 2}
    extra = {**(fds or {}), **dict(zip((6, 7), given, strict=False))}
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        done = await programs.run(
            [sys.executable, "-I", "-S", str(_CHILD), json.dumps(document)],
            timeout_s=TIMEOUT_S,
            stdin=stdin,
            stdout=stdout,
            max_output_bytes=4096,
            pass_fds={3: null if userns_fd is None else userns_fd, **extra},
            check=False,
        )
    finally:
        os.close(null)
    words = done.stderr.decode("utf-8", "replace").strip()
    match done.returncode:
        case 0 | 6:
            return done
        case 3:
            raise TreeRefused(words)
        case 4:
            raise PathMissing(words)
        case 5:
            raise DiskFull(words)
        case _:
            raise programs.failure(done)
