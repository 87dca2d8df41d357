"""The mount table as the kernel shows it: ``/proc/self/mountinfo`` (proc(5)) to values."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo: where, what kind, from what, and its options."""

    mount_id: int
    target: Path
    kind: str
    source: str
    options: str
    super_options: str


def mounts_below(folder: Path) -> list[Mount]:
    """The mounts at and below *folder* in our namespace, in the order in which they were made."""
    return parse_mountinfo(_MOUNTINFO.read_bytes(), folder)


def parse_mountinfo(data: bytes, folder: Path) -> list[Mount]:
    """The lines of mountinfo (proc(5)) whose mount point is *folder* or lies below it."""
    place = os.fsencode(folder).rstrip(b"/")
    found: list[Mount] = []
    for line in data.splitlines():
        left, _, right = line.partition(b" - ")
        fields, tail = left.split(b" "), right.split(b" ")
        if len(fields) < 6 or len(tail) < 2:
            continue
        target = unescape(fields[4])
        if target != place and not target.startswith(place + b"/"):
            continue
        found.append(
            Mount(
                int(fields[0]),
                Path(os.fsdecode(target)),
                tail[0].decode("ascii", "replace"),
                os.fsdecode(unescape(tail[1])),
                fields[5].decode("utf-8", "replace"),
                tail[2].decode("utf-8", "replace") if len(tail) > 2 else "",
            )
        )
    return found


def unescape(field: bytes) -> bytes:
    r"""A field of mountinfo with its octal escapes (``\040`` for a space) undone."""
    if b"\\" not in field:
        return field
    parts = field.split(b"\\")
    out = [parts[0]]
    for part in parts[1:]:
        digits = part[:3]
        if len(digits) == 3 and all(48 <= digit < 56 for digit in digits) and digits[0] < 52:
            out.append(bytes([int(digits, 8)]) + part[3:])
        else:
            out.append(b"\\" + part)
    return b"".join(out)
