"""Sysctls of the calling thread's network namespace, written through a view of proc that does not last.

The kernel keeps the names below ``/proc/sys/net`` of every network namespace that was looked into, all under one
parent: with 3,000 pods each path through the host's own proc passes 3,000 entries called ``ipv4``, which was half of
what a pod cost (decision 0133). A view of ours is a mount of proc that is attached nowhere, and takes its entries with
it. It takes 65 us.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator

from casemate.host import syscalls


@contextlib.contextmanager
def view() -> Generator[int]:
    """A descriptor of proc, for :func:`write`: whichever namespace the thread is in then counts."""
    number = _proc()
    try:
        yield number
    finally:
        os.close(number)


def _proc() -> int:
    """A view of our own, or the host's where the kernel gives none (in a user namespace of somebody's)."""
    try:
        configured = syscalls.fsopen("proc")
        try:
            syscalls.fsconfig_create(configured)
            return syscalls.fsmount(configured)
        finally:
            os.close(configured)
    except OSError:
        return os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def write(proc: int, name: str, value: str) -> None:
    """Set *name* (``net/ipv4/...``); one that the kernel lacks (without IPv6, or older) is passed over."""
    with contextlib.suppress(FileNotFoundError):
        number = os.open(f"sys/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(number, value.encode())
        finally:
            os.close(number)
