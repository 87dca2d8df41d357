"""What a person may get wrong at this level, from the command line: an error with a code and a remedy, nothing left."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.integration.daemons import Daemons
from tests.integration.levels.conftest import Run
from tests.integration.levels.test_microvm import MICROVM, machines

pytestmark = pytest.mark.root


def refused(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """The problem that a command with --json answered."""
    assert done.returncode == 125, done
    found = json.loads(done.stderr.strip().splitlines()[-1])
    assert isinstance(found, dict)
    assert found["remedy"], found
    return found


def nothing_is_left(pair: Daemons, vm: Run, *, containers: str = "") -> None:
    assert vm("ps", "-aq").stdout == containers
    assert machines(pair) == []
    assert list((pair.scope.folder / "host-state/pods").glob("*/*/writable.*")) == []


@contextmanager
def qemu(pair: Daemons, program: str) -> Iterator[None]:
    """hostd with another QEMU."""
    try:
        pair.environment["CASEMATE_MICROVM_QEMU"] = program
        pair.kill("casemate-hostd", signal.SIGTERM)
        pair.start("casemate-hostd")
        yield
    finally:
        del pair.environment["CASEMATE_MICROVM_QEMU"]
        pair.kill("casemate-hostd", signal.SIGTERM)
        pair.start("casemate-hostd")


@pytest.mark.parametrize("kind", ["missing", "old", "no QEMU"])
def test_a_qemu_that_will_not_do(pair: Daemons, vm: Run, tmp_path: Path, kind: str) -> None:
    program = tmp_path / "qemu"
    if kind != "missing":
        said = "QEMU emulator version 5.2.0 (Debian 1:5.2)" if kind == "old" else "hello"
        program.write_text(f"#!/bin/sh\necho '{said}'\n")
        program.chmod(0o755)
    with qemu(pair, str(program)):
        found = refused(vm("--json", "run", "--rm", *MICROVM, "busybox", "true"))
        assert found["code"] == "isolation.unavailable"
        assert ("is not installed" if kind == "missing" else "7.2 or newer") in str(found["detail"])
        assert "apt-get install qemu-system-x86" in f"{found['detail']} {found['remedy']}"
        assert "unavailable" in vm("system", "info", "--format", '{{index .levels "microvm"}}').stdout
        nothing_is_left(pair, vm)
    assert vm("run", "--rm", *MICROVM, "busybox", "true").returncode == 0


def test_a_kernel_without_what_a_guest_needs(vm: Run, tmp_path: Path) -> None:
    """A package as Debian's cloud kernel's might be: a kernel, some modules, and no virtio_blk among them."""
    root = tmp_path / "package"
    modules = root / "lib/modules/6.9-test/kernel"
    modules.mkdir(parents=True)
    (root / "boot").mkdir()
    (root / "boot/vmlinuz-6.9-test").write_bytes(b"\0" * 4096)
    for name in ("virtio", "virtio_ring", "virtio_mmio"):
        (modules / f"{name}.ko").write_bytes(b"\x7fELF")
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        "Package: linux-image-6.9-test-amd64\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@x.x>\nDescription: x\n"
    )
    package = tmp_path / "kernel.deb"
    subprocess.run(["dpkg-deb", "-b", str(root), str(package)], check=True, capture_output=True)
    before = vm("system", "kernel", "ls", "--json").stdout
    found = refused(vm("--json", "system", "kernel", "install", "-q", str(package)))
    assert found["code"] == "microvm.kernel_unfit"
    assert "no module virtio_blk" in str(found["detail"])
    assert vm("system", "kernel", "ls", "--json").stdout == before


def test_a_memory_that_no_machine_can_have(pair: Daemons, vm: Run) -> None:
    found = refused(vm("--json", "run", "--rm", *MICROVM, "-m", "100000g", "busybox", "true"))
    assert found["code"] == "microvm.memory"
    nothing_is_left(pair, vm)
    found = refused(vm("--json", "run", "--rm", *MICROVM, "-m", "1m", "busybox", "true"))
    assert "memory" in str(found["detail"])
    nothing_is_left(pair, vm)


def test_a_volume_that_was_never_there(pair: Daemons, vm: Run, tmp_path: Path) -> None:
    mount = f"type=bind,source={tmp_path}/goes,target=/host"
    found = refused(vm("--json", "run", "--rm", *MICROVM, "--mount", mount, "busybox", "true"))
    assert found["code"] == "object.not_found"
    assert "goes" in str(found["detail"])
    nothing_is_left(pair, vm)


@pytest.mark.parametrize("level", [("--isolation", "namespace"), MICROVM], ids=["namespace", "microvm"])
def test_a_volume_that_vanishes_between_create_and_start(
    pair: Daemons, vm: Run, tmp_path: Path, level: tuple[str, ...]
) -> None:
    folder = tmp_path / "goes"
    folder.mkdir()
    mount = f"type=bind,source={folder},target=/host"
    assert vm("create", "--name", "bereft", *level, "--mount", mount, "busybox", "ls", "/host").returncode == 0
    try:
        folder.rmdir()
        for _ in range(2):  # what is bound, and then what the path leads to
            done = vm("start", "bereft")
            assert done.returncode == 125
            assert "goes" in done.stderr
            assert "remedy: " in done.stderr
        folder.mkdir()
        (folder / "back").touch()
        assert vm("start", "-a", "bereft").stdout == "back\n"
    finally:
        vm("rm", "-f", "bereft")
    nothing_is_left(pair, vm)


def test_two_containers_of_one_name_in_a_pod(pair: Daemons, vm: Run) -> None:
    assert vm("pod", "create", *MICROVM, "--name", "twice").returncode == 0
    try:
        assert vm("create", "--pod", "twice", "--name", "same", "busybox", "true").returncode == 0
        found = refused(vm("--json", "run", "--rm", "--pod", "twice", "--name", "same", "busybox", "true"))
        assert found["code"] == "name.taken"
    finally:
        vm("pod", "rm", "-f", "twice")
    nothing_is_left(pair, vm)
