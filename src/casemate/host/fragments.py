"""The memory in which parts of IPv4 packets wait for the rest: the kernel has one for all of a network namespace."""

from __future__ import annotations

import re
from pathlib import Path

_HELD = re.compile(r"^FRAG: inuse \d+ memory (\d+)$", re.MULTILINE)
#: Some 1 KiB; parts of what others count stand in it as well.
_MAX_CHARACTERS = 1 << 16


def fill() -> tuple[int, int]:
    """Bytes that parts hold, and how many they may hold, in the network namespace of this thread; (0, 0) where the
    kernel does not tell. 30 us. Source: proc(5), net/ipv4/proc.c, ip-sysctl.rst.
    """
    try:
        found = _HELD.search(Path("/proc/thread-self/net/sockstat").read_text()[:_MAX_CHARACTERS])
        maximum = int(Path("/proc/sys/net/ipv4/ipfrag_high_thresh").read_text())
    except (OSError, ValueError):
        return 0, 0
    return (int(found[1]), maximum) if found else (0, 0)
