"""The writable layer of a container in a machine: a file system on a scratch device, which is a file of the host's."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tests.integration.daemons import Daemons
from tests.integration.levels.conftest import Run
from tests.integration.levels.test_microvm import MICROVM, container, machines, problem, until
from tests.integration.levels.test_microvm_ends import qemu_of, state

pytestmark = pytest.mark.root


def scratch_files(pair: Daemons) -> list[Path]:
    return sorted((pair.scope.folder / "host-state/pods").glob("*/*/writable.ext4"))


def taken_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_the_size_is_held_and_what_is_freed_comes_back(pair: Daemons, vm: Run) -> None:
    with container(vm, "sized", "--storage-size", "64m", "busybox", "sleep", "100000"):
        (file,) = scratch_files(pair)
        assert file.stat().st_size == 64 << 20
        assert file.stat().st_uid == 0
        assert taken_bytes(file) < 8 << 20
        done = vm("exec", "sized", "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=200 2>&1; sync")
        assert "No space left on device" in done.stdout
        assert taken_bytes(file) > 40 << 20
        # Nothing ends of it, and what is freed is the host's again.
        assert vm("exec", "sized", "sh", "-c", "rm /big; sync; echo x > /small; cat /small").stdout == "x\n"
        until(lambda: taken_bytes(file) < 16 << 20)
    assert scratch_files(pair) == []


def test_what_was_written_outlives_a_qemu_that_is_killed(pair: Daemons, vm: Run, tmp_path: Path) -> None:
    script = "echo first >/kept; rm /etc/group; mkdir /made; sync; sleep 100000"
    with container(vm, "outlives", "busybox", "sh", "-c", script):
        until(lambda: vm("exec", "outlives", "test", "-d", "/made").returncode == 0)
        assert vm("exec", "outlives", "sync").returncode == 0
        (machine,) = machines(pair)
        os.kill(qemu_of(pair, machine), signal.SIGKILL)
        until(lambda: state(vm, "outlives")["status"] == "exited")
        until(lambda: machines(pair) == [])
        # By a machine that brings the file system in order for this one look; the host never mounts it.
        assert vm("cp", "outlives:/kept", str(tmp_path / "out")).returncode == 0
        assert (tmp_path / "out").read_text() == "first\n"
        assert {"A /kept", "D /etc/group", "A /made"} <= set(vm("diff", "outlives").stdout.splitlines())
        (tmp_path / "in").write_text("second\n")
        assert vm("cp", str(tmp_path / "in"), "outlives:/made/in").returncode == 0
        assert vm("start", "outlives").returncode == 0
        assert vm("exec", "outlives", "cat", "/kept", "/made/in").stdout == "first\nsecond\n"
        assert "writable.ext4" not in Path("/proc/mounts").read_text()
        assert not Path("/sys/block").joinpath("loop0/loop/backing_file").exists() or all(
            "writable.ext4" not in one.read_text() for one in Path("/sys/block").glob("loop*/loop/backing_file")
        )


def test_a_file_system_that_a_guest_spoilt_is_the_guests_affair(pair: Daemons, vm: Run) -> None:
    with container(vm, "spoilt", "busybox", "true"):
        until(lambda: state(vm, "spoilt")["status"] == "exited" and machines(pair) == [])
        (file,) = scratch_files(pair)
        with file.open("r+b") as out:
            out.seek(1024)
            out.write(os.urandom(64 << 10))
        done = vm("--json", "start", "spoilt")
        assert done.returncode == 125
        assert "microvm.rootfs" in done.stdout
        assert "scratch device" in done.stdout
        assert machines(pair) == []


@pytest.mark.parametrize("size", ["5m", "15m", "100000g"])
def test_a_size_that_cannot_be_is_refused(pair: Daemons, vm: Run, size: str) -> None:
    done = vm("--json", "run", "--rm", *MICROVM, "--storage-size", size, "busybox", "true")
    assert done.returncode == 125
    assert problem(done) == "microvm.scratch", done.stderr
    assert vm("ps", "-aq").stdout == ""
    assert machines(pair) == []
    assert scratch_files(pair) == []


def test_one_that_is_removed_at_its_end_writes_to_memory(pair: Daemons, vm: Run) -> None:
    done = vm("run", "--rm", *MICROVM, "busybox", "sh", "-c", "df -k / | tail -1; echo x > /x")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) < 256 << 10, "half of the machine's memory at most"
    assert scratch_files(pair) == []


def test_containers_of_a_pod_write_to_memory_within_their_size(pair: Daemons, vm: Run) -> None:
    assert vm("pod", "create", *MICROVM, "--name", "shared").returncode == 0
    try:
        done = vm("run", "--rm", "--pod", "shared", "--storage-size", "16m", "busybox", "sh", "-c",
                  "dd if=/dev/zero of=/big bs=1M count=40 2>&1")  # fmt: skip
        assert "No space left on device" in done.stdout, done
        assert scratch_files(pair) == []
    finally:
        vm("pod", "rm", "-f", "shared")
