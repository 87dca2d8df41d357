"""Layers as squashfs files that root owns, and their mounts.

A layer comes from casemated's staging folder, where it was written by a process without privilege. It is taken
over only when nobody can still change it: a regular file of that user, with one name, without a writer (proved
by a lease), owned by root from then on, and hashed again after that. Its content is never parsed here but by the
kernel's squashfs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.host import durable, loop, mountinfo, mounts, safe_path
from casemate.host.netns import in_own_thread
from casemate.spec.errors import Conflict, Corrupt, DiskFull, InvalidArgument, NotFound

_HEX = re.compile(r"[0-9a-f]{64}\Z")
_F_SETLEASE, _F_RDLCK, _F_UNLCK = 1024, 0, 2
_HASH_CHUNK = 1 << 20
#: 64 GiB (image.max_layer_bytes) at 100 MB/s, and as much again.
_HASH_TIMEOUT_S = 1400.0


class LayerRefused(InvalidArgument):
    code = "storage.layer_refused"
    title = "A staged layer may not be taken over"
    remedy = "Pull the image again; another process must not touch casemated's staging folder."


class LayerCorrupt(Corrupt):
    code = "storage.layer_corrupt"
    title = "A staged layer does not have the digest that was promised"
    remedy = "Pull the image again; `casemate system doctor` checks the disk."


class LayerMissing(NotFound):
    code = "storage.layer_missing"
    title = "A layer is not on this host"
    remedy = "Pull the image again: `casemate image pull`."


class LayerInUse(Conflict):
    code = "storage.layer_in_use"
    title = "A layer is in use"
    remedy = "Remove the containers that use it: `casemate ps -a`."


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer on this host: digest, size in bytes, whether it is mounted, and by whom it is used."""

    hex: str
    size_bytes: int
    mounted: bool
    users: tuple[str, ...]


def check_hex(value: str) -> str:
    """*value*, when it is 64 lower-case hexadecimal digits."""
    if not _HEX.match(value):
        raise InvalidArgument(f"layer {value[:80]!r} is not 64 lower-case hexadecimal digits")
    return value


class LayerMounts:
    """The layers of one host: files below *host_state*, mounts below *host_run*."""

    def __init__(self, host_state: Path, host_run: Path) -> None:
        self.files = host_state / "layers"
        self.places = host_run / "layers"
        self._users: dict[str, set[str]] = {}
        self._mounted: set[str] = set()

    def open(self, users: Mapping[str, Iterable[str]] | None = None) -> None:
        """Make the folders, and learn what is mounted; *users* maps a user to its layers, from hostd's records."""
        for folder in (self.files, self.places):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in self.files.glob(".*.tmp"):
            leftover.unlink()
        self._mounted = {mount.target.name for mount in mountinfo.mounts_below(self.places) if mount.kind == "squashfs"}
        self._users = {}
        for user, layers in (users or {}).items():
            for layer in layers:
                self._users.setdefault(layer, set()).add(user)

    def file(self, layer: str) -> Path:
        return self.files / f"{check_hex(layer)}.sqfs"

    def has(self, layer: str) -> bool:
        return self.file(layer).is_file()

    async def adopt(self, staging: Path, layer: str, *, owner_uid: int) -> None:
        """Take ``<staging>/<layer>.sqfs`` over; a layer that is here already is kept, and the staged file removed.

        Raises :class:`LayerRefused`, :class:`LayerCorrupt`, :class:`LayerMissing`, :class:`DiskFull`.
        """
        name = f"{check_hex(layer)}.sqfs"
        # The parent of the staging folder stands in a folder of root's, so it cannot be exchanged; what is below can.
        root = safe_path.open_root(staging.parent)
        try:
            folder = safe_path.open_beneath(root, staging.name, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError as error:
            raise LayerMissing(f"{staging} is not there", path=str(staging)) from error
        finally:
            os.close(root)
        try:
            if self.has(layer):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
                return
            await in_own_thread(lambda: self._adopt(folder, name, layer, owner_uid), timeout_s=_HASH_TIMEOUT_S)
        finally:
            os.close(folder)

    def _adopt(self, folder: int, name: str, layer: str, owner_uid: int) -> None:
        try:
            number = safe_path.open_beneath(folder, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise LayerMissing(f"no staged file {name}", layer=layer) from error
        except (OSError, InvalidArgument) as error:
            raise LayerRefused(f"staged {name} cannot be opened: {error}", layer=layer) from error
        try:
            take_over(number, name, owner_uid)
            found = _digest(number)
            if found != layer:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
                raise LayerCorrupt(f"staged {name} has sha256 {found}, promised was {layer}", layer=layer)
            os.fsync(number)
            self._place(number, layer)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
        finally:
            os.close(number)

    def _place(self, number: int, layer: str) -> None:
        """Give the checked inode its name; the descriptor is linked, not the staged name, which may have changed."""
        target = self.file(layer)
        try:
            # A src_dir_fd makes Python call linkat(2) with AT_SYMLINK_FOLLOW; plain link(2) would link the magic link.
            os.link(f"/proc/self/fd/{number}", target, src_dir_fd=number)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy(number, target, layer)
        durable.sync_folder(self.files)

    def _copy(self, number: int, target: Path, layer: str) -> None:
        """For a staging folder on another file system: a copy, hashed as it was written."""
        temporary = target.with_name(f".{target.name}.tmp")
        out = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o444)
        try:
            size, done = os.fstat(number).st_size, 0
            while done < size:
                done += os.sendfile(out, number, done, min(size - done, 1 << 30))
            os.fsync(out)
            if _digest(out) != layer:
                raise LayerCorrupt(f"the copy of {layer} differs: the disk is not to be trusted", layer=layer)
            temporary.rename(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"{target}: no space for the layer", path=str(target)) from error
            raise
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(out)

    def use(self, layer: str, user: str) -> Path:
        """The place where *layer* is mounted, held for *user*; mounts it when nobody did. :class:`LayerMissing`."""
        place = self.places / check_hex(layer)
        if layer not in self._mounted:
            if not self.has(layer):
                raise LayerMissing(f"layer {layer} is not on this host", layer=layer)
            place.mkdir(exist_ok=True, mode=0o700)
            mounts.mount_squashfs(self.file(layer), place)
            self._mounted.add(layer)
        self._users.setdefault(layer, set()).add(user)
        return place

    def hold(self, layer: str, user: str) -> None:
        """*layer* is *user*'s, mounted or not: it is not removed."""
        self._users.setdefault(check_hex(layer), set()).add(user)

    def release(self, user: str) -> list[str]:
        """*user* uses no layer any more; the layers that nobody uses now (they stay mounted, see the next method)."""
        unused = []
        for layer, users in list(self._users.items()):
            users.discard(user)
            if not users:
                del self._users[layer]
                unused.append(layer)
        return unused

    def unmount_unused(self) -> list[str]:
        """Unmount the layers that nobody uses. Not done at each release: the next start would mount them again."""
        gone = []
        for layer in sorted(self._mounted - self._users.keys()):
            mounts.unmount(self.places / layer, detach=True)
            with contextlib.suppress(OSError):
                (self.places / layer).rmdir()
            self._mounted.discard(layer)
            gone.append(layer)
        return gone

    def list(self) -> Sequence[Layer]:
        """Every layer on this host, by digest."""
        found = []
        for path in sorted(self.files.glob("*.sqfs")):
            if _HEX.match(path.stem):
                users = tuple(sorted(self._users.get(path.stem, ())))
                found.append(Layer(path.stem, path.stat().st_size, path.stem in self._mounted, users))
        return found

    def remove(self, layer: str) -> bool:
        """Remove a layer that nobody uses; False when it was not there. Raises :class:`LayerInUse`."""
        if users := self._users.get(check_hex(layer)):
            raise LayerInUse(f"layer {layer} is used by {', '.join(sorted(users)[:3])}", layer=layer)
        if layer in self._mounted:
            mounts.unmount(self.places / layer, detach=True)
            self._mounted.discard(layer)
        with contextlib.suppress(OSError):
            (self.places / layer).rmdir()
        there = self.has(layer)
        durable.remove(self.file(layer))
        return there

    def leaked_devices(self) -> Sequence[loop.LoopDevice]:
        """Loop devices over our layers that are mounted at none of our places (a crash between two calls)."""
        mounted = {mount.source for mount in mountinfo.mounts_below(self.places)}
        return [one for one in loop.devices_below(self.files) if str(one.device) not in mounted]

    def close(self) -> None:
        """Unmount every layer; for the end of a host's use of Casemate, not of the daemon."""
        self._users.clear()
        self.unmount_unused()


def take_over(number: int, name: str, owner_uid: int) -> None:
    """Make the file of *number* root's and unchangeable, or raise :class:`LayerRefused`.

    1. a regular file with one name, of the user who may stage (or already root's);
    2. owned by root, mode 0444: nobody else can open it for writing any more;
    3. a read lease: the kernel grants it only when no descriptor and no mapping writes to the file (fcntl(2)).
    """
    status = os.fstat(number)
    if status.st_mode & 0o170000 != 0o100000:
        raise LayerRefused(f"staged {name} is not a regular file (mode {status.st_mode:o})")
    if status.st_nlink != 1:
        raise LayerRefused(f"staged {name} has {status.st_nlink} names, allowed is 1")
    if status.st_uid not in (owner_uid, 0):
        raise LayerRefused(f"staged {name} belongs to uid {status.st_uid}, allowed is {owner_uid}")
    os.fchown(number, 0, 0)
    os.fchmod(number, 0o444)
    try:
        fcntl.fcntl(number, _F_SETLEASE, _F_RDLCK)
    except OSError as error:
        raise LayerRefused(f"staged {name} is still open for writing ({error.strerror})") from error
    fcntl.fcntl(number, _F_SETLEASE, _F_UNLCK)


def _digest(number: int) -> str:
    digest = hashlib.sha256()
    offset = 0
    while data := os.pread(number, _HASH_CHUNK, offset):
        digest.update(data)
        offset += len(data)
    return digest.hexdigest()
