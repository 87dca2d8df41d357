"""Filling an empty volume from the image's folder."""

import os
import stat
from typing import Any

from casemate.storage.inside.tree import Budget, open_folder, walk

#: The descriptor of the volume's folder.
_VOLUME = 4


def copy_up(task: dict[str, Any]) -> None:
    """Copy what is in the tree's folder ``task["path"]`` into descriptor 4, an empty volume: a tar piped to ourselves.

    A missing folder is nothing to copy. The volume's own folder gets the owner and mode of the image's.
    """
    try:
        source = os.open(task["path"], os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return
    budget = Budget(task)
    status = os.fstat(source)
    links: dict[tuple[int, int], str] = {}
    folders: list[tuple[str, os.stat_result]] = [("", status)]
    for directory_fd, entry, path, found in walk(source, ".", "", budget):
        if not path:
            continue
        parts = path.split("/")
        target = open_folder(_VOLUME, parts[:-1])
        if target is None:
            continue
        try:
            first = links.get((found.st_dev, found.st_ino)) if stat.S_ISREG(found.st_mode) else None
            if first is not None:
                _link_again(first, entry, target)
            elif stat.S_ISDIR(found.st_mode):
                os.mkdir(entry, 0o700, dir_fd=target)
                folders.append((path, found))
            else:
                budget.data(found.st_size)
                _copy_entry(directory_fd, entry, found, target)
                if found.st_nlink > 1:
                    links[found.st_dev, found.st_ino] = path
        finally:
            os.close(target)
    for path, found in reversed(folders):
        number = open_folder(_VOLUME, path.split("/") if path else [])
        if number is not None:
            os.fchown(number, found.st_uid, found.st_gid)
            os.fchmod(number, stat.S_IMODE(found.st_mode))
            os.utime(number, ns=(found.st_atime_ns, found.st_mtime_ns))
            os.close(number)


def _link_again(first: str, entry: str, target: int) -> None:
    """The further name of a file that was copied as *first*."""
    parts = first.split("/")
    folder = open_folder(_VOLUME, parts[:-1])
    if folder is not None:
        os.link(parts[-1], entry, src_dir_fd=folder, dst_dir_fd=target, follow_symlinks=False)
        os.close(folder)


def _copy_entry(directory_fd: int, entry: str, found: os.stat_result, target: int) -> None:
    """Copy a link, a FIFO or a file into the folder *target*; devices and sockets stay behind."""
    if stat.S_ISREG(found.st_mode):
        _copy_file(directory_fd, entry, found, target)
        return
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(entry, dir_fd=directory_fd), entry, dir_fd=target)
    elif stat.S_ISFIFO(found.st_mode):
        os.mkfifo(entry, stat.S_IMODE(found.st_mode), dir_fd=target)
    else:
        return
    os.chown(entry, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)


def _copy_file(directory_fd: int, entry: str, found: os.stat_result, target: int) -> None:
    source = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=directory_fd)
    number = os.open(entry, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=target)
    try:
        done = 0
        while done < found.st_size and (count := os.sendfile(number, source, done, min(found.st_size - done, 1 << 30))):
            done += count
        os.fchown(number, found.st_uid, found.st_gid)
        os.fchmod(number, stat.S_IMODE(found.st_mode))
        os.utime(number, ns=(found.st_atime_ns, found.st_mtime_ns))
    finally:
        os.close(source)
        os.close(number)
