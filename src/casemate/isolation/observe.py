"""What a bundle depends on, as this process and this host have it."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

from casemate.host import programs
from casemate.isolation.bundle import HostFacts
from casemate.isolation.process import RLIMITS


def observe() -> HostFacts:
    """The facts of this process; its limits are those that a container's can at most be."""
    limits = {}
    for name in RLIMITS:
        number = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if number is not None:
            limits[name] = resource.getrlimit(number)[1]
    return HostFacts(
        machine=platform.machine(),
        bounding=every_capability(int(Path("/proc/sys/kernel/cap_last_cap").read_text())),
        hard_limits=limits,
        oom_score_adj=int(Path("/proc/self/oom_score_adj").read_text()),
        catatonit=_find("catatonit"),
        mqueue=Path("/dev/mqueue").is_dir(),
    )


def every_capability(last: int) -> int:
    """The mask of capabilities 0 to *last*, all that this kernel knows: what a pod's own user namespace has.

    Not what hostd holds: its unit bounds it, and a new user namespace starts with a full set (user_namespaces(7)).
    """
    return (1 << (last + 1)) - 1


def _find(name: str) -> str:
    try:
        return programs.find_program(name)
    except programs.ProgramMissing:
        return ""


def boot_id() -> str:
    """The kernel's name for this boot; another after each restart of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def is_hybrid() -> bool:
    """Whether cgroup v1 is in use with an empty cgroup2 beside it."""
    root = Path("/sys/fs/cgroup")
    return not (root / "cgroup.controllers").exists() and (root / "unified/cgroup.procs").exists()
