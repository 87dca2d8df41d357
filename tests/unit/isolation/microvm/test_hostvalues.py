"""An engine's limits on the host: which file gets what, in either version, in folders that stand for the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.host.cgroups import CgroupFailed
from casemate.isolation.microvm import hostvalues
from casemate.isolation.microvm.errors import BundleUnsupported
from casemate.isolation.microvm.oci import read_config

DOCUMENT = b"""{"process": {"args": ["x"]}, "linux": {"resources": {
  "memory": {"limit": 50593792, "reservation": 50593792, "swap": 50593792, "swappiness": 10, "disableOOMKiller": true},
  "cpu": {"shares": 2048, "quota": 200000, "period": 500000, "cpus": "0-1", "mems": "0"},
  "pids": {"limit": 5},
  "blockIO": {"weight": 500, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 102400}]}
}}}"""
V1 = {
    "cpu": ("cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
    "cpuset": ("cpuset.cpus", "cpuset.mems"),
    "memory": ("memory.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.swappiness", "memory.oom_control"),
    "pids": ("pids.max",),
    "blkio": ("blkio.bfq.weight", "blkio.throttle.read_bps_device"),
}
V2 = (
    "cpu.weight",
    "cpu.max",
    "cpuset.cpus",
    "cpuset.mems",
    "memory.max",
    "memory.low",
    "pids.max",
    "io.weight",
    "io.max",
)


def hierarchies(folder: Path) -> list[str]:
    for name, files in V1.items():
        (folder / name).mkdir()
        for file in files:
            (folder / name / file).touch()
    return [str(folder / name) for name in V1]


def written(folder: Path) -> dict[str, str]:
    return {one.name: one.read_text() for one in folder.rglob("*.*") if one.read_text()}


def test_each_value_is_in_its_file(tmp_path: Path) -> None:
    wanted = read_config(DOCUMENT).linux.resources
    (tmp_path / "one").mkdir()
    hostvalues.apply(hierarchies(tmp_path / "one"), wanted, {})
    # Not memory.limit_in_bytes and pids.max: those are the machine's.
    assert written(tmp_path / "one") == {
        "cpu.shares": "2048",
        "cpu.cfs_quota_us": "200000",
        "cpu.cfs_period_us": "500000",
        "cpuset.cpus": "0-1",
        "cpuset.mems": "0",
        "memory.soft_limit_in_bytes": "50593792",
        "memory.swappiness": "10",
        "memory.oom_control": "1",
        "blkio.bfq.weight": "500",
        "blkio.throttle.read_bps_device": "8:0 102400",
    }
    two = tmp_path / "two"
    two.mkdir()
    for file in V2:
        (two / file).touch()
    hostvalues.apply([str(two)], wanted, {})
    assert written(two) == {
        "cpu.weight": "79",
        "cpu.max": "200000 500000",
        "cpuset.cpus": "0-1",
        "cpuset.mems": "0",
        "memory.low": "50593792",
        "io.weight": "4950",
        "io.max": "8:0 rbps=102400",
    }


def test_a_pods_own_container_slows_nobody(tmp_path: Path) -> None:
    """Its cgroup has the whole machine in it."""
    wanted = read_config(DOCUMENT).linux.resources
    hostvalues.apply(hierarchies(tmp_path), wanted, {"io.kubernetes.cri.container-type": "sandbox"})
    assert written(tmp_path) == {}
    hostvalues.apply([], wanted, {})


def test_what_the_host_cannot_hold_is_said(tmp_path: Path) -> None:
    wanted = read_config(DOCUMENT).linux.resources
    folders = hierarchies(tmp_path)
    (tmp_path / "blkio/blkio.bfq.weight").unlink()
    with pytest.raises(BundleUnsupported, match=r"no blkio.bfq.weight and no io.weight"):
        hostvalues.apply(folders, wanted, {})
    (tmp_path / "cpuset/cpuset.cpus").unlink()
    (tmp_path / "cpuset/cpuset.cpus").mkdir()
    with pytest.raises(CgroupFailed, match=r"cpuset.cpus"):
        hostvalues.apply(folders, wanted, {})


@pytest.mark.parametrize(
    "resources",
    [
        '{"cpu": {"cpus": "0; rm"}}',
        '{"cpu": {"mems": "../x"}}',
        '{"memory": {"swappiness": 1000}}',
        '{"blockIO": {"weight": 5000}}',
        '{"blockIO": {"throttleReadBpsDevice": [{"major": -1, "minor": 0, "rate": 1}]}}',
        '{"blockIO": {"throttleReadBpsDevice": [{"major": 1, "minor": 0, "rate": "1 2:2 3"}]}}',
    ],
)
def test_values_that_are_none(resources: str) -> None:
    with pytest.raises(BundleUnsupported):
        read_config(f'{{"process": {{}}, "linux": {{"resources": {resources}}}}}'.encode())


def test_a_quota_is_taken_away(tmp_path: Path) -> None:
    document = b'{"process": {}, "linux": {"resources": {"cpu": {"quota": -1}, "blockIO": {"weight": 0}}}}'
    hostvalues.apply(hierarchies(tmp_path), read_config(document).linux.resources, {})
    assert written(tmp_path) == {"cpu.cfs_quota_us": "-1"}
