"""Paths that others may have prepared: resolved by the kernel against a root descriptor, never by prefix checks.

Two ways to read an untrusted tree: *beneath* (any symbolic link, ``..`` out, mount crossing or magic link is an
error) for what is ours; *in root* (links are followed, but as if the root were ``/``) for a container's files.
Both are openat2(2), Linux 5.6. The third way, :func:`open_as`, opens a host path with another user's rights.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from casemate.host import programs, syscalls
from casemate.spec.errors import InvalidArgument, NotFound, PermissionDenied

_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
_IN_ROOT = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
#: The kernel retries a lookup that a rename disturbed and then says EAGAIN; an attacker may renew that for ever.
_TRIES = 32
_OPENER = Path(__file__).with_name("opener_child.py")
#: A hung network file system must not hold us.
_OPEN_TIMEOUT_S = 10.0


class PathUnsafe(InvalidArgument):
    code = "host.path_unsafe"
    title = "A path leaves the folder that it must stay in"
    remedy = "Give a path without symbolic links and `..` that lead outside."


def open_root(path: Path) -> int:
    """An O_PATH descriptor of the folder *path*, for the calls below; the caller closes it."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def open_beneath(root_fd: int, path: str, flags: int, mode: int = 0, *, cross_mounts: bool = False) -> int:
    """Open *path* below *root_fd*; no symbolic link in any part. Raises :class:`PathUnsafe`, ``OSError``."""
    return _open(root_fd, path, flags, _BENEATH | (0 if cross_mounts else syscalls.RESOLVE_NO_XDEV), mode)


def open_in_root(root_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """Open *path* as a process chrooted to *root_fd* would: links are followed, and cannot lead out."""
    return _open(root_fd, path.lstrip("/") or ".", flags, _IN_ROOT, mode)


def _open(root_fd: int, path: str, flags: int, resolve: int, mode: int) -> int:
    if "\0" in path or len(path) > 4095:
        raise PathUnsafe(f"path {path[:100]!r} holds a null byte, or has more than 4095 bytes")
    for attempt in range(_TRIES):
        try:
            return syscalls.openat2(root_fd, path, flags, resolve=resolve, mode=mode)
        except OSError as error:
            if error.errno == errno.EAGAIN and attempt + 1 < _TRIES:
                continue
            if error.errno in (errno.EXDEV, errno.ELOOP, errno.EAGAIN):
                raise PathUnsafe(f"path {path[:200]!r}: {os.strerror(error.errno)}", path=path[:200]) from error
            raise
    raise AssertionError("the last try returns or raises")


def make_folders(root_fd: int, path: str, mode: int = 0o755, owner: tuple[int, int] | None = None) -> int:
    """``mkdir -p`` of *path* below *root_fd*, no link followed: an O_PATH descriptor of the last folder.

    Only folders that are made here get *mode* and *owner*.
    """
    current = os.dup(root_fd)
    try:
        for part in path.split("/"):
            if part in ("", "."):
                continue
            if part == "..":
                raise PathUnsafe(f"path {path[:200]!r} holds '..'")
            try:
                following = open_beneath(current, part, os.O_PATH | os.O_DIRECTORY, cross_mounts=True)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=current)
                following = open_beneath(current, part, os.O_RDONLY | os.O_DIRECTORY, cross_mounts=True)
                os.fchmod(following, mode)
                if owner is not None:
                    os.fchown(following, *owner)
            except NotADirectoryError as error:
                raise PathUnsafe(f"path {path[:200]!r}: {part!r} is no folder") from error
            os.close(current)
            current = following
    except BaseException:
        os.close(current)
        raise
    return current


def read_in_root(root_fd: int, path: str, max_bytes: int) -> bytes:
    """At most *max_bytes* of a regular file inside *root_fd*; never waits on a FIFO or a device."""
    number = open_in_root(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not is_regular(number):
            raise PathUnsafe(f"{path[:200]!r} is not a regular file")
        parts: list[bytes] = []
        while max_bytes > 0 and (data := os.read(number, min(max_bytes, 1 << 20))):
            parts.append(data)
            max_bytes -= len(data)
        return b"".join(parts)
    finally:
        os.close(number)


def is_regular(number: int) -> bool:
    """Whether the descriptor is of a regular file."""
    return os.fstat(number).st_mode & 0o170000 == 0o100000


async def open_as(uid: int, gid: int, groups: Sequence[int], path: str, *, write: bool = False) -> int:
    """An O_PATH descriptor of the host's *path*, opened with the rights of that user; the caller closes it.

    The user must be able to reach it, to read it (and to search it, if it is a folder), and with *write* to write
    it: O_PATH alone would only ask for the way there, and a bind hands out more than that.
    A short-lived child gives up root for good (all three ids, the groups, every capability, no_new_privs), then
    opens, and hands the descriptor over. What was checked is what is returned: no later rename or link changes
    it. A thread with its own fsuid was rejected: its real uid stays 0, which FUSE, /proc and the sysctl tree ask
    for; with all ids changed it could be signalled by the user. Raises :class:`PermissionDenied`,
    :class:`NotFound`, :class:`InvalidArgument`.
    """
    if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > 4095:
        raise InvalidArgument(f"host path {path[:200]!r} is not absolute, or is too long")
    if uid == 0:
        return _translate(lambda: os.open(path, os.O_PATH | os.O_CLOEXEC), path, uid)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        who = [str(uid), str(gid), ",".join(map(str, groups))]
        argv = [sys.executable, "-I", "-S", str(_OPENER), *who, "write" if write else "read", path]
        done = await programs.run(argv, timeout_s=_OPEN_TIMEOUT_S, pass_fds={3: theirs.fileno()}, check=False)
        if done.returncode != 0:
            raise programs.failure(done)
        ours.setblocking(False)
        # Not socket.recv_fds: Python 3.11's drops its flags, and the descriptor would reach every program we start.
        data, ancillary, _, _ = ours.recvmsg(64, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        if ancillary:
            return int.from_bytes(ancillary[0][2][:4], sys.byteorder)
        number = int(data)

    def refuse() -> int:
        raise OSError(number, os.strerror(number), path)

    return _translate(refuse, path, uid)


def _translate(function: object, path: str, uid: int) -> int:
    assert callable(function)
    try:
        number = function()
    except FileNotFoundError as error:
        raise NotFound(f"host path {path[:300]!r} does not exist", remedy="Create it, or correct the path.") from error
    except PermissionError as error:
        raise PermissionDenied(
            f"host path {path[:300]!r} is not open to uid {uid}",
            remedy="Use a path that you can reach yourself: host paths are opened with the caller's rights.",
        ) from error
    except OSError as error:
        raise InvalidArgument(f"host path {path[:300]!r}: {error.strerror}") from error
    assert isinstance(number, int)
    return number
