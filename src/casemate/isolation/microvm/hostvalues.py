"""An engine's limits as files of its cgroup on the host (``linux.cgroupsPath``), where engines look.

Those to which the host's kernel can hold a whole machine: cpu, sets of cpus and memory nodes, reservation, swappiness,
input and output. Memory itself is the machine's (:mod:`hostlimits`), since QEMU is in this cgroup and takes more than
its guest's container may; the number of processes is QEMU's. Why: decision 0127.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.host import cgroups
from casemate.isolation.microvm.config import cpu_weight
from casemate.isolation.microvm.errors import BundleUnsupported
from casemate.isolation.microvm.oci import BlockIo, Resources, ThrottleDevice

#: What containerd and CRI-O say of the container that stands for a pod. Its cgroup has the whole machine in it and the
#: least weight there is, which is meant for a process that sleeps; the pod's own cgroup above has the pod's.
_SANDBOX_KEYS = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")
_DEFAULT_PERIOD_US = 100_000


@dataclass(frozen=True, slots=True)
class Value:
    """One value: its file and form in the hierarchies of version 1, and in version 2 (no name: there is none).

    *needed*: what was asked for cannot be had without it.
    """

    v1: str
    text_v1: str
    v2: str
    text_v2: str
    needed: bool = True


def values(wanted: Resources) -> list[Value]:
    """What is set, in the order in which the kernel takes it."""
    return [*_cpu(wanted), *_memory(wanted), *_block_io(wanted.block_io)]


def _cpu(wanted: Resources) -> Iterable[Value]:
    cpu = wanted.cpu
    if cpu is None:
        return
    if cpu.cpus:
        yield Value("cpuset.cpus", cpu.cpus, "cpuset.cpus", cpu.cpus)
    if cpu.mems:
        yield Value("cpuset.mems", cpu.mems, "cpuset.mems", cpu.mems)
    if cpu.shares:
        yield Value("cpu.shares", str(cpu.shares), "cpu.weight", str(cpu_weight(cpu.shares)))
    if cpu.period:
        yield Value("cpu.cfs_period_us", str(cpu.period), "", "", needed=False)
    if cpu.quota is not None:
        most = cpu.quota > 0
        text = f"{cpu.quota if most else 'max'} {cpu.period or _DEFAULT_PERIOD_US}"
        yield Value("cpu.cfs_quota_us", str(cpu.quota) if most else "-1", "cpu.max", text)


def _memory(wanted: Resources) -> Iterable[Value]:
    memory = wanted.memory
    if memory is None:
        return
    if memory.reservation is not None and memory.reservation > 0:
        text = str(memory.reservation)
        yield Value("memory.soft_limit_in_bytes", text, "memory.low", text, needed=False)
    if memory.swappiness is not None:
        yield Value("memory.swappiness", str(memory.swappiness), "", "", needed=False)
    if memory.disable_oom_killer:
        yield Value("memory.oom_control", "1", "", "", needed=False)


def _block_io(wanted: BlockIo | None) -> Iterable[Value]:
    if wanted is None:
        return
    if wanted.weight:
        # blkio.weight went with CFQ; BFQ's has its own name. 10..1000 to 1..10000 as runc converts.
        weight = max(wanted.weight, 10)
        yield Value("blkio.bfq.weight", str(weight), "io.weight", str(1 + (weight - 10) * 9999 // 990))
    for devices, v1, v2 in (
        (wanted.read_bps, "blkio.throttle.read_bps_device", "rbps"),
        (wanted.write_bps, "blkio.throttle.write_bps_device", "wbps"),
        (wanted.read_iops, "blkio.throttle.read_iops_device", "riops"),
        (wanted.write_iops, "blkio.throttle.write_iops_device", "wiops"),
    ):
        yield from (_throttle(one, v1, v2) for one in devices)


def _throttle(one: ThrottleDevice, v1: str, v2: str) -> Value:
    device = f"{one.major}:{one.minor}"
    return Value(v1, f"{device} {one.rate}", "io.max", f"{device} {v2}={one.rate or 'max'}")


def apply(folders: Sequence[str], wanted: Resources, annotations: Mapping[str, str]) -> None:
    """Set the values in *folders*, the container's cgroup in each hierarchy; nothing where there is none.

    Raises :class:`~casemate.host.cgroups.CgroupFailed` for what the kernel refuses, :class:`BundleUnsupported` for what
    this host has no file for.
    """
    if not folders or any(annotations.get(key) == "sandbox" for key in _SANDBOX_KEYS):
        return
    for one in values(wanted):
        if not _write(folders, one) and one.needed:
            raise BundleUnsupported(f"this host's control groups have no {one.v1} and no {one.v2}: not limited")


def _write(folders: Sequence[str], one: Value) -> bool:
    """Whether there is a file for it."""
    for name, text in ((one.v2, one.text_v2), (one.v1, one.text_v1)):
        for folder in folders:
            path = Path(folder, name)
            if name and path.exists():
                cgroups.write(path, text)
                return True
    return False
