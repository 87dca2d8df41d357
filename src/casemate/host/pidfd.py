"""Processes by identity: a pid together with its start time never names two processes.

Start times are clock ticks since boot (field 22 of /proc/<pid>/stat, proc(5)); a pid is reused, the pair is not.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """*pid* in our pid namespace, and its start time in ticks since boot."""

    pid: int
    start_ticks: int


def start_ticks(pid: int) -> int | None:
    """When *pid* started, or None when there is no such process."""
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything, also parentheses: count from the last.
    fields = data[data.rindex(b")") + 2 :].split()
    # A zombie has ended, whoever has still to reap it.
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def identity(pid: int) -> ProcessIdentity | None:
    """The identity of the living process *pid*."""
    ticks = start_ticks(pid)
    return None if ticks is None else ProcessIdentity(pid, ticks)


def is_alive(pid: int, start: int) -> bool:
    """Whether the process that was *pid*, started at *start*, still runs (a zombie does not)."""
    return start_ticks(pid) == start


def open_pidfd(pid: int, start: int | None = None) -> int | None:
    """A pidfd of *pid* (started at *start*, where given), or None when it is gone; the caller closes it."""
    try:
        number = os.pidfd_open(pid)
    except (ProcessLookupError, OSError):
        return None
    # Checked after opening: from here on the descriptor can name no other process.
    if start is not None and not is_alive(pid, start):
        os.close(number)
        return None
    return number


def send_signal(pid: int, start: int, number: int) -> bool:
    """Send signal *number* to exactly that process; False when it is gone."""
    descriptor = open_pidfd(pid, start)
    if descriptor is None:
        return False
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)
            return True
        return False
    finally:
        os.close(descriptor)
