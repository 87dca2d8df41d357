"""System calls that Python 3.11 does not offer, through ctypes; each failure is an :class:`OSError` with its object.

The numbers of these calls are the same on every architecture that Linux runs on (they came after the tables
were unified, Linux 5.1), so none is named per machine. :func:`setns` and :func:`unshare` change the calling
*thread*; callers use them in a thread that ends afterwards, or in a single-threaded child.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 32, 4096, 8192, 16384
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8

OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC = 1, 1
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_SET_FD, FSCONFIG_CMD_CREATE = 0, 1, 5, 6
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_IDMAP = 0x00100000

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 1, 2, 4
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 8, 16

CLONE_VM, CLONE_VFORK = 0x100, 0x4000
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER = 4, 24, 38, 36

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 429, 430, 431, 432
_OPENAT2, _MOUNT_SETATTR = 437, 442

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _fail(what: str, path: object = None) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}", None if path is None else str(path))


def _check(result: int, what: str, path: object = None) -> int:
    if result < 0:
        raise _fail(what, path)
    return int(result)


def _bytes(value: str | os.PathLike[str] | bytes | None) -> bytes | None:
    return None if value is None else os.fsencode(value)


def _syscall(number: int, *arguments: object) -> int:
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return int(_libc.syscall(ctypes.c_long(number), *converted))


def mount(
    source: str | os.PathLike[str] | None,
    target: str | os.PathLike[str],
    kind: str | None,
    flags: int,
    options: str | None = None,
) -> None:
    """mount(2)."""
    result = _libc.mount(_bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags), _bytes(options))
    _check(result, f"mount {kind or hex(flags)} of {source} at {target}", target)


def umount2(target: str | os.PathLike[str], flags: int = 0) -> None:
    """umount2(2); never follows a symbolic link at the end of *target*."""
    _check(_libc.umount2(_bytes(target), flags | UMOUNT_NOFOLLOW), f"umount of {target}", target)


def open_tree(path: str | os.PathLike[str], flags: int, dir_fd: int = AT_FDCWD) -> int:
    """open_tree(2): a descriptor of a mount; with :data:`OPEN_TREE_CLONE` of a detached copy."""
    result = _syscall(_OPEN_TREE, dir_fd, _bytes(path), flags | OPEN_TREE_CLOEXEC)
    return _check(result, f"open_tree of {path or dir_fd}", path)


def move_mount(from_fd: int, target: str | os.PathLike[str] | int) -> None:
    """move_mount(2): attach the mount of *from_fd* at *target* (a path or a descriptor)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH
    if isinstance(target, int):
        result = _syscall(_MOVE_MOUNT, from_fd, b"", target, b"", flags | MOVE_MOUNT_T_EMPTY_PATH)
    else:
        result = _syscall(_MOVE_MOUNT, from_fd, b"", AT_FDCWD, _bytes(target), flags)
    _check(result, f"move_mount to {target}", target)


def mount_setattr(
    mount_fd: int,
    *,
    set_attributes: int = 0,
    clear_attributes: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
    recursive: bool = False,
) -> None:
    """mount_setattr(2) on the mount of *mount_fd*; :data:`MOUNT_ATTR_IDMAP` takes its map from *userns_fd*."""
    attributes = struct.pack("=QQQQ", set_attributes, clear_attributes, propagation, userns_fd)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    result = _syscall(_MOUNT_SETATTR, mount_fd, b"", flags, attributes, len(attributes))
    _check(result, f"mount_setattr (set {set_attributes:#x}, clear {clear_attributes:#x})", f"descriptor {mount_fd}")


def fsopen(kind: str) -> int:
    """fsopen(2): a descriptor of a file system that is to be configured."""
    return _check(_syscall(_FSOPEN, _bytes(kind), FSOPEN_CLOEXEC), f"fsopen of {kind}", kind)


def fsconfig_string(fs_fd: int, key: str, value: str) -> None:
    """fsconfig(2) FSCONFIG_SET_STRING; the kernel takes values of at most 255 bytes."""
    result = _syscall(_FSCONFIG, fs_fd, FSCONFIG_SET_STRING, _bytes(key), _bytes(value), 0)
    _check(result, f"fsconfig {key}={value[:80]}{_fs_log(fs_fd) if result < 0 else ''}", key)


def fsconfig_fd(fs_fd: int, key: str, number: int) -> None:
    """fsconfig(2) FSCONFIG_SET_FD."""
    result = _syscall(_FSCONFIG, fs_fd, FSCONFIG_SET_FD, _bytes(key), None, number)
    _check(result, f"fsconfig {key}=descriptor {number}", key)


def fsconfig_flag(fs_fd: int, key: str) -> None:
    """fsconfig(2) FSCONFIG_SET_FLAG."""
    _check(_syscall(_FSCONFIG, fs_fd, FSCONFIG_SET_FLAG, _bytes(key), None, 0), f"fsconfig {key}", key)


def fsconfig_create(fs_fd: int) -> None:
    """fsconfig(2) FSCONFIG_CMD_CREATE; the error holds what the kernel wrote to the context's log."""
    result = _syscall(_FSCONFIG, fs_fd, FSCONFIG_CMD_CREATE, None, None, 0)
    if result < 0:
        error = _fail("fsconfig create")
        raise OSError(error.errno, f"{error.strerror}{_fs_log(fs_fd)}")


def _fs_log(fs_fd: int) -> str:
    keep = ctypes.get_errno()
    lines: list[str] = []
    for _ in range(8):
        try:
            lines.append(os.read(fs_fd, 512).decode("utf-8", "replace").strip())
        except OSError:
            break
    ctypes.set_errno(keep)
    return f" ({'; '.join(lines)})" if lines else ""


def fsmount(fs_fd: int, attributes: int = 0) -> int:
    """fsmount(2): a descriptor of a detached mount of the configured file system."""
    return _check(_syscall(_FSMOUNT, fs_fd, FSMOUNT_CLOEXEC, attributes), "fsmount")


def openat2(dir_fd: int, path: str | bytes, flags: int, *, resolve: int, mode: int = 0) -> int:
    """openat2(2), close-on-exec; *resolve* is a set of ``RESOLVE_*``."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    result = _syscall(_OPENAT2, dir_fd, os.fsencode(path), how, len(how))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(path))
    return result


def setns(number: int, kind: int) -> None:
    """setns(2) of the calling thread."""
    _check(_libc.setns(number, kind), f"setns {kind:#x}", f"descriptor {number}")


def unshare(kind: int) -> None:
    """unshare(2) of the calling thread."""
    _check(_libc.unshare(kind), f"unshare {kind:#x}")


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    _check(_libc.pivot_root(_bytes(new), _bytes(old)), f"pivot_root to {new}", new)


def prctl(option: int, argument: int = 0) -> int:
    """prctl(2) with one argument."""
    zero = ctypes.c_ulong(0)
    return _check(_libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero), f"prctl {option}")


def clone_and_exit(flags: int) -> int:
    """A child with *flags* (``CLONE_NEW*``) that ran nothing but ``_exit(0)``: its pid, a zombie to be reaped.

    The child shares our memory (CLONE_VM) and the calling thread sleeps until it is gone (CLONE_VFORK), as in
    vfork(2); it runs libc's ``_exit`` alone, on a stack of its own, with every signal blocked by the caller.
    No Python runs in it, nothing is copied, and it cannot outlive us.
    """
    stack = ctypes.create_string_buffer(32768)
    # The stack grows down, and its top must be aligned to 16 bytes on every ABI that we run on.
    top = (ctypes.addressof(stack) + len(stack) - 64) & ~15
    exit_address = ctypes.cast(_libc._exit, ctypes.c_void_p)
    result = _libc.clone(
        exit_address, ctypes.c_void_p(top), ctypes.c_int(flags | CLONE_VM | CLONE_VFORK | 17), ctypes.c_void_p(0)
    )
    return _check(result, f"clone {flags:#x}")


def libc_function(name: str) -> Callable[..., int]:
    """The function *name* of libc, errno kept for :func:`last_error`."""
    function: Callable[..., int] = getattr(_libc, name)
    return function


def last_error(what: str, path: object = None) -> OSError:
    """The :class:`OSError` of the call that just failed in this thread."""
    return _fail(what, path)


def seal_inherited(lowest: int = 3) -> None:
    """Set close-on-exec on every descriptor from *lowest* up (close_range(2), Linux 5.11).

    A daemon calls it once at start: what its own parent left open must not reach containers' supervisors.
    """
    _check(_syscall(436, lowest, (1 << 32) - 1, 4), "close_range")
