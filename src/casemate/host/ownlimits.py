"""Limits that a child of ours lays on itself before it reads what came from outside; for good (prctl(2), setrlimit(2)).

Imported by every child when it starts: it must not take the time or the memory of more than these two modules.
"""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Mapping

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38


def bound_self(limits: Mapping[int, int], *, parent_ended: int = 0, no_new_privs: bool = True) -> None:
    """No core, no ptrace by its own user, no privilege by a program's file, and *limits* by ``resource.RLIMIT_``.

    *parent_ended*: the signal that the kernel sends when the parent has ended; 0 is for who outlives it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if parent_ended:
        libc.prctl(_PR_SET_PDEATHSIG, parent_ended, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if no_new_privs:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    lower(resource.RLIMIT_CORE, 0)
    for which, value in limits.items():
        lower(which, value)


def lower(which: int, value: int) -> None:
    """Lower a limit to *value*; one that is lower already stays."""
    soft, hard = resource.getrlimit(which)
    for present in (soft, hard):
        if present != resource.RLIM_INFINITY:
            value = min(value, present)
    resource.setrlimit(which, (value, value))


def settle(which: int, value: int) -> int:
    """Set a limit to *value*, or to as much of it as the hard limit allows, which is the answer."""
    _, hard = resource.getrlimit(which)
    limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (limit, limit))
    return limit
