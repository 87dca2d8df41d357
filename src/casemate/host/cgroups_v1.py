"""cgroup v1, also under a hybrid (see :mod:`casemate.host.cgroups` for the Protocol)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from casemate.host import cgroups as base

#: Controllers that a pod gets a cgroup in, where they are mounted.
_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "cpuset", "blkio", "freezer", "devices")
#: What v1 says where v2 says "max": the largest number of whole pages.
_NO_LIMIT = 1 << 62


class CgroupsV1:
    """The v1 hierarchies, each controller at its mount point."""

    version = 1

    def __init__(self, controllers: Mapping[str, Path]) -> None:
        self.controllers = {name: controllers[name] for name in _CONTROLLERS if name in controllers}
        #: The other hierarchies (name=systemd, net_cls, an empty cgroup2): nothing is set there, but OCI runtimes
        #: put containers into each that is mounted, and their cgroups must go too.
        self._others = tuple(dict.fromkeys(place for name, place in controllers.items() if name not in _CONTROLLERS))

    def folder(self, controller: str, path: str) -> Path | None:
        place = self.controllers.get(controller)
        return None if place is None else place / base.check_path(path)

    def _folders(self, path: str) -> Iterable[Path]:
        """The cgroup in each hierarchy, once (cpu and cpuacct are often one)."""
        return dict.fromkeys(place / base.check_path(path) for place in self.controllers.values())

    def _every(self, path: str) -> Iterable[Path]:
        """As :meth:`_folders`, and the cgroup in the other hierarchies, where a runtime made one."""
        own = (*self.controllers.values(), *self._others)
        return dict.fromkeys(place / base.check_path(path) for place in own)

    def create(self, path: str) -> None:
        for place in dict.fromkeys(self.controllers.values()):
            current = place
            for part in base.check_path(path).split("/"):
                parent, current = current, current / part
                current.mkdir(exist_ok=True)
                if place == self.controllers.get("cpuset"):
                    _inherit_cpuset(parent, current)
                    if parent == place:
                        _let_inherit(current)

    def exists(self, path: str) -> bool:
        return any(folder.is_dir() for folder in self._every(path))

    def remove(self, path: str) -> None:
        for folder in self._every(path):
            base.remove_tree(folder)

    def kill(self, path: str) -> None:
        # Frozen, nothing can fork away from us; a frozen task dies of KILL once thawed.
        with contextlib.suppress(base.CgroupFailed):
            self.freeze(path, True)
        try:
            # In the other hierarchies too: a runtime that is ended on its way has joined some of them only.
            for folder in self._every(path):
                base.kill_each(folder)
        finally:
            with contextlib.suppress(base.CgroupFailed):
                self.freeze(path, False)

    def pids(self, path: str) -> list[int]:
        return sorted({pid for folder in self._folders(path) for pid in base.pids_in(folder)})

    def join(self, path: str, pid: int) -> None:
        for folder in self._folders(path):
            base.write(folder / "cgroup.procs", str(pid))

    def set_limits(self, path: str, limits: base.Limits) -> list[str]:
        warnings: list[str] = []
        if limits.memory_bytes is not None:
            warnings += self._set_memory(path, limits.memory_bytes, limits.memory_swap_bytes)
        quota = None
        if limits.cpu_millis is not None:
            quota = limits.cpu_millis * base.CPU_PERIOD_US // 1000 or -1
        shares = None if limits.cpu_weight is None else cpu_shares(limits.cpu_weight or 100)
        reservation = limits.memory_reservation_bytes
        io_weight = None if limits.io_weight is None else str(min(limits.io_weight or 100, 1000))
        wanted = (
            ("memory", "memory.soft_limit_in_bytes", None if reservation is None else str(reservation or -1)),
            ("cpu", "cpu.cfs_quota_us", None if quota is None else str(quota)),
            ("cpu", "cpu.shares", None if shares is None else str(shares)),
            ("cpuset", "cpuset.cpus", limits.cpuset_cpus),
            ("pids", "pids.max", None if limits.pids is None else str(limits.pids or "max")),
            ("blkio", "blkio.bfq.weight", io_weight),
        )
        for controller, name, value in wanted:
            if value is None:
                continue
            folder = self.folder(controller, path)
            if folder is None or not (folder / name).exists():
                warnings.append(f"{name} is not to be had on this host: not limited")
                continue
            base.write(folder / name, value)
        return warnings

    def _set_memory(self, path: str, memory: int, swap: int | None) -> list[str]:
        folder = self.folder("memory", path)
        if folder is None:
            return ["the memory controller is not mounted: not limited"]
        limit, both = folder / "memory.limit_in_bytes", folder / "memory.memsw.limit_in_bytes"
        value = str(memory or -1)
        if not both.exists():
            base.write(limit, value)
            return ["swap is not counted on this host (swapaccount=1 at boot would)"] if swap else []
        # memory must never exceed memory and swap: raise the outer limit first, then set both.
        current = base.read_number(both) or _NO_LIMIT
        wanted_both = str(swap or -1) if swap is not None else str(-1)
        if memory == 0 or memory > current:
            base.write(both, wanted_both)
            base.write(limit, value)
        else:
            base.write(limit, value)
            base.write(both, wanted_both)
        return []

    def folders(self, path: str) -> list[str]:
        return [str(folder) for folder in self._folders(path)]

    def stats(self, path: str) -> base.Stats:
        memory = self.folder("memory", path) or Path("/nonexistent")
        cpu = self.folder("cpu", path) or Path("/nonexistent")
        account = self.folder("cpuacct", path) or Path("/nonexistent")
        pids = self.folder("pids", path) or Path("/nonexistent")
        throttle = base.read_fields(cpu / "cpu.stat")
        limit = base.read_number(memory / "memory.limit_in_bytes")
        read, written = self._io(path)
        return base.Stats(
            memory_bytes=base.read_number(memory / "memory.usage_in_bytes"),
            memory_peak_bytes=base.read_number(memory / "memory.max_usage_in_bytes"),
            memory_limit_bytes=None if limit is None or limit >= _NO_LIMIT else limit,
            memory_cache_bytes=base.read_fields(memory / "memory.stat").get("total_inactive_file"),
            cpu_usage_ns=base.read_number(account / "cpuacct.usage"),
            cpu_throttled_ns=throttle.get("throttled_time"),
            cpu_throttled_periods=throttle.get("nr_throttled"),
            pids=base.read_number(pids / "pids.current"),
            pids_limit=base.read_number(pids / "pids.max"),
            pids_refused=base.read_fields(pids / "pids.events").get("max"),
            io_read_bytes=read,
            io_write_bytes=written,
            oom_kills=self._oom_kills(memory),
        )

    def _oom_kills(self, memory: Path) -> int | None:
        """v1 counts in the cgroup where the process was: a pod's are those of its containers as well."""
        if not memory.is_dir():
            return None
        return sum(base.read_fields(one / "memory.oom_control").get("oom_kill", 0) for one in base.tree(memory))

    def _io(self, path: str) -> tuple[int | None, int | None]:
        folder = self.folder("blkio", path)
        for name in ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"):
            text = base.read_text(folder / name) if folder else None
            if text is not None:
                rows = [line.split() for line in text.splitlines()]
                totals = {
                    kind: sum(int(row[2]) for row in rows if len(row) == 3 and row[1] == kind)
                    for kind in ("Read", "Write")
                }
                return totals["Read"], totals["Write"]
        return None, None

    def freeze(self, path: str, frozen: bool) -> None:
        folder = self.folder("freezer", path)
        if folder is None:
            raise base.CgroupFailed("the freezer controller is not mounted: pausing is not possible on this host")
        base.write(folder / "freezer.state", "FROZEN" if frozen else "THAWED")

    def is_frozen(self, path: str) -> bool:
        folder = self.folder("freezer", path)
        # freezer.state says FREEZING until the last task has stopped; what was asked for stands here at once.
        return folder is not None and (base.read_text(folder / "freezer.self_freezing") or "").strip() == "1"

    def children(self, path: str) -> list[str]:
        return sorted({name for folder in self._folders(path) for name in base.child_names(folder)})


def _inherit_cpuset(parent: Path, folder: Path) -> None:
    """A new v1 cpuset is empty, and takes no process until it has cpus and memory nodes."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not base.read_text(folder / name):
            with contextlib.suppress(base.CgroupFailed):
                base.write(folder / name, base.read_text(parent / name) or "0")


def _let_inherit(folder: Path) -> None:
    """Have the kernel give new cpusets below *folder* its cpus and nodes: each one that is written has it plan its
    processors anew, by a walk through all cpusets (1 ms for each pod with 2,000)."""
    flag = folder / "cgroup.clone_children"
    if (base.read_text(flag) or "").strip() == "0":
        with contextlib.suppress(base.CgroupFailed):
            base.write(flag, "1")


def cpu_shares(weight: int) -> int:
    """v1's cpu.shares (2..262144) for v2's cpu.weight (1..10000), the inverse of the OCI runtimes' formula."""
    return min(max(2 + (weight - 1) * 262142 // 9999, 2), 262144)
