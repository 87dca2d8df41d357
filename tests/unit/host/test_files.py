"""Durable files, the settings file, processes by identity, parsers of what the kernel writes."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from casemate.host import durable, inotify, mountinfo, mounts, pidfd, probes
from casemate.host.settings_file import parse_settings, read_settings
from casemate.spec.errors import DiskFull, LimitExceeded
from casemate.spec.settings import SettingInvalid


def test_a_file_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "state"
    durable.write_atomic(path, b"one", mode=0o640)
    durable.write_atomic(path, b"two", mode=0o600, sync=False)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["state"]
    durable.remove(path)
    durable.remove(path)


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    (tmp_path / f".state.{os.getpid()}.tmp").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        durable.write_atomic(tmp_path / "state", b"x")
    assert target.read_text() == "kept"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    durable.write_atomic(path, b"old")
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    original = os.open

    def onto_full(name: object, flags: int, mode: int = 0o777) -> int:
        if str(name).endswith(".tmp"):
            return original("/dev/full", os.O_WRONLY)
        return original(name, flags, mode)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", onto_full)
        with pytest.raises(DiskFull):
            durable.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert durable.read_bounded(path, 5) == b"12345"
    with pytest.raises(LimitExceeded):
        durable.read_bounded(path, 4)
    with pytest.raises(LimitExceeded):
        durable.read_bounded(Path("/dev/zero"), 1 << 20)


def test_settings_come_from_file_then_environment(tmp_path: Path) -> None:
    path = tmp_path / "casemate.toml"
    path.write_text('[daemon]\nuser = "other"\n[limits]\npids = 7\n')
    settings = read_settings(path, {"CASEMATE_LIMITS_PIDS": "8"})
    assert (settings.text("daemon.user"), settings.number("limits.pids")) == ("other", 8)
    assert read_settings(None, {"CASEMATE_SETTINGS": str(path)}).number("limits.pids") == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[limits]\n\npids = 0\n", "line 3"),
        (b"[limits]\nnope = 1\n", "line 2"),
        (b"[limits\n", "line 1"),
        (b"pids = 1\n", r"outside a \[section\]"),
        (b"\xff", "not UTF-8"),
        (b"a = " + b"[" * 20000, "x.toml"),
    ],
)
def test_a_wrong_settings_file_is_named_with_its_line(text: bytes, words: str) -> None:
    with pytest.raises(SettingInvalid, match=words):
        parse_settings(text, "x.toml", {})


def test_a_named_settings_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingInvalid, match="not there"):
        read_settings(tmp_path / "nope", {})


def test_a_process_is_a_pid_and_a_start_time() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        start = pidfd.start_ticks(child.pid)
        assert start is not None
        assert pidfd.identity(child.pid) == pidfd.ProcessIdentity(child.pid, start)
        assert pidfd.is_alive(child.pid, start)
        assert not pidfd.is_alive(child.pid, start + 1)
        assert not pidfd.send_signal(child.pid, start + 1, 9)
        assert pidfd.send_signal(child.pid, start, 9)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not pidfd.is_alive(child.pid, start)  # a zombie has ended
    assert pidfd.start_ticks(child.pid) is None
    assert pidfd.open_pidfd(child.pid) is None


def test_a_name_with_parentheses_does_not_move_the_start_time(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "60"]) as child:
        while pidfd.start_ticks(child.pid) is None or b"(b" not in Path(f"/proc/{child.pid}/stat").read_bytes():
            pass
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        started = pidfd.start_ticks(child.pid)
        child.kill()
    assert started is not None
    assert abs(started / os.sysconf("SC_CLK_TCK") - uptime) < 30


def test_mountinfo_is_read_with_its_escapes() -> None:
    text = (
        b"36 35 98:0 / /mnt/a\\040b\\011c\\134d rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
        b"37 35 0:40 /x /mntother ro - tmpfs none rw\n"
        b"garbage\n"
        b"38 36 7:1 / /mnt ro,nodev - squashfs /dev/loop1 ro\n"
    )
    found = mountinfo.parse_mountinfo(text, Path("/mnt"))
    assert [str(one.target) for one in found] == ["/mnt/a b\tc\\d", "/mnt"]
    assert (found[1].kind, found[1].source, found[1].options) == ("squashfs", "/dev/loop1", "ro,nodev")


@pytest.mark.parametrize(
    ("field", "value"),
    [(b"a\\040b", b"a b"), (b"\\", b"\\"), (b"\\9", b"\\9"), (b"\\400", b"\\400"), (b"\\134040", b"\\040")],
)
def test_octal_escapes(field: bytes, value: bytes) -> None:
    assert mountinfo.unescape(field) == value


def test_inotify_events_are_read() -> None:
    def event(mask: int, name: bytes) -> bytes:
        padded = name + b"\0" * (16 - len(name) % 16) if name else b""
        return struct.pack("=iIII", 1, mask, 0, len(padded)) + padded

    data = event(8, b"exit") + event(0x4000, b"") + event(0x80, b"x" * 16) + b"short"
    assert inotify.parse_events(data) == ["exit", None, "x" * 16]


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.18.44-fc", (6, 18)), ("5.10", (5, 10)), ("6.1-rc1", (6, 1)), ("x", (0, 0)), ("", (0, 0))],
)
def test_kernel_versions(release: str, version: tuple[int, int]) -> None:
    assert mounts.kernel_version(release) == version


def test_probes_answer_and_raise_nothing(tmp_path: Path) -> None:
    for probe in probes.all_probes(tmp_path):
        answer = probe()
        assert answer.name
        assert answer.value
        assert answer.ok or answer.remedy
