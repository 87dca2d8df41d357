"""What a level cannot meet, and why. Each is run all the same, and must fail: a level that learns it leaves the list.

docs/reference/levels.md has the same list; a test holds the two together.
"""

from __future__ import annotations

_TTY = "the terminal is the host's: it works as one and has no name below /dev/pts (gVisor's issue 13535)"
_STATUS = "gVisor writes neither row (its issue 14500); prctl and sigaction answer as they should"
_TASKS = (
    "the limit is on the host's tasks, with room for so many: a sandbox that runs more ends as a whole, no fork fails "
    "(gVisor's issue 2490)"
)

#: (level, case): reason.
EXCEPTIONS: dict[tuple[str, str], str] = {
    (
        "gvisor",
        "mount.tmpfs_nosuid",
    ): "/proc/mounts does not show the flag; set-uid programs gain nothing in gVisor at all",
    ("gvisor", "mount.sparse"): "its files count blocks by their size",
    ("gvisor", "mount.dev_mqueue"): "gVisor has no POSIX message queues (its issue 136)",
    ("gvisor", "mount.order"): "runsc mounts in an order of its own",
    ("gvisor", "limit.pids"): _TASKS,
    ("gvisor", "limit.update_pids"): _TASKS,
    (
        "gvisor",
        "limit.memory_child",
    ): "memory is the sandbox's: beyond the limit it ends as a whole (gVisor's issues 1967, 2533)",
    (
        "gvisor",
        "network.sysctl",
    ): "refused: runsc passes over kernel settings (gVisor's issue 10790), and gVisor has none of this name",
    ("gvisor", "tty.name"): _TTY,
    ("gvisor", "process.status_rows"): _STATUS,
    ("gvisor", "security.privileged"): "refused: gVisor has no privilege to give",
    (
        "gvisor",
        "pod.limit_of_one",
    ): "the memory of a pod of several is their sandbox's: the pod can be limited, not one of them",
}
