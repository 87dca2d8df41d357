"""ENOSYS for system calls that are newer than a profile.

A profile that answers EPERM to what it does not name breaks programs whose C library tries a new call first and
falls back to an older one only at ENOSYS. The runtimes of the field put a check of the number before the filter, and
so do we.
Pure. Sources: linux/filter.h, linux/seccomp.h, linux/audit.h (kernel 6.1).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
_ENOSYS, _RET_ERRNO = 38, 0x0005_0000
#: Of x32's numbers, which the profile's own filter judges.
_X32_BIT = 0x4000_0000
_MAX_INSTRUCTIONS = 4096
_DENIES = ("SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP")


def applies(profile: Mapping[str, Any]) -> bool:
    """Whether a normalised *profile* denies what it does not name, other than by ENOSYS."""
    if profile["defaultAction"] == "SCMP_ACT_ERRNO":
        return bool(profile["defaultErrnoRet"] != _ENOSYS)
    return profile["defaultAction"] in _DENIES


def before(program: bytes, largest: Mapping[int, int]) -> bytes:
    """*program* behind the check; *largest* gives for each AUDIT_ARCH the largest number that the profile names."""
    head = []
    for architecture, number in sorted(largest.items()):
        head += [
            (_LOAD, 0, 0, _ARCHITECTURE_AT),
            (_JUMP_EQUAL, 0, 4, architecture),
            (_LOAD, 0, 0, _NUMBER_AT),
            (_JUMP_AT_LEAST, 2, 0, _X32_BIT),
            (_JUMP_GREATER, 0, 1, number),
            (_RETURN, 0, 0, _RET_ERRNO | _ENOSYS),
        ]
    found = b"".join(struct.pack("<HBBI", *one) for one in head) + program
    return found if len(found) // 8 <= _MAX_INSTRUCTIONS else program
