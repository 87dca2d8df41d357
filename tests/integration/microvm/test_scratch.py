"""The scratch file below a machine: what a host without room does to the guest, and what the file may not do."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
from test_machines import qemu_of

from casemate.hostd import scratch
from casemate.isolation.microvm.errors import ScratchUnfit
from casemate.spec.errors import DiskFull

pytestmark = pytest.mark.root


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m,mode=0700", "small", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def created(host: harness.Host, name: str, layer: Path, file: Path) -> subprocess.Popen[bytes]:
    config = harness.configuration([layer], "sleep", "1000")
    config["annotations"] |= {"org.casemate.scratch": str(file)}  # type: ignore[operator]
    process, folder = harness.conmon(host, name, host.bundle(name, config))
    done = host.vm("start", name)
    assert done.returncode == 0, (done.stderr, (folder / "answer").read_text())
    return process


def test_a_host_without_room_is_an_error_in_the_guest(
    host: harness.Host, base_layer: Path, small: Path, tmp_path: Path
) -> None:
    """The machine does not stand still: what cannot be written is an error of input and output there."""
    file = small / "writable.ext4"
    asyncio.run(scratch.make(tmp_path / "models", file, 64 << 20))
    process = created(host, "tight", base_layer, file)
    began = time.monotonic()
    script = "dd if=/dev/zero of=/big bs=1M count=40; sync; echo 3 > /proc/sys/vm/drop_caches; cat /big | wc -c"
    host.vm("exec", "tight", "sh", "-c", script)
    assert time.monotonic() - began < 60
    assert small.stat().st_dev == file.stat().st_dev
    assert file.stat().st_blocks * 512 > 4 << 20, "it was written to"
    assert host.vm("exec", "tight", "echo", "alive").stdout == "alive\n"
    assert host.vm("delete", "--force", "tight").returncode == 0
    process.wait(20)


def test_the_file_is_no_path_to_qemu(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    file = tmp_path / "writable.ext4"
    asyncio.run(scratch.make(tmp_path / "models", file, 32 << 20))
    assert file.stat().st_mode & 0o777 == 0o600
    process = created(host, "nopath", base_layer, file)
    assert str(tmp_path) not in Path(f"/proc/{qemu_of(host, 'nopath')}/mountinfo").read_text()
    assert host.vm("exec", "nopath", "sh", "-c", "echo x > /x; sync; cat /x").stdout == "x\n"
    assert file.stat().st_size == 32 << 20
    assert host.vm("delete", "--force", "nopath").returncode == 0
    process.wait(20)


def test_what_cannot_be_made(small: Path, tmp_path: Path) -> None:
    (small / "ballast").write_bytes(bytes((12 << 20) - (8 << 10)))
    with pytest.raises(DiskFull, match="No space left"):
        asyncio.run(scratch.make(tmp_path / "models", small / "writable.ext4", 64 << 20))
    assert [one.name for one in small.iterdir()] == ["ballast"]
    for size in (0, scratch.LEAST_BYTES - 1, scratch.MOST_BYTES + 1):
        with pytest.raises(ScratchUnfit):
            asyncio.run(scratch.make(tmp_path / "models", tmp_path / "x", size))
    assert not (tmp_path / "x").exists()


def test_two_of_one_size_are_alike_and_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        asyncio.run(scratch.make(tmp_path / "models", tmp_path / name, 10 << 30))
        assert (tmp_path / name).stat().st_size == 10 << 30
        assert (tmp_path / name).stat().st_blocks * 512 < 1 << 20
    assert (tmp_path / "one").stat().st_ino != (tmp_path / "two").stat().st_ino
    shown = subprocess.run(["e2fsck", "-fn", str(tmp_path / "two")], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout
