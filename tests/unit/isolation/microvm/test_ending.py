"""How a machine's end is told from what its monitor left: every byte of it may be a guest's."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from casemate.isolation.microvm import ending, hostlimits
from casemate.isolation.microvm.argv import Accelerator
from casemate.isolation.microvm.errors import GuestPanicked, MachineLost, MachineMemory, MonitorFailed
from casemate.spec.errors import CasemateError

PANIC = b"[    3.1] Kernel panic - not syncing: sysrq triggered crash\r\n[    3.2] CPU: 0\r\n"


def said(status: int, console: bytes = b"") -> bytes:
    return status.to_bytes(4, "little") + console


@pytest.mark.parametrize(
    ("bytes_", "kills", "kind", "words"),
    [
        (b"", 0, MachineLost, "monitor was killed"),
        (b"ab", 0, MachineLost, "monitor was killed"),
        (b"", 1, MachineMemory, "more memory than its cgroup may have"),
        (said(9), 2, MachineMemory, "more memory"),
        (said(9), 0, MachineLost, "killed by SIGKILL"),
        (said(signal.SIGSYS), 0, MachineLost, "a system call that its jail does not allow"),
        (said(signal.SIGSYS | 0x80), 0, MachineLost, "a system call that its jail does not allow"),
        (said(77), 0, MachineLost, "killed by 77"),
        (said(0, PANIC), 0, GuestPanicked, "the guest's kernel panicked: sysrq triggered crash"),
        (said(0, b"x Kernel panic - not syncing: "), 0, GuestPanicked, "panicked"),
        (said(1 << 8, b"casemate-vm: the guest broke the protocol\n"), 0, MonitorFailed, "broke the protocol"),
        (said(0), 0, MachineLost, "QEMU ended with 0"),
        (said(125 << 8, b"casemate-vm: jail: root: No such file"), 0, MachineLost, "ended with 125; console: casemate"),
        (said(0xFFFFFFFF, b"\xff\x00\x1b[2J"), 0, MachineLost, "QEMU"),
    ],
)
def test_each_end_has_its_error(bytes_: bytes, kills: int, kind: type[CasemateError], words: str) -> None:
    found = ending.explain(bytes_, kills)
    assert isinstance(found, kind)
    assert words in found.detail
    assert "\x1b" not in found.detail
    assert ending.words(found) == f"{found.detail} ({kind.code})"


def test_any_bytes_give_words(tmp_path: Path) -> None:
    for status in (*range(0, 256), 0x7F, 0xFFFF, 0x80FF, 1 << 31):
        assert ending.explain(said(status, os.urandom(64))).detail
    (tmp_path / "end").write_bytes(b"x" * (1 << 20))
    assert ending.read(tmp_path) == b"", "more than a monitor writes"
    assert ending.read(tmp_path / "nowhere") == b""


def test_a_process_that_is_over() -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert ending.is_over(child)
    os.waitpid(child, 0)
    assert ending.is_over(child)
    assert not ending.is_over(os.getpid())


def test_the_host_bounds_guest_and_emulator_together(tmp_path: Path) -> None:
    two, one, other = tmp_path / "v2", tmp_path / "v1", tmp_path / "cpu"
    for place in (two, one, other):
        place.mkdir()
    for name in ("memory.max", "memory.swap.max", "pids.max"):
        (two / name).write_text("max")
    (two / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        (one / name).write_text("9223372036854771712")
    (one / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    hostlimits.bound([str(two), str(one), str(other)], 128 << 20, Accelerator("tcg", 64))
    most = str((128 + 64 << 20) + (1 << 19) + hostlimits.OVERHEAD_BYTES)
    assert (two / "memory.max").read_text().startswith(most)
    assert (two / "memory.swap.max").read_text().startswith("0")
    assert (one / "memory.limit_in_bytes").read_text().startswith(most)
    assert (one / "memory.memsw.limit_in_bytes").read_text().startswith(most)
    assert list(other.iterdir()) == []
    assert hostlimits.memory_kills([str(two), str(one), str(other)]) == 3
    assert hostlimits.memory_bytes(128 << 20, Accelerator("kvm")) == (128 << 20) + (1 << 19) + hostlimits.OVERHEAD_BYTES
