"""A writer of cpio archives in the "newc" form that the Linux kernel unpacks as initramfs. Pure.

Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FILE, FOLDER, CHARACTER = 0o100000, 0o040000, 0o020000


@dataclass(frozen=True, slots=True)
class Entry:
    """One member: *name* without a leading slash, *mode* with its type bits, *device* (major, minor) for nodes."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of *entries*, in their order (folders before what is in them), the same bytes for the same input.

    All belong to root and bear time 0, so that the digest of the result depends on the content alone.
    """
    parts: list[bytes] = []
    for number, entry in enumerate(entries, start=1):
        parts.append(_member(entry, number))
    parts.append(_member(Entry("TRAILER!!!", 0), 0))
    return b"".join(parts)


def _member(entry: Entry, inode: int) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if entry.mode & 0o170000 == FOLDER else 1
    numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name
    return _padded(head) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
