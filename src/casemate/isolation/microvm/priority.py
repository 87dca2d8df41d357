"""The priority of a machine that is being made to wait: whatever else the host has to do comes first.

``SCHED_IDLE`` (sched(7)): it takes what no other process wants. Not while QEMU starts: a process of that kind that
holds one of the kernel's locks and gets no time would hold up others.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def idle(pid: int) -> Generator[None]:
    """Let the threads of *pid*, and those that they make, have time that nobody else wants; as before afterwards."""
    _set(pid, os.SCHED_IDLE)
    try:
        yield
    finally:
        _set(pid, os.SCHED_OTHER)


def _set(pid: int, policy: int) -> None:
    # Where it has ended, or the host does not allow it, nothing is lost but time.
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                os.sched_setscheduler(int(task.name), policy, os.sched_param(0))
