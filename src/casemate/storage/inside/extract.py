"""Unpacking a tar from a stream into the tree. The tar is hostile, and so is what lies in the tree already."""

import errno
import os
import stat
import tarfile
from typing import IO, Any

from casemate.storage.inside.archive import XATTR_KINDS, XATTR_PREFIX
from casemate.storage.inside.tree import MAX_DEPTH, Budget, Refused, open_folder

_CHUNK = 1 << 20
#: A pod's range (userns).
_IDS = 65536


def extract(task: dict[str, Any], source: IO[bytes]) -> None:
    """Unpack the tar from *source* below ``task["path"]``, an existing folder of the tree."""
    budget = Budget(task)
    try:
        base = os.open(task["path"], os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError as error:
        raise Refused(f"{task['path'][:300]} does not exist in the container") from error
    except NotADirectoryError as error:
        raise Refused(f"{task['path'][:300]} is not a folder in the container") from error
    folders: list[tuple[str, tarfile.TarInfo]] = []
    with tarfile.open(fileobj=source, mode="r|") as tar:
        for info in tar:
            budget.entry()
            budget.data(info.size)
            tar.__dict__["members"] = []  # otherwise the library keeps every header that it has read
            parts = check_name(info.name)
            if not parts:
                continue
            directory_fd = _parents(base, parts[:-1])
            try:
                _take_owner(info, task["owner"])
                if _replaces(info, directory_fd, parts[-1], bool(task["keep_folders"])):
                    _unpack(tar, info, base, directory_fd, parts[-1])
            finally:
                os.close(directory_fd)
            if info.isdir():
                folders.append(("/".join(parts), info))
        if tar.offset == 0:
            raise Refused("the input holds no tar")
    # Last, and the deepest first: writing into a folder changes its time, and a read-only one takes no files.
    for path, info in reversed(folders):
        number = open_folder(base, path.split("/"))
        if number is not None:
            os.fchmod(number, info.mode & 0o7777)
            os.utime(number, (info.mtime, info.mtime))
            os.close(number)


def check_name(name: str) -> list[str]:
    """The parts of an entry's *name*; refuses what would lead out, although nothing outside could be reached."""
    if name.startswith("/") or "\0" in name or len(name) > 4095:
        raise Refused(f"entry {name[:200]!r}: an absolute path, a null byte, or more than 4,095 characters")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Refused(f"entry {name[:200]!r}: '..' is not allowed")
    if len(parts) > MAX_DEPTH:
        raise Refused(f"entry {name[:200]!r}: nested deeper than {MAX_DEPTH}")
    return parts


def _parents(base: int, parts: list[str]) -> int:
    """A descriptor of the folder *parts* below *base*; missing ones are made, no symbolic link is followed."""
    current = os.dup(base)
    for part in parts:
        try:
            try:
                following = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
            except FileNotFoundError:
                os.mkdir(part, 0o755, dir_fd=current)
                following = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
        except OSError as error:
            os.close(current)
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise Refused(f"{'/'.join(parts)[:200]}: {part[:100]!r} is a link or a file, not a folder") from error
            raise
        os.close(current)
        current = following
    return current


def _take_owner(info: tarfile.TarInfo, owner: list[int] | None) -> None:
    """Give the entry *owner*, where one is asked for; otherwise its own must be one of the pod's ids."""
    if owner is not None:
        info.uid, info.gid = owner
    if not (0 <= info.uid < _IDS and 0 <= info.gid < _IDS):
        raise Refused(f"{info.name[:200]}: owner {info.uid}:{info.gid}; a pod has the ids 0 to {_IDS - 1}")


def _replaces(info: tarfile.TarInfo, directory_fd: int, name: str, keep: bool) -> bool:
    """Make room for the entry; False when there is nothing left to be made (a folder that is there)."""
    there = _lstat(directory_fd, name)
    if there is None:
        return True
    if info.isdir():
        if stat.S_ISDIR(there.st_mode):
            return False
        if keep:
            raise Refused(f"{info.name[:200]}: a folder would replace a file")
    elif stat.S_ISDIR(there.st_mode):
        raise Refused(f"{info.name[:200]}: a file would replace a folder")
    os.unlink(name, dir_fd=directory_fd)
    return True


def _unpack(tar: tarfile.TarFile, info: tarfile.TarInfo, base: int, directory_fd: int, name: str) -> None:
    if info.isdir():
        os.mkdir(name, 0o700, dir_fd=directory_fd)
        os.chown(name, info.uid, info.gid, dir_fd=directory_fd, follow_symlinks=False)
        return
    if info.isreg():
        _write_file(tar, info, directory_fd, name)
    elif info.issym():
        os.symlink(info.linkname, name, dir_fd=directory_fd)
        os.chown(name, info.uid, info.gid, dir_fd=directory_fd, follow_symlinks=False)
    elif info.islnk():
        parts = check_name(info.linkname)
        source_fd = open_folder(base, parts[:-1])
        if not parts or source_fd is None:
            raise Refused(f"{info.name[:200]}: hard link to {info.linkname[:200]!r}, which is not there")
        try:
            os.link(parts[-1], name, src_dir_fd=source_fd, dst_dir_fd=directory_fd, follow_symlinks=False)
        finally:
            os.close(source_fd)
    elif info.isfifo():
        os.mkfifo(name, 0o600, dir_fd=directory_fd)
        os.chown(name, info.uid, info.gid, dir_fd=directory_fd, follow_symlinks=False)
        os.chmod(name, info.mode & 0o7777, dir_fd=directory_fd)
    else:
        raise Refused(f"{info.name[:200]}: devices and unknown kinds of entry cannot be put into a container")


def _lstat(directory_fd: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _write_file(tar: tarfile.TarFile, info: tarfile.TarInfo, directory_fd: int, name: str) -> None:
    source = tar.extractfile(info)
    assert source is not None
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(name, flags, 0o600, dir_fd=directory_fd), "wb", buffering=0) as file:
        left = info.size
        while left > 0:
            data = source.read(min(left, _CHUNK))
            if not data:
                raise Refused(f"{info.name[:200]}: the input ends in the middle of the file")
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            left -= len(data)
        number = file.fileno()
        os.fchown(number, info.uid, info.gid)
        os.fchmod(number, info.mode & 0o7777)
        for key, text in info.pax_headers.items():
            kind = key.removeprefix(XATTR_PREFIX)
            if kind != key and kind.startswith(XATTR_KINDS):
                try:
                    os.setxattr(number, kind, text.encode("utf-8", "surrogateescape"))
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.ENOTSUP):
                        raise
        os.utime(number, (info.mtime, info.mtime))
