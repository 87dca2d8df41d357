"""Folders and files of the host in a machine: attached below ``/share`` of its QEMU's own mount namespace.

QEMU's 9p server sees nothing but what is attached there: a detached copy of each named folder's mount, with the
bundle's flags, made by us and moved into the jail. What is not attached cannot be reached by any path, link or
``..`` of the guest's, nor by a QEMU that the guest has taken over. Owners are those of QEMU's user namespace: what a
guest's uid N writes belongs to the host id that the bundle maps N to.

The mounts go with QEMU, whoever was killed in between. Source: user_namespaces(7), mount_setattr(2), move_mount(2).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.host import pidfd, syscalls, userns
from casemate.host.netns import in_own_thread
from casemate.isolation.microvm import mountflags
from casemate.isolation.microvm.errors import MonitorFailed, ShareFailed
from casemate.spec.errors import CasemateError

#: Where the jail keeps them (shim/jail.c); QEMU's 9p server is started on it.
FOLDER = "/share"
#: Bound on one machine's: the jail's tmpfs has 1,024 entries.
MAX_SHARES = 500
_CLONE_FS = 0x200
Rows = tuple[tuple[int, int, int], ...]
_TIMEOUT_S = 10.0
_ATTRIBUTES = {
    "ro": syscalls.MOUNT_ATTR_RDONLY,
    "nosuid": syscalls.MOUNT_ATTR_NOSUID,
    "noexec": syscalls.MOUNT_ATTR_NOEXEC,
}


def root_name(container: str) -> str:
    """The name of the share that is the container's root. Names of its other shares end in a number."""
    return f"{container}.root"


@dataclass(frozen=True, slots=True)
class Share:
    """*name* in the shared folder, *source* on the host, the mount *options* of the bundle.

    A name of two parts ends as the source does: that is what the guest's mountinfo shows, and tools read there.
    """

    name: str
    source: Path
    options: tuple[str, ...] = ()
    #: The mount's own map of owners: rows of (id on disk, id on the host, count), for users and for groups.
    idmap: tuple[Rows, Rows] | None = None


@dataclass(slots=True)
class Opened:
    """A share whose mount is copied: *fd* of the detached mount, whether it is a folder. Closed by :func:`close`."""

    name: str
    fd: int
    folder: bool


def open_all(shares: Sequence[Share]) -> list[Opened]:
    """Copy the mount of each share's source, with its flags set. :class:`ShareFailed` names the one that cannot be."""
    opened: list[Opened] = []
    try:
        for share in shares:
            opened.append(_open(share))
    except BaseException:
        close(opened)
        raise
    return opened


def close(opened: Sequence[Opened]) -> None:
    for one in opened:
        os.close(one.fd)


def _open(share: Share) -> Opened:
    recursive = "rbind" in share.options or "bind" not in share.options
    flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if recursive else 0)
    try:
        number = syscalls.open_tree(share.source, flags)
    except OSError as error:
        raise ShareFailed(f"{share.source}: {os.strerror(error.errno or 0)}", source=str(share.source)) from error
    try:
        mode = os.fstat(number).st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            what = "a socket" if stat.S_ISSOCK(mode) else "a device or a pipe"
            raise ShareFailed(f"{share.source} is {what}; only folders and regular files can be shared with a guest")
        # The host's device nodes stay the host's: in the guest they are numbers of its own kernel.
        wanted = syscalls.MOUNT_ATTR_NODEV
        plain = [mountflags.plain(option) for option in share.options]
        for option, attribute in _ATTRIBUTES.items():
            wanted |= attribute if option in plain else 0
        follow = any(option in share.options for option in ("rslave", "slave", "rshared", "shared"))
        propagation = syscalls.MS_SLAVE if follow else syscalls.MS_PRIVATE
        syscalls.mount_setattr(number, set_attributes=wanted, propagation=propagation, recursive=recursive)
        if share.idmap is not None:
            _map_owners(number, share.idmap, recursive="ridmap" in share.options)
        return Opened(share.name, number, stat.S_ISDIR(mode))
    except OSError as error:
        os.close(number)
        raise ShareFailed(f"{share.source}: {error.strerror}", source=str(share.source)) from error
    except CasemateError:
        os.close(number)
        raise


def _map_owners(number: int, idmap: tuple[Rows, Rows], *, recursive: bool) -> None:
    try:
        userns_fd = userns.mapped_fd(*idmap)
    except ValueError as error:
        raise ShareFailed(f"the map of a mount's owners: {error}") from error
    try:
        attributes = syscalls.MOUNT_ATTR_IDMAP
        syscalls.mount_setattr(number, set_attributes=attributes, userns_fd=userns_fd, recursive=recursive)
    finally:
        os.close(userns_fd)


async def attach(qemu: pidfd.ProcessIdentity, opened: Sequence[Opened]) -> None:
    """Move the copies into QEMU's mount namespace; none stays when one fails. :class:`ShareFailed`."""

    def work() -> None:
        done: list[str] = []
        try:
            for one in opened:
                path = f"{FOLDER}/{one.name}"
                if "/" in one.name:
                    # QEMU, whose user is another, opens it on its way.
                    Path(path).parent.mkdir(mode=0o755)
                    done.append(path)
                if one.folder:
                    Path(path).mkdir(mode=0o700)
                else:
                    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                if path not in done:
                    done.append(path)
                syscalls.move_mount(one.fd, path)
        except OSError:
            for path in done:
                _take_away(path)
            raise

    await _inside(qemu, work)


async def detach(qemu: pidfd.ProcessIdentity, names: Sequence[str]) -> None:
    """Take the named shares away; those that are gone are passed over."""

    def work() -> None:
        for name in names:
            _take_away(f"{FOLDER}/{name}")

    with contextlib.suppress(ShareFailed, MonitorFailed):
        await _inside(qemu, work)


def _take_away(path: str) -> None:
    with contextlib.suppress(OSError):
        syscalls.umount2(path, syscalls.MNT_DETACH)
    with contextlib.suppress(OSError):
        Path(path).rmdir()
    with contextlib.suppress(OSError):
        Path(path).unlink()
    # The folder of a name of two parts; that of all shares is not empty, or is a mount.
    if Path(path).parent != Path(FOLDER):
        with contextlib.suppress(OSError):
            Path(path).parent.rmdir()


async def _inside(qemu: pidfd.ProcessIdentity, work: Callable[[], None]) -> None:
    """Run *work* in a thread of its own whose root is the jail's. Nothing of Python is imported or opened there."""
    number = pidfd.open_pidfd(qemu.pid, qemu.start_ticks)
    if number is None:
        raise MonitorFailed("the machine's QEMU is gone")

    def body() -> None:
        # A root of its own for this thread, which setns(2) then replaces.
        syscalls.unshare(_CLONE_FS)
        syscalls.setns(number, syscalls.CLONE_NEWNS)
        work()

    try:
        await in_own_thread(body, timeout_s=_TIMEOUT_S)
    except OSError as error:
        raise ShareFailed(f"a folder could not be attached to the machine: {error.strerror}") from error
    finally:
        os.close(number)
