"""A container's root: idmapped copies of its layers below an overlay, with a writable folder of its own.

The copies are detached mounts that live only while the overlay is being mounted, since an overlay keeps private
ones: a container costs one mount, however many layers it has. What is written lies below hostd's state folder,
owned by the pod's ids; it survives a reboot, after which the same plan is applied again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.host import loop, mounts, programs, syscalls
from casemate.spec.errors import HostLacks, InvalidArgument
from casemate.storage.layers import LayerMounts, check_hex

#: Smaller file systems have no room for their own tables.
MIN_WRITABLE_BYTES = 4 << 20
_MKFS_TIMEOUT_S = 60.0


class SizeBoundUnsupported(HostLacks):
    code = "storage.size_bound_unsupported"
    title = "The host cannot bound a writable layer"
    remedy = "Install e2fsprogs: `apt-get install e2fsprogs`, or run without --storage-size."


@dataclass(frozen=True, slots=True)
class RootfsPlan:
    """What is mounted where. *layers* are topmost first, each once; *image* is the bounded writable file system."""

    user: str
    target: Path
    layers: tuple[str, ...]
    writable: Path
    first_id: int
    writable_bytes: int = 0
    volatile: bool = False

    @property
    def image(self) -> Path | None:
        return self.writable / "writable.ext4" if self.writable_bytes else None

    @property
    def base(self) -> Path:
        """The folder that holds upper and work."""
        return self.writable / "mounted" if self.writable_bytes else self.writable

    @property
    def upper(self) -> Path:
        return self.base / "upper"

    @property
    def work(self) -> Path:
        return self.base / "work"

    def describe(self) -> list[str]:
        """What :func:`apply` does, a line each."""
        lines = [
            f"mount layer {layer[:12]} if it is not, and map its owners to {self.first_id}" for layer in self.layers
        ]
        if self.image is not None:
            lines.append(f"mount {self.image}, a file system of {self.writable_bytes} bytes, at {self.base}")
        how = "volatile overlay" if self.volatile else "overlay"
        return [*lines, f"mount an {how} with {self.upper} on top at {self.target}"]


def plan(
    user: str,
    layers: Sequence[str],
    *,
    target: Path,
    writable: Path,
    first_id: int,
    writable_bytes: int = 0,
    volatile: bool = False,
) -> RootfsPlan:
    """The plan for a root of *layers* (lowest first) at *target*, writing below the folder *writable*.

    A layer that an image holds twice counts where it is topmost: its lower appearance is hidden wholly by the
    upper one, and the kernel refuses the same layer twice (ELOOP). *volatile*: nothing is synced when the root
    is unmounted; for containers that are removed at their end.
    """
    if writable_bytes and writable_bytes < MIN_WRITABLE_BYTES:
        raise InvalidArgument(f"a writable layer of {writable_bytes} bytes; allowed are {MIN_WRITABLE_BYTES} and more")
    if len(layers) > mounts.MAX_LOWERS:
        raise InvalidArgument(f"{len(layers)} layers; the kernel's overlay takes {mounts.MAX_LOWERS}")
    topmost_first = tuple(dict.fromkeys(check_hex(layer) for layer in reversed(layers)))
    return RootfsPlan(user, target, topmost_first, writable, first_id, writable_bytes, volatile)


async def apply(rootfs: RootfsPlan, layers: LayerMounts, userns_fd: int | None) -> None:
    """Mount *rootfs*; what is mounted there already stays. On failure everything is undone in reverse.

    *userns_fd*: the pod's user namespace (:func:`casemate.host.userns.userns_fd`). None on a kernel that cannot
    map squashfs (before 6.2): the layers' owners then lie in the one shared range already, put there when they
    were converted, and *first_id* is that range's. Raises
    :class:`~casemate.storage.layers.LayerMissing`, :class:`~casemate.host.mounts.MountFailed`,
    :class:`~casemate.host.mounts.IdmapUnsupported`, :class:`SizeBoundUnsupported`.
    """
    if is_mounted(rootfs):
        return
    async with contextlib.AsyncExitStack() as undo:
        undo.callback(layers.release, rootfs.user)
        rootfs.writable.mkdir(parents=True, exist_ok=True, mode=0o711)
        if rootfs.image is not None:
            await _mount_image(rootfs, rootfs.image)
            undo.callback(mounts.unmount, rootfs.base, detach=True)
        _mount_overlay(rootfs, layers, userns_fd)
        undo.pop_all()


def _mount_overlay(rootfs: RootfsPlan, layers: LayerMounts, userns_fd: int | None) -> None:
    with contextlib.ExitStack() as stack:
        lowers = _lower_fds(stack, rootfs, layers, userns_fd)
        _make_upper(rootfs, os.fstat(lowers[0]))
        rootfs.target.mkdir(parents=True, exist_ok=True, mode=0o755)
        mounted = mounts.overlay(rootfs.target, lowers, rootfs.upper, rootfs.work, volatile=rootfs.volatile)
        os.close(mounted)


def _lower_fds(
    stack: contextlib.ExitStack, rootfs: RootfsPlan, layers: LayerMounts, userns_fd: int | None
) -> list[int]:
    lowers: list[int] = []
    for layer in rootfs.layers:
        place = layers.use(layer, rootfs.user)
        number = mounts.clone(place) if userns_fd is None else mounts.idmapped_clone_fd(place, userns_fd)
        stack.callback(os.close, number)
        lowers.append(number)
    return lowers or [_empty_lower(stack, rootfs)]


def _empty_lower(stack: contextlib.ExitStack, rootfs: RootfsPlan) -> int:
    """An image without layers still needs a lower folder."""
    empty = rootfs.base / "empty"
    empty.mkdir(exist_ok=True, mode=0o755)
    os.chown(empty, rootfs.first_id, rootfs.first_id)
    number = os.open(empty, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, number)
    return number


def _make_upper(rootfs: RootfsPlan, top: os.stat_result) -> None:
    """The merged root shows the upper folder's owner and mode: they must be those of the image's own root."""
    if not rootfs.upper.exists():
        rootfs.upper.mkdir(mode=0o700)
        os.chown(rootfs.upper, top.st_uid, top.st_gid)
        rootfs.upper.chmod(top.st_mode & 0o7777)
    rootfs.work.mkdir(exist_ok=True, mode=0o700)
    # A volatile overlay that was not unmounted (a crash) refuses to be mounted again; it was asked to keep nothing.
    with contextlib.suppress(OSError):
        (rootfs.work / "work" / "incompat" / "volatile").rmdir()


async def _mount_image(rootfs: RootfsPlan, image: Path) -> None:
    """Make (once) and mount the bounded file system: sparse, so that it takes only what is written."""
    temporary = image.with_suffix(".tmp")
    if _make_sparse(image, temporary, rootfs.writable_bytes):
        # No journal: what a power cut leaves is checked by the kernel's own flags, and a write costs one write.
        argv = ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=1"]
        try:
            await programs.run([*argv, str(temporary)], timeout_s=_MKFS_TIMEOUT_S)
        except programs.ProgramMissing as error:
            temporary.unlink()
            raise SizeBoundUnsupported(f"bounding a writable layer takes mkfs.ext4: {error.detail}") from error
        temporary.rename(image)
    _attach_image(rootfs, image)


def _make_sparse(image: Path, temporary: Path, size_bytes: int) -> bool:
    """A sparse file of *size_bytes* at *temporary*; False when *image* is there already."""
    if image.exists():
        return False
    with temporary.open("wb") as file:
        file.truncate(size_bytes)
    return True


def _attach_image(rootfs: RootfsPlan, image: Path) -> None:
    if os.path.ismount(rootfs.base):
        return
    rootfs.base.mkdir(exist_ok=True, mode=0o711)
    number = os.open(image, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        device_fd, device = loop.attach(number, read_only=False)
        try:
            flags = syscalls.MS_NODEV | syscalls.MS_NOSUID
            syscalls.mount(device, rootfs.base, "ext4", flags, "discard")
        except OSError as error:
            raise mounts.MountFailed(f"{image} at {rootfs.base}: {error.strerror}", target=str(rootfs.base)) from error
        finally:
            os.close(device_fd)
    finally:
        os.close(number)


def unmount(rootfs: RootfsPlan, layers: LayerMounts) -> None:
    """Take the mounts of *rootfs* away, in reverse; what was written stays. May be repeated."""
    mounts.unmount(rootfs.target, detach=True)
    if rootfs.image is not None:
        mounts.unmount(rootfs.base, detach=True)
    layers.release(rootfs.user)


def is_mounted(rootfs: RootfsPlan) -> bool:
    """Whether the root is there (after a reboot it is not)."""
    return os.path.ismount(rootfs.target)


def lower_fd(rootfs: RootfsPlan, layers: LayerMounts, userns_fd: int | None) -> int:
    """A descriptor of the layers alone, joined and mapped as in the root: what `diff` compares with.

    A detached mount, gone when the descriptor is closed (by the caller).
    """
    with contextlib.ExitStack() as stack:
        lowers = _lower_fds(stack, rootfs, layers, userns_fd)
        mounted = os.dup(lowers[0]) if len(lowers) == 1 else mounts.overlay(None, lowers, None, None, read_only=True)
        stack.callback(os.close, mounted)
        # Of a detached mount an O_PATH descriptor is not enough: its entries are listed.
        return os.open(f"/proc/self/fd/{mounted}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
