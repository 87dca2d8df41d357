"""What a container changed, and how much its tree takes."""

import os
import stat
from typing import IO, Any

from casemate.storage.inside.tree import MAX_DEPTH, Budget, Refused, open_folder, split, walk

#: Descriptors: the layers without the upper folder, and the upper folder.
_LOWER, _UPPER = 4, 5


def diff(task: dict[str, Any], out: IO[bytes]) -> None:
    """Lines ``A|C|D /path`` with a null byte at the end: the merged tree (our root) against the one below it.

    Descriptors: 4 the lower tree, 5 the upper folder. Only folders that the upper one holds can differ; in each,
    the names of the lower and the merged one are compared. So neither whiteouts nor opaque marks, which only the
    host's root can read, need to be understood.
    """
    budget = Budget(task)
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    # Names, not descriptors: a folder may hold more folders than a process may open.
    waiting: list[list[str]] = [[]]
    while waiting:
        parts = waiting.pop()
        if len(parts) > MAX_DEPTH:
            raise Refused(f"{'/'.join(parts)[:200]}: folders are nested deeper than {MAX_DEPTH}")
        upper, merged, lower = (_entries(base, parts) for base in (_UPPER, root, _LOWER))
        path = "".join(f"/{part}" for part in parts)
        for name in sorted(lower.keys() - merged.keys()):
            budget.entry()
            out.write(os.fsencode(f"D {path}/{name}\0"))
        for name in sorted(upper.keys() & merged.keys(), reverse=True):
            budget.entry()
            out.write(os.fsencode(f"{'C' if name in lower else 'A'} {path}/{name}\0"))
            if upper[name] and merged[name]:
                waiting.append([*parts, name])


def _entries(base: int, parts: list[str]) -> dict[str, bool]:
    """The names in a folder below *base*, and whether each is a folder; nothing for what is no folder."""
    number = open_folder(base, parts)
    if number is None:
        return {}
    try:
        with os.scandir(number) as entries:
            return {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    finally:
        os.close(number)


def usage(task: dict[str, Any], out: IO[bytes]) -> None:
    """Write ``bytes entries`` on disk of ``task["path"]``; a file with many names counts once."""
    budget = Budget(task)
    parent, name = split(task["path"])
    seen: set[tuple[int, int]] = set()
    total = entries = 0
    for _, _, _, status in walk(os.open(parent, os.O_RDONLY | os.O_DIRECTORY), name, "", budget):
        entries += 1
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
        total += status.st_blocks * 512
    out.write(f"{total} {entries}\n".encode())
