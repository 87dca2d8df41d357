"""cgroup v2 (see :mod:`casemate.host.cgroups` for the Protocol)."""

from __future__ import annotations

import contextlib
from pathlib import Path

from casemate.host import cgroups as base

_CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")


class CgroupsV2:
    """The unified hierarchy at *root*."""

    version = 2

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, path: str) -> Path:
        return self.root / base.check_path(path)

    def create(self, path: str) -> None:
        current = self.root
        for part in base.check_path(path).split("/"):
            self._hand_down(current)
            current /= part
            current.mkdir(exist_ok=True)
        self._hand_down(current)

    def _hand_down(self, folder: Path) -> None:
        """Enable our controllers for *folder*'s children, each alone: one that is missing must not stop the rest."""
        have = (base.read_text(folder / "cgroup.controllers") or "").split()
        active = (base.read_text(folder / "cgroup.subtree_control") or "").split()
        for name in _CONTROLLERS:
            if name in have and name not in active:
                with contextlib.suppress(base.CgroupFailed):
                    base.write(folder / "cgroup.subtree_control", f"+{name}")

    def exists(self, path: str) -> bool:
        return self.folder(path).is_dir()

    def remove(self, path: str) -> None:
        base.remove_tree(self.folder(path))

    def kill(self, path: str) -> None:
        folder = self.folder(path)
        if (folder / "cgroup.kill").exists():  # Linux 5.14
            base.write(folder / "cgroup.kill", "1")
            return
        base.kill_each(folder)

    def pids(self, path: str) -> list[int]:
        return base.pids_in(self.folder(path))

    def join(self, path: str, pid: int) -> None:
        folder = self.folder(path)
        if not base.child_names(folder):
            # A cgroup takes processes, or gives controllers to children, not both: here are no children to give to.
            for name in (base.read_text(folder / "cgroup.subtree_control") or "").split():
                base.write(folder / "cgroup.subtree_control", f"-{name}")
        base.write(self.folder(path) / "cgroup.procs", str(pid))

    def set_limits(self, path: str, limits: base.Limits) -> list[str]:
        folder, warnings = self.folder(path), []
        swap = limits.memory_swap_bytes
        if swap and limits.memory_bytes:
            # Docker's and OCI's figure counts memory and swap together, v2's file swap alone.
            swap = max(swap - limits.memory_bytes, 0)
        quota = None
        if limits.cpu_millis is not None:
            quota = limits.cpu_millis * base.CPU_PERIOD_US // 1000
        wanted = (
            ("memory.max", _or_max(limits.memory_bytes)),
            ("memory.swap.max", _or_max(swap, zero=bool(limits.memory_swap_bytes))),
            ("memory.low", None if limits.memory_reservation_bytes is None else str(limits.memory_reservation_bytes)),
            ("cpu.max", None if quota is None else f"{quota or 'max'} {base.CPU_PERIOD_US}"),
            ("cpu.weight", None if limits.cpu_weight is None else str(limits.cpu_weight or 100)),
            ("cpuset.cpus", limits.cpuset_cpus),
            ("pids.max", _or_max(limits.pids)),
            ("io.weight", None if limits.io_weight is None else str(limits.io_weight or 100)),
        )
        for name, value in wanted:
            if value is None:
                continue
            if not (folder / name).exists():
                warnings.append(f"{name} is not to be had here (controller missing or not delegated): not limited")
                continue
            base.write(folder / name, value)
        return warnings

    def folders(self, path: str) -> list[str]:
        return [str(self.folder(path))]

    def stats(self, path: str) -> base.Stats:
        folder = self.folder(path)
        cpu = base.read_fields(folder / "cpu.stat")
        memory = base.read_fields(folder / "memory.stat")
        read, written = _io(base.read_text(folder / "io.stat"))
        throttled = cpu.get("throttled_usec")
        return base.Stats(
            memory_bytes=base.read_number(folder / "memory.current"),
            memory_peak_bytes=base.read_number(folder / "memory.peak"),
            memory_limit_bytes=base.read_number(folder / "memory.max"),
            memory_cache_bytes=memory.get("inactive_file"),
            cpu_usage_ns=cpu["usage_usec"] * 1000 if "usage_usec" in cpu else None,
            cpu_throttled_ns=None if throttled is None else throttled * 1000,
            cpu_throttled_periods=cpu.get("nr_throttled"),
            pids=base.read_number(folder / "pids.current"),
            pids_limit=base.read_number(folder / "pids.max"),
            pids_refused=base.read_fields(folder / "pids.events").get("max"),
            io_read_bytes=read,
            io_write_bytes=written,
            oom_kills=base.read_fields(folder / "memory.events").get("oom_kill"),
        )

    def freeze(self, path: str, frozen: bool) -> None:
        base.write(self.folder(path) / "cgroup.freeze", "1" if frozen else "0")

    def is_frozen(self, path: str) -> bool:
        # cgroup.events says frozen once the last task has stopped; what was asked for stands here at once.
        return (base.read_text(self.folder(path) / "cgroup.freeze") or "").strip() == "1"

    def children(self, path: str) -> list[str]:
        return base.child_names(self.folder(path))


def _or_max(value: int | None, *, zero: bool = False) -> str | None:
    if value is None:
        return None
    return str(value) if value or zero else "max"


def _io(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    read = written = 0
    for word in text.split():
        key, _, value = word.partition("=")
        if value.isdigit():
            read += int(value) if key == "rbytes" else 0
            written += int(value) if key == "wbytes" else 0
    return read, written
