"""Which hierarchy of control groups this host uses: v2, or v1 where its controllers are mounted (a hybrid too)."""

from __future__ import annotations

from pathlib import Path

from casemate.host import mountinfo
from casemate.host.cgroups import Cgroups, CgroupsMissing
from casemate.host.cgroups_v1 import CgroupsV1
from casemate.host.cgroups_v2 import CgroupsV2

DEFAULT_ROOT = Path("/sys/fs/cgroup")


def detect(root: Path = DEFAULT_ROOT) -> Cgroups:
    """The hierarchy that this host uses; raises :class:`CgroupsMissing`."""
    found = mountinfo.parse_mountinfo(Path("/proc/self/mountinfo").read_bytes(), root)
    for mount in found:
        if mount.target == root and mount.kind == "cgroup2":
            return CgroupsV2(root)
    controllers: dict[str, Path] = {}
    for mount in found:
        if mount.kind == "cgroup":
            for name in mount.super_options.split(","):
                controllers.setdefault(name, mount.target)
        elif mount.kind == "cgroup2":
            controllers["unified"] = mount.target
    if "memory" in controllers and "pids" in controllers:
        return CgroupsV1({name: place for name, place in controllers.items() if name != "rw"})
    raise CgroupsMissing(f"{root}: neither cgroup2 nor v1's memory and pids controllers are mounted")
