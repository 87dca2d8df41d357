"""A tar of a path in the tree, to a stream."""

import errno
import os
import stat
import tarfile
from typing import IO, Any

from casemate.storage.inside.tree import Budget, split, walk

XATTR_PREFIX = "SCHILY.xattr."
#: What may be carried in a tar. `trusted.` belongs to the kernel's overlay, `system.` to the file system.
XATTR_KINDS = ("user.", "security.capability")


def archive(task: dict[str, Any], out: IO[bytes]) -> None:
    """Write a tar of ``task["path"]`` to *out*; its entries begin with the path's last part (as `docker cp` has it)."""
    budget = Budget(task)
    # `cp -L` of the source itself: the end of its links, which cannot leave the tree that is our root.
    parent, name = split(os.path.realpath(task["path"]) if task["follow"] else task["path"])
    parent_fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    shown = "" if name == "." else split(task["path"])[1]
    links: dict[tuple[int, int], str] = {}
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for directory_fd, entry, path, status in walk(parent_fd, name, shown, budget):
            if not path:
                continue
            info = _tar_info(directory_fd, entry, path, status, links)
            if info is None:
                continue
            if info.isreg() and info.size:
                budget.data(info.size)
                _add_file(tar, info, directory_fd, entry, status)
            else:
                tar.addfile(info)


def _tar_info(
    directory_fd: int, entry: str, path: str, status: os.stat_result, links: dict[tuple[int, int], str]
) -> tarfile.TarInfo | None:
    info = tarfile.TarInfo(path)
    info.mode = stat.S_IMODE(status.st_mode)
    info.uid, info.gid, info.mtime = status.st_uid, status.st_gid, status.st_mtime
    mode = status.st_mode
    if stat.S_ISREG(mode):
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and key in links:
            info.type, info.linkname = tarfile.LNKTYPE, links[key]
            return info
        links[key] = path
        info.type, info.size = tarfile.REGTYPE, status.st_size
    elif stat.S_ISDIR(mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(mode):
        info.type = tarfile.SYMTYPE
        info.linkname = os.readlink(entry, dir_fd=directory_fd)
    elif stat.S_ISFIFO(mode):
        info.type = tarfile.FIFOTYPE
    elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        info.type = tarfile.CHRTYPE if stat.S_ISCHR(mode) else tarfile.BLKTYPE
        info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    else:
        return None  # a socket: tar has no word for it
    return info


def _add_file(
    tar: tarfile.TarFile, info: tarfile.TarInfo, directory_fd: int, entry: str, status: os.stat_result
) -> None:
    """One regular file. Opened without waiting; when it became something else meanwhile it is left out."""
    try:
        number = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=directory_fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return
        raise
    with os.fdopen(number, "rb", buffering=0) as file:
        now = os.fstat(number)
        if not stat.S_ISREG(now.st_mode) or (now.st_dev, now.st_ino) != (status.st_dev, status.st_ino):
            return
        info.size = now.st_size
        info.pax_headers = _xattrs(number)
        tar.addfile(info, Padded(file))


def _xattrs(number: int) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        for name in os.listxattr(number):
            if name.startswith(XATTR_KINDS):
                found[XATTR_PREFIX + name] = os.getxattr(number, name).decode("utf-8", "surrogateescape")
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENODATA):  # the file system has none, or it went meanwhile
            raise
    return found


class Padded:
    """A file that gives as many bytes as are asked for: one that shrinks while it is read ends in zeros."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = 0, /) -> bytes:
        data = self._file.read(size)
        return data + bytes(size - len(data))
