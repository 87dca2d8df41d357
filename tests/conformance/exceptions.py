"""What a level cannot meet, and why. Each is run all the same, and must fail: a level that learns it leaves the list.

docs/reference/levels.md has the same list; a test holds the two together.
"""

from __future__ import annotations

_TTY = "the terminal is the host's: it works as one and has no name below /dev/pts"
_STATUS = "/proc/self/status does not show it"
_THREADS = "the sandbox's own threads would be counted"

#: (level, case): reason.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("namespace", "exec.dev_stdout"): (
        "crun 1.8 leaves an exec's pipes with the host's root: writing works, opening /dev/stdout anew does not "
        "(it does in `run`)"
    ),
    ("gvisor", "tty.is_one"): _TTY,
    ("gvisor", "tty.exec"): _TTY,
    (
        "gvisor",
        "mount.tmpfs_nosuid",
    ): "/proc/mounts does not show the flag; set-uid programs gain nothing in gVisor at all",
    ("gvisor", "mount.sparse"): "its files count blocks by their size",
    ("gvisor", "mount.dev_mqueue"): "gVisor has no POSIX message queues",
    ("gvisor", "mount.proc"): "the mount has no source of that name",
    ("gvisor", "mount.order"): "runsc mounts in an order of its own",
    ("gvisor", "limit.pids"): _THREADS,
    ("gvisor", "limit.update_pids"): _THREADS,
    ("gvisor", "limit.memory_child"): "memory is the sandbox's: beyond the limit it ends as a whole",
    ("gvisor", "stats.top"): "runsc knows names of programs, not command lines",
    ("gvisor", "network.sysctl"): "refused: runsc passes over kernel settings",
    ("gvisor", "process.signals_are_default"): _STATUS,
    ("gvisor", "security.no_new_privs"): _STATUS,
    ("gvisor", "security.no_new_privs_exec"): _STATUS,
    ("gvisor", "security.privileged"): "refused: gVisor has no privilege to give",
    (
        "gvisor",
        "pod.limit_of_one",
    ): "the memory of a pod of several is their sandbox's: the pod can be limited, not one of them",
}
