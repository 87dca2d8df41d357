"""How a machine ended, as an error that says so: by the file that its monitor leaves, and its cgroup's counters.

The file's bytes come from a process that a guest may have broken into: they are bounded, and shown as text alone.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from casemate.host import durable
from casemate.isolation.microvm.errors import GuestPanicked, MachineLost, MachineMemory, MonitorFailed
from casemate.spec.errors import CasemateError

#: In the machine's folder; written by the monitor before it tells anybody (shim/monitor.c).
FILE = "end"
_MAX_BYTES, _CONSOLE, _BEFORE = 16 << 10, 1000, 200
_PANIC = "Kernel panic - not syncing:"
_BROKE = "the guest broke the protocol"
#: Of a process's flags (proc(5), stat, the ninth; linux/sched.h).
_PF_EXITING = 4


def open_file(folder: Path) -> int:
    """A new, empty file for the monitor's last word."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_APPEND
    return os.open(folder / FILE, flags, 0o600)


def read(folder: Path) -> bytes:
    """What the monitor wrote; empty when it was killed before it could, or runs."""
    try:
        return durable.read_bounded(folder / FILE, _MAX_BYTES)
    except (OSError, CasemateError):
        return b""


def is_over(pid: int) -> bool:
    """Whether the process *pid*, which nobody else has reaped, has ended or is ending."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        # What it held is closed, and heard of, before it is a zombie: it is on its way there.
        return fields[0] in "ZX" or bool(int(fields[6]) & _PF_EXITING)
    except (OSError, IndexError, ValueError):
        return True


def explain(said: bytes, memory_kills: int = 0) -> CasemateError:
    """The end that *said* tells of; *memory_kills*: how often the kernel killed for want of memory in its cgroup."""
    console = _printable(said[4:])
    shown = f"; console: {console[-_CONSOLE:]}" if console else ""
    if memory_kills:
        return MachineMemory(f"the machine's QEMU was killed: it took more memory than its cgroup may have{shown}")
    if len(said) < 4:
        return MachineLost("the machine's monitor was killed")
    status = int.from_bytes(said[:4], "little") & 0xFFFF
    if _PANIC in console:
        at = console.rindex(_PANIC)
        why = console[at + len(_PANIC) :].splitlines()
        # From a little before the panic's own line: what comes after is a list of addresses.
        around = console[max(0, at - _BEFORE) : at + _CONSOLE]
        return GuestPanicked(f"the guest's kernel panicked: {why[0].strip()[:200] if why else ''}; console: {around}")
    if _BROKE in console:
        return MonitorFailed(f"{_BROKE}, and was ended{shown}")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGSYS:
            return MachineLost(f"the machine's QEMU was killed for a system call that its jail does not allow{shown}")
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        return MachineLost(f"the machine's QEMU was killed by {name}{shown}")
    return MachineLost(f"the machine's QEMU ended with {os.waitstatus_to_exitcode(status & 0xFF00)}{shown}")


def _printable(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text if c != "\r").strip()


def words(error: CasemateError) -> str:
    """For a container's record: what happened, and its code."""
    return f"{error.detail} ({error.code})"
