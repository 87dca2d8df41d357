"""Mounts, by descriptor where the kernel lets us: squashfs images, idmapped clones, overlays, binds, tmpfs.

Written for Linux 6.1 (Debian 12) and newer. Three things differ by kernel and are tried in this order:

- overlay over *detached* mounts by descriptor (6.15); else the layers are attached for the moment of mounting,
  since an overlay keeps private copies of its layers and needs their mount points no longer. They are moved, not
  cloned: a detached mount can be cloned only since 6.15 too;
- ``lowerdir+`` (6.8), one layer a call; else one ``lowerdir=`` of ``/proc/self/fd/N`` names, which stays
  short of the page that mount(2) copies, and holds neither colon nor comma whatever the layers' real paths;
- idmapped squashfs (6.2 with the flag FS_ALLOW_IDMAP set for squashfs): see :func:`supports_idmapped_squashfs`.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from casemate.host import loop, syscalls
from casemate.host.mountinfo import mounts_below
from casemate.spec.errors import CasemateError, HostLacks

#: The kernel's own bound on overlay layers (OVL_MAX_STACK).
MAX_LOWERS = 500
#: The first kernel whose overlay takes layers that are mounted nowhere.
_DETACHED_LAYERS_SINCE = (6, 15)
#: A squashfs without a file (lz4, as our layers are), to ask the kernel with; what follows is zeros.
_EMPTY_SQUASHFS = base64.b64decode(
    "aHNxcwEAAAAAAAAAAAACAAAAAAAFABEAUAYBAAQAAAAAAAAAAAAAAJMAAAAAAAAAiwAAAAAAAAD//////////2oAAAAAAAAAhAAAAAAAAAD/////"
    "////////////////CIABAAAAAAAAABgAUwEA7QEAAQAECQDAAgAAAAMAAAAAAAAABQBAAAAAAIQ="
)

#: Set deliberately, whatever the kernel's build chose:
#: index=off: no NFS export, and an index would forbid to move or clone the upper folder;
#: metacopy=off: a chown must copy the data, or `diff` and commit would see a file without content;
#: redirect_dir=off: renamed lower directories answer EXDEV (tools cope), and the upper stays a plain tree;
#: xino=off: lower squashfs inodes need no 64-bit encoding, and 32-bit programs break on those.
OVERLAY_OPTIONS: tuple[tuple[str, str], ...] = (
    ("index", "off"),
    ("metacopy", "off"),
    ("redirect_dir", "off"),
    ("xino", "off"),
)


class MountFailed(CasemateError):
    code = "host.mount_failed"
    title = "The kernel refused a mount"
    remedy = "`casemate system doctor` checks what the kernel supports; `dmesg | tail` holds its reason."


class IdmapUnsupported(HostLacks):
    code = "host.idmap_unsupported"
    title = "The kernel cannot map the owners of this file system"
    remedy = "Run Linux 6.2 or newer; until then pods share one uid range (see `casemate system doctor`)."


def _failed(error: OSError, what: str, target: object) -> MountFailed:
    return MountFailed(f"{what} at {target}: {error.strerror}", target=str(target), errno=error.errno)


def mount_squashfs(image: Path, target: Path, *, direct_io: bool = False) -> None:
    """Mount the squashfs file *image* read-only at the folder *target*, without devices.

    set-uid files keep their bit here: the clone that a container sees lies in its user namespace.
    """
    number = os.open(image, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        mount_squashfs_fd(number, target, direct_io=direct_io)
    finally:
        os.close(number)


def mount_squashfs_fd(image_fd: int, target: Path, *, direct_io: bool = False) -> None:
    """As :func:`mount_squashfs`, from a descriptor: what was checked is what is mounted."""
    device_fd, device = loop.attach(image_fd, direct_io=direct_io)
    try:
        syscalls.mount(device, target, "squashfs", syscalls.MS_RDONLY | syscalls.MS_NODEV)
    except OSError as error:
        raise _failed(error, f"squashfs on {device}", target) from error
    finally:
        os.close(device_fd)


def clone(source: Path | str, *, recursive: bool = False) -> int:
    """A descriptor of a detached copy of the mount at *source* (of the tree below *source*)."""
    flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if recursive else 0)
    return syscalls.open_tree(source, flags)


def idmapped_clone_fd(source: Path | int, userns_fd: int, *, read_only: bool = True) -> int:
    """A detached, idmapped copy of the mount at *source*, as a descriptor; gone when that is closed.

    The map of *userns_fd* is applied: what is owned by 0 on disk is owned by the namespace's first id in the
    copy. Raises :class:`IdmapUnsupported` where the file system cannot.
    """
    if isinstance(source, int):
        number = syscalls.open_tree("", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH, source)
    else:
        number = clone(source)
    try:
        attributes = syscalls.MOUNT_ATTR_IDMAP | syscalls.MOUNT_ATTR_NODEV
        attributes |= syscalls.MOUNT_ATTR_RDONLY if read_only else 0
        syscalls.mount_setattr(number, set_attributes=attributes, userns_fd=userns_fd)
    except OSError as error:
        os.close(number)
        raise IdmapUnsupported(f"idmapped copy of {source}: {error.strerror}", errno=error.errno) from error
    return number


def idmapped_clone(source: Path, target: Path, userns_fd: int, *, read_only: bool = True) -> None:
    """:func:`idmapped_clone_fd`, attached at *target*."""
    number = idmapped_clone_fd(source, userns_fd, read_only=read_only)
    try:
        attach(number, target)
    finally:
        os.close(number)


def attach(mount_fd: int, target: Path | int) -> None:
    """Attach the detached mount of *mount_fd* at *target*."""
    try:
        syscalls.move_mount(mount_fd, str(target) if isinstance(target, Path) else target)
    except OSError as error:
        raise _failed(error, "attaching a mount", target) from error


def overlay(
    target: Path | None,
    lowers: Sequence[Path | int],
    upper: Path | None,
    work: Path | None,
    *,
    read_only: bool = False,
    volatile: bool = False,
    options: Sequence[tuple[str, str]] = OVERLAY_OPTIONS,
    attached: bool | None = None,
) -> int:
    """An overlay of *lowers* (the topmost first) with *upper* and *work*.

    *lowers* are folders' paths, or descriptors of detached mounts (of which those kernels that cannot take them
    so make attached ones; they are good for nothing else afterwards) or of folders. The overlay is attached at
    *target*, or left detached where that is None. Returns a descriptor of the mount, which the
    caller closes. *volatile*: the kernel syncs nothing when it is unmounted; for what is thrown away.
    *attached*: True for the way of kernels before 6.15, None to choose by the kernel.
    Without *upper* it is read-only, and needs two lowers. Raises :class:`MountFailed`.
    """
    if attached is None:
        # Not by trying alone: older kernels write a line to their log for each failure.
        attached = kernel_version() < _DETACHED_LAYERS_SINCE
    if not 1 <= len(lowers) <= MAX_LOWERS:
        raise MountFailed(f"overlay of {len(lowers)} layers; the kernel takes 1 to {MAX_LOWERS}")
    with contextlib.ExitStack() as stack:
        numbers = [_layer_fd(stack, lower) for lower in lowers]
        upper_fds = None
        if upper is not None and work is not None:
            upper_fds = _folder_fd(stack, upper), _folder_fd(stack, work)
        try:
            if attached:
                movable = [isinstance(lower, int) for lower in lowers]
                mounted = _overlay_attached(
                    numbers, movable, upper_fds, read_only=read_only, volatile=volatile, options=options
                )
            else:
                mounted = _overlay_fd(numbers, upper_fds, read_only, volatile, options)
        except OSError as error:
            raise _failed(error, f"overlay of {len(lowers)} layers", target) from error
    if target is not None:
        try:
            attach(mounted, target)
        except BaseException:
            os.close(mounted)
            raise
    return mounted


def _layer_fd(stack: contextlib.ExitStack, layer: Path | int) -> int:
    return layer if isinstance(layer, int) else _folder_fd(stack, layer)


def _folder_fd(stack: contextlib.ExitStack, path: Path) -> int:
    number = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, number)
    return number


def _overlay_fd(
    lowers: Sequence[int],
    upper_fds: tuple[int, int] | None,
    read_only: bool,
    volatile: bool,
    options: Sequence[tuple[str, str]],
) -> int:
    context = syscalls.fsopen("overlay")
    try:
        syscalls.fsconfig_string(context, "source", "casemate")
        try:
            for number in lowers:
                syscalls.fsconfig_string(context, "lowerdir+", f"/proc/self/fd/{number}")
        except OSError:
            joined = ":".join(f"/proc/self/fd/{number}" for number in lowers)
            syscalls.fsconfig_string(context, "lowerdir", joined)
        if upper_fds is not None:
            syscalls.fsconfig_string(context, "upperdir", f"/proc/self/fd/{upper_fds[0]}")
            syscalls.fsconfig_string(context, "workdir", f"/proc/self/fd/{upper_fds[1]}")
        for key, value in options:
            syscalls.fsconfig_string(context, key, value)
        if volatile and upper_fds is not None:
            syscalls.fsconfig_flag(context, "volatile")
        if read_only:
            syscalls.fsconfig_flag(context, "ro")
        syscalls.fsconfig_create(context)
        attributes = syscalls.MOUNT_ATTR_NODEV | (syscalls.MOUNT_ATTR_RDONLY if read_only else 0)
        return syscalls.fsmount(context, attributes)
    finally:
        os.close(context)


def _overlay_attached(
    lowers: Sequence[int],
    movable: Sequence[bool],
    upper_fds: tuple[int, int] | None,
    *,
    read_only: bool,
    volatile: bool,
    options: Sequence[tuple[str, str]],
) -> int:
    """For kernels before 6.15: attach the *movable* layers, mount(2) over them, take them away again."""
    with tempfile.TemporaryDirectory(prefix="casemate-lower-") as scratch, contextlib.ExitStack() as stack:
        # Its own mount, private, so that nothing of this is seen elsewhere and one detach takes all away.
        syscalls.mount("tmpfs", scratch, "tmpfs", syscalls.MS_NODEV | syscalls.MS_NOSUID, "size=1m,mode=700")
        stack.callback(syscalls.umount2, scratch, syscalls.MNT_DETACH)
        syscalls.mount(None, scratch, None, syscalls.MS_PRIVATE)
        names: list[str] = []
        for index, number in enumerate(lowers):
            place = Path(scratch) / str(index)
            place.mkdir()
            names.append(f"/proc/self/fd/{number}")
            # A descriptor of a folder (not of a mount) cannot be moved, and hangs in our namespace already.
            with contextlib.suppress(OSError):
                if movable[index]:
                    syscalls.move_mount(number, str(place))
                    names[-1] = f"/proc/self/fd/{_folder_fd(stack, place)}"
        place = Path(scratch) / "merged"
        place.mkdir()
        text = [f"lowerdir={':'.join(names)}", *(f"{key}={value}" for key, value in options)]
        if upper_fds is not None:
            text += [f"upperdir=/proc/self/fd/{upper_fds[0]}", f"workdir=/proc/self/fd/{upper_fds[1]}"]
            text += ["volatile"] if volatile else []
        flags = syscalls.MS_NODEV | (syscalls.MS_RDONLY if read_only else 0)
        syscalls.mount("casemate", place, "overlay", flags, ",".join(text))
        return syscalls.open_tree(place, syscalls.OPEN_TREE_CLONE)


def bind(
    source: Path | int,
    target: Path | int,
    *,
    read_only: bool = False,
    recursive: bool = False,
    idmap_fd: int | None = None,
    propagation: int = syscalls.MS_PRIVATE,
    attributes: int = 0,
) -> None:
    """Bind *source* (a path, or an O_PATH descriptor of what was checked) at *target*.

    Attributes, map and propagation are set on the detached copy, before anybody can reach it. *attributes* is a
    set of ``MOUNT_ATTR_*``. Raises :class:`IdmapUnsupported`, :class:`MountFailed`.
    """
    flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if recursive else 0)
    try:
        if isinstance(source, int):
            number = syscalls.open_tree("", flags | syscalls.AT_EMPTY_PATH, source)
        else:
            number = syscalls.open_tree(source, flags)
    except OSError as error:
        raise _failed(error, f"bind of {source}", target) from error
    try:
        wanted = attributes | (syscalls.MOUNT_ATTR_RDONLY if read_only else 0)
        try:
            syscalls.mount_setattr(number, set_attributes=wanted, propagation=propagation, recursive=recursive)
        except OSError as error:
            raise _failed(error, f"attributes of a bind of {source}", target) from error
        if idmap_fd is not None:
            try:
                syscalls.mount_setattr(number, set_attributes=syscalls.MOUNT_ATTR_IDMAP, userns_fd=idmap_fd)
            except OSError as error:
                raise IdmapUnsupported(f"idmapped bind of {source}: {error.strerror}", errno=error.errno) from error
        attach(number, target)
    finally:
        os.close(number)


def tmpfs(target: Path, *, size_bytes: int, mode: int = 0o755, uid: int = 0, gid: int = 0, inodes: int = 0) -> None:
    """A tmpfs of at most *size_bytes* at *target*, without devices and set-uid programs."""
    options = f"size={size_bytes},mode={mode:o},uid={uid},gid={gid}" + (f",nr_inodes={inodes}" if inodes else "")
    try:
        syscalls.mount("casemate", target, "tmpfs", syscalls.MS_NODEV | syscalls.MS_NOSUID, options)
    except OSError as error:
        raise _failed(error, "tmpfs", target) from error


def unmount(target: Path, *, detach: bool = False) -> bool:
    """Unmount what is on top at *target*; False when nothing is mounted there. Raises :class:`MountFailed`."""
    try:
        syscalls.umount2(target, syscalls.MNT_DETACH if detach else 0)
    except OSError as error:
        if error.errno in (2, 22):  # ENOENT; EINVAL: not a mount point
            return False
        raise _failed(error, "umount", target) from error
    return True


def unmount_below(folder: Path) -> list[Path]:
    """Unmount everything at and below *folder*, the innermost first, lazily; the places that were mounted."""
    places = [mount.target for mount in mounts_below(folder)]
    for place in reversed(places):
        unmount(place, detach=True)
    return places


def kernel_version(release: str | None = None) -> tuple[int, int]:
    """(6, 18) for ``6.18.44-fc``; (0, 0) for what has no such beginning. Of this kernel without *release*."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release if release is None else release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def supports_idmapped_squashfs(userns_fd: int, scratch: Path) -> bool:
    """Whether a squashfs mount can be idmapped here: mounts an empty one below *scratch* and tries.

    Raises :class:`MountFailed` where squashfs cannot be mounted at all.
    """
    place = Path(tempfile.mkdtemp(prefix=".probe-", dir=scratch))
    image = os.memfd_create("squashfs", os.MFD_CLOEXEC)
    try:
        os.write(image, _EMPTY_SQUASHFS)
        os.truncate(image, 4096)
        mount_squashfs_fd(image, place)
        try:
            return supports_idmap(place, userns_fd)
        finally:
            unmount(place, detach=True)
    finally:
        os.close(image)
        place.rmdir()


def supports_idmap(path: Path, userns_fd: int) -> bool:
    """Whether the file system that holds *path* lets its mounts be idmapped."""
    try:
        os.close(idmapped_clone_fd(path, userns_fd))
    except (IdmapUnsupported, OSError):
        return False
    return True
