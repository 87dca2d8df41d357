"""What monitor and QEMU of one machine may take on the host: memory, processes, cpu, in the cgroup that they are in.

The guest's limits are held by the guest's kernel. These here hold where that kernel, or QEMU, is an attacker's: the
guest's memory and what the emulator needs beside it, and no more; a QEMU that leaks is killed, not the host.
Measured parts: docs/decisions/0103-limits-of-a-machine.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from casemate.host import cgroups
from casemate.isolation.microvm import argv

#: QEMU's own memory beside guest and translated code (heap, tables of the translator, page tables, 9p's buffers), the
#: monitor's (64 channels of 128 KiB), and what of the layers' files is cached in the cgroup's name.
OVERHEAD_BYTES = 96 << 20
#: QEMU's worker threads (at most 64 in its pool) and its five others, the monitor, an engine's waiter.
MOST_PROCESSES = 128
#: The host's page tables for the guest's memory: 8 bytes for each 4 KiB, and as much again for the levels above and for
#: what QEMU keeps of each page (dirty bits).
_TABLES_SHARE = 256
_UNLIMITED = "-1"


def memory_bytes(guest_bytes: int, accelerator: argv.Accelerator) -> int:
    """What a machine of *guest_bytes* may take on the host, all in all."""
    translated = accelerator.translation_mib * argv.MIB if accelerator.kind == "tcg" else 0
    return guest_bytes + guest_bytes // _TABLES_SHARE + translated + OVERHEAD_BYTES


def bound(folders: Sequence[str], guest_bytes: int, accelerator: argv.Accelerator) -> None:
    """Set the limits, before anything of the machine is there. :class:`~casemate.host.cgroups.CgroupFailed`."""
    most = str(memory_bytes(guest_bytes, accelerator))
    for folder in map(Path, folders):
        if (folder / "memory.max").exists():
            cgroups.write(folder / "memory.max", most)
            _write_if_there(folder / "memory.swap.max", "0")
        elif (folder / "memory.limit_in_bytes").exists():
            # Memory must never exceed memory and swap: the outer limit goes first, and comes back last.
            _write_if_there(folder / "memory.memsw.limit_in_bytes", _UNLIMITED)
            cgroups.write(folder / "memory.limit_in_bytes", most)
            _write_if_there(folder / "memory.memsw.limit_in_bytes", most)
        _write_if_there(folder / "pids.max", str(MOST_PROCESSES))


def _write_if_there(path: Path, value: str) -> None:
    if path.exists():
        cgroups.write(path, value)


def memory_kills(folders: Sequence[str]) -> int:
    """How often the kernel has killed for want of memory in these cgroups, since they were made."""
    files = ("memory.events", "memory.oom_control")
    return sum(cgroups.read_fields(Path(folder, name)).get("oom_kill", 0) for folder in folders for name in files)
