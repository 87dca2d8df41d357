"""Bounds of machines: memory that no host has, limits of a whole pod, the writable layer's device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from casemate.isolation.level import Runtime
from casemate.isolation.microvm import argv, bundles, config, disks, driver, oci
from casemate.isolation.microvm.errors import BundleUnsupported, MemoryUnfit
from casemate.spec.workload import PodSpec, Resources

ID = "a" * 64


def level(most_bytes: int) -> driver.MicrovmLevel:
    return driver.MicrovmLevel(
        Runtime("casemate-vm", "/run/vm"), "", Path("/layers"), lambda _pod: None, most_bytes=most_bytes
    )


def pod(**values: object) -> PodSpec:
    return PodSpec(id=ID, name="p", hostname="p", level="microvm", resources=Resources(**values))  # type: ignore[arg-type]


def test_a_machine_larger_than_its_host_is_refused() -> None:
    host = 8 << 30
    assert level(host).memory_bytes(pod(memory_bytes=1 << 30), None) == 1280 << 20
    # The machine's own size is rounded up; what counts is what was asked for.
    assert level(host).memory_bytes(pod(memory_bytes=7 << 30), None) == 8 << 30
    with pytest.raises(MemoryUnfit, match="the host has"):
        level(host).memory_bytes(pod(memory_bytes=8 << 30), None)
    assert level(0).memory_bytes(pod(memory_bytes=8 << 30), None) == 10 << 30


def test_a_pods_limits_are_files_of_its_guest() -> None:
    wanted = pod(memory_bytes=64 << 20, cpu_millis=500, pids=20, memory_reservation_bytes=1 << 20).resources
    text = ",".join(f"{name}={value}" for name, value in driver.pod_limits(wanted))
    found = oci.Config(process=oci.Process(), annotations={bundles.POD_LIMITS: text})
    assert dict(bundles.pod_limits(found)) == {
        "memory.max": str(64 << 20),
        "memory.low": str(1 << 20),
        "pids.max": "20",
        "cpu.max": "50000 100000",
    }
    assert driver.pod_limits(Resources(pids=-1)) == []


@pytest.mark.parametrize("text", ["cgroup.procs=1", "memory.max", "../x=1", "pids.max=1\0"])
def test_no_other_file_is_written(text: str) -> None:
    with pytest.raises(BundleUnsupported):
        bundles.pod_limits(oci.Config(process=oci.Process(), annotations={bundles.POD_LIMITS: text}))


def test_shares_become_weights() -> None:
    assert [config.cpu_weight(shares) for shares in (2, 1024, 262_144, 0, 1 << 30)] == [1, 39, 10_000, 1, 10_000]


def test_a_guest_cannot_write_beyond_its_scratch_file() -> None:
    words = argv.Scratch(
        (json.dumps(disks.scratch_file("file")), json.dumps(disks.scratch_on("file", 64 << 20))), 17
    ).words()
    assert words[:2] == ("-add-fd", f"fd=17,set={argv.SCRATCH_FDSET}")
    lower, upper = (json.loads(words[index]) for index in (3, 5))
    assert lower["filename"] == f"/dev/fdset/{argv.SCRATCH_FDSET}"
    assert (upper["size"], upper["node-name"], upper["file"]) == (64 << 20, "scratch", "file")
    assert "werror=report" in words[-1]
    empty = argv.Scratch(disks.no_scratch()).words()
    assert "-add-fd" not in empty
    assert json.loads(empty[1])["driver"] == "null-co"
    assert empty[-1] == words[-1], "the same device in a template and in its clones"
