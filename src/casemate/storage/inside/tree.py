"""Walking a tree that somebody hostile made: by descriptors, iteratively, within bounds, following no link."""

import os
import stat
from collections.abc import Iterator
from typing import Any

#: Deeper trees are refused with a message: PATH_MAX allows 2,048 levels to anybody who names them whole.
MAX_DEPTH = 2000


class Refused(Exception):
    """What the caller asked for cannot be done; the text goes to a person."""


class Budget:
    """Bound on the number of entries and of bytes."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.entries_left = int(task["max_entries"])
        self.bytes_left = int(task["max_bytes"])

    def entry(self) -> None:
        self.entries_left -= 1
        if self.entries_left < 0:
            raise Refused("more files than are allowed in one call")

    def data(self, size: int) -> None:
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise Refused("more bytes than are allowed in one call")


def split(path: str) -> tuple[str, str]:
    """The parent and the last part of *path*; ('/', '.') for the root."""
    clean = "/" + os.path.normpath("/" + path).lstrip("/")
    if clean == "/":
        return "/", "."
    parent, _, name = clean.rpartition("/")
    return parent or "/", name


def open_folder(base: int, parts: list[str]) -> int | None:
    """A descriptor of the folder *parts* below *base*, or None when one of them is no folder (or a link)."""
    current = os.dup(base)
    for part in parts:
        try:
            following = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
        except OSError:
            os.close(current)
            return None
        os.close(current)
        current = following
    return current


def _names(number: int) -> list[str]:
    with os.scandir(number) as entries:
        return sorted(entry.name for entry in entries)


def walk(parent_fd: int, name: str, shown: str, budget: Budget) -> Iterator[tuple[int, str, str, os.stat_result]]:
    """(parent descriptor, name, shown path, status) of *name* and all below, parents first; no link is followed.

    Iterative, one open descriptor for each level, entries of one folder at a time.
    """
    status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    budget.entry()
    yield parent_fd, name, shown, status
    if not stat.S_ISDIR(status.st_mode):
        return
    device = status.st_dev
    levels: list[tuple[int, str, Iterator[str]]] = []

    def enter(directory_fd: int, entry: str, path: str) -> None:
        if len(levels) >= MAX_DEPTH:
            raise Refused(f"{path[:200]}: folders are nested deeper than {MAX_DEPTH}")
        number = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory_fd)
        levels.append((number, path, iter(_names(number))))

    enter(parent_fd, name, shown)
    try:
        while levels:
            number, path, names = levels[-1]
            entry = next(names, None)
            if entry is None:
                os.close(number)
                levels.pop()
                continue
            try:
                status = os.stat(entry, dir_fd=number, follow_symlinks=False)
            except FileNotFoundError:
                continue  # removed meanwhile by a running container
            budget.entry()
            below = f"{path}/{entry}" if path else entry
            yield number, entry, below, status
            if stat.S_ISDIR(status.st_mode) and status.st_dev == device:
                try:
                    enter(number, entry, below)
                except (FileNotFoundError, NotADirectoryError):
                    continue
    finally:
        for number, _, _ in levels:
            os.close(number)
