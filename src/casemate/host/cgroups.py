"""Control groups, v2 and v1, behind one Protocol: a pod's cgroup, its limits, its figures, its end.

The OCI runtime makes a container's own cgroup below the pod's; limits for the pod as a whole are set here. Paths
are relative to the hierarchy's root (``casemate/<pod>``). On a hybrid host (v1 controllers and an empty v2 tree)
v1 is used. Nothing here needs CAP_SYS_RESOURCE. Sources: the kernel's admin-guide/cgroup-v2 and cgroup-v1.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from casemate.spec.errors import CasemateError, HostLacks

#: CPU bandwidth period: the kernel's default, and what every OCI runtime uses.
CPU_PERIOD_US = 100_000
#: Bound on cgroups below one pod: guests of user namespaces may nest (cgroup namespaces), but not without end.
MAX_DESCENDANTS = 10_000


class CgroupFailed(CasemateError):
    code = "host.cgroup_failed"
    title = "The kernel refused a change of a control group"
    remedy = "`casemate system doctor` shows the hierarchy in use and what is delegated to Casemate."


class CgroupBusy(CgroupFailed):
    code = "host.cgroup_busy"
    title = "A control group still has processes"
    remedy = "`casemate system doctor` names the processes; one in state D waits for a device."
    retryable = True


class CgroupsMissing(HostLacks):
    code = "host.cgroups_missing"
    title = "No usable control group hierarchy is mounted"
    remedy = "Mount it: `mount -t cgroup2 none /sys/fs/cgroup`; the doctor lists the controllers that are needed."


@dataclass(frozen=True, slots=True)
class Limits:
    """What to set; None leaves a value as it is, 0 takes a limit away (``cpu_weight``: 1..10000, v2's scale)."""

    memory_bytes: int | None = None
    memory_swap_bytes: int | None = None
    memory_reservation_bytes: int | None = None
    cpu_millis: int | None = None
    cpu_weight: int | None = None
    cpuset_cpus: str | None = None
    pids: int | None = None
    io_weight: int | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """A cgroup's figures. None: the hierarchy does not tell, or (a limit) there is none."""

    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    memory_limit_bytes: int | None = None
    memory_cache_bytes: int | None = None
    cpu_usage_ns: int | None = None
    cpu_throttled_ns: int | None = None
    cpu_throttled_periods: int | None = None
    pids: int | None = None
    pids_limit: int | None = None
    #: How often a fork was refused for want of pids.
    pids_refused: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    oom_kills: int | None = None


class Cgroups(Protocol):
    """One host's hierarchy. *path* is relative to its root, without a leading slash."""

    version: int

    def create(self, path: str) -> None:
        """Make *path* and its parents, with the controllers handed down; one that exists is kept."""

    def exists(self, path: str) -> bool:
        """Whether *path* is there (in any controller)."""
        ...

    def remove(self, path: str) -> None:
        """Remove *path* and everything below; raises :class:`CgroupBusy` while a process is in it."""

    def kill(self, path: str) -> None:
        """KILL every process in and below *path*, those being forked too. Does not wait."""

    def pids(self, path: str) -> list[int]:
        """The processes in and below *path*."""
        ...

    def join(self, path: str, pid: int) -> None:
        """Move the process *pid* into *path*."""

    def set_limits(self, path: str, limits: Limits) -> list[str]:
        """Set *limits*; the warnings for those that this host cannot set."""
        ...

    def folders(self, path: str) -> list[str]:
        """The folders of *path*, one for each hierarchy in use: a process that is written to each has joined it."""
        ...

    def stats(self, path: str) -> Stats:
        """The figures of *path* with everything below it."""
        ...

    def freeze(self, path: str, frozen: bool) -> None:
        """Stop, or let go on, every process in and below *path*. Returns before all are stopped."""

    def is_frozen(self, path: str) -> bool:
        """Whether all of *path* is stopped."""
        ...

    def children(self, path: str) -> list[str]:
        """The names of the cgroups right below *path*."""
        ...


def check_path(path: str) -> str:
    """*path*, when it is relative, has no empty or dotted part, no control character, and at most 8 parts."""
    parts = path.split("/")
    if len(path) > 400 or len(parts) > 8 or not path.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise CgroupFailed(f"cgroup path {path[:100]!r} is not a short relative path")
    return path


def read_text(path: Path) -> str | None:
    """The text of a control file, or None when the kernel has none."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def read_number(path: Path) -> int | None:
    """The number in a control file; None for ``max`` or no file."""
    text = read_text(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


def read_fields(path: Path) -> dict[str, int]:
    """A flat-keyed control file (``key number`` lines)."""
    found: dict[str, int] = {}
    for line in (read_text(path) or "").splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            found[key] = int(value)
    return found


def write(path: Path, text: str) -> None:
    """Write one value to a control file; :class:`CgroupFailed` says which the kernel refused."""
    try:
        number = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(number, text.encode())
        finally:
            os.close(number)
    except OSError as error:
        raise CgroupFailed(
            f"writing {text!r} to {path}: {error.strerror}", path=str(path), value=text, errno=error.errno
        ) from error


def tree(folder: Path) -> list[Path]:
    """*folder* and the cgroups below it, the innermost first."""
    found: list[Path] = []
    waiting = [folder]
    while waiting and len(found) < MAX_DESCENDANTS:
        one = waiting.pop()
        found.append(one)
        with contextlib.suppress(OSError), os.scandir(one) as entries:
            waiting.extend(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    return found[::-1]


def remove_tree(folder: Path) -> None:
    """rmdir *folder* and everything below it; :class:`CgroupBusy` while a process is in one."""
    for one in tree(folder):
        try:
            one.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CgroupBusy(f"cgroup {one} cannot be removed: {error.strerror}", path=str(one)) from error


def remove_empty(folders: Iterable[str]) -> None:
    """rmdir those of *folders* that hold no process and no cgroup."""
    for folder in folders:
        with contextlib.suppress(OSError):
            Path(folder).rmdir()


def pids_in(folder: Path) -> list[int]:
    """The processes in *folder* and below."""
    found: set[int] = set()
    for one in tree(folder):
        for line in (read_text(one / "cgroup.procs") or "").split():
            found.add(int(line))
    return sorted(found)


def kill_each(folder: Path) -> None:
    """KILL each process in *folder* and below, through a pidfd and only while it is still there."""
    for pid in pids_in(folder):
        with contextlib.suppress(OSError):
            number = os.pidfd_open(pid)
            try:
                # Between the listing and the opening the pid may have got a new owner.
                if _is_in(folder, pid):
                    signal.pidfd_send_signal(number, signal.SIGKILL)
            finally:
                os.close(number)


def _is_in(folder: Path, pid: int) -> bool:
    """Whether *pid* is in a cgroup whose path ends in *folder*'s own or lies below it."""
    parts = folder.parts[-2:]
    wanted = "/" + "/".join(parts)
    lines = (read_text(Path(f"/proc/{pid}/cgroup")) or "").splitlines()
    return any(f"{line}/".find(f"{wanted}/") >= 0 for line in lines)


def child_names(folder: Path) -> list[str]:
    """The names of the cgroups right below *folder*."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return []


async def end(cgroups: Cgroups, path: str, *, timeout_s: float = 5.0) -> None:
    """Kill what is in *path*, wait until it is gone (at most *timeout_s*), and remove it.

    Raises :class:`CgroupBusy` when a process outlives that.
    """
    import asyncio  # noqa: PLC0415

    deadline = asyncio.get_running_loop().time() + timeout_s
    pause_s = 0.001
    while cgroups.exists(path):
        with contextlib.suppress(CgroupBusy):
            cgroups.remove(path)
            return
        cgroups.kill(path)
        if asyncio.get_running_loop().time() > deadline:
            pids = cgroups.pids(path)
            raise CgroupBusy(f"cgroup {path}: processes {pids[:10]} outlive KILL by {timeout_s:g} s", path=path)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.1)
