"""What a guest's copy says of its end, as errors; and the bound of what is kept of a writable layer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from casemate.isolation.microvm import copying, disks, guestrows
from casemate.isolation.microvm.errors import AgentFailed, CopyRefused, PathMissing
from casemate.isolation.microvm.frames import Field, Kind, Message, Tag
from casemate.spec.errors import CasemateError, DiskFull


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (b"missing: /x: No such file or directory", PathMissing),
        (b"refused: entry ../x: '..' is not allowed", CopyRefused),
        (b"full: f: No space left on device", DiskFull),
        (b"something else", AgentFailed),
        (b"", AgentFailed),
        (b"\x1b[31mrefused: \xff", AgentFailed),
    ],
)
def test_the_guests_words_become_an_error(words: bytes, kind: type[CasemateError]) -> None:
    with pytest.raises(kind) as caught:
        copying._raise(words, 1)
    assert "\x1b" not in caught.value.detail


def test_a_copy_that_was_killed_says_so() -> None:
    with pytest.raises(AgentFailed, match="started anew or removed") as caught:
        copying._raise(b"", 137)
    assert caught.value.instance_remedy == "Try again; `casemate inspect` tells the container's state."


def test_what_is_beyond_the_bound_is_read_and_dropped(tmp_path: Path) -> None:
    for most, fits in ((10, False), (11, True)):
        read_end, write_end = os.pipe()
        os.write(write_end, b"hello world")
        os.close(write_end)
        with (tmp_path / str(most)).open("w+b") as file:
            assert copying._take(read_end, file.fileno(), most) is fits
        os.close(read_end)
    assert (tmp_path / "11").read_bytes() == b"hello world"
    assert (tmp_path / "10").read_bytes() == b""


def test_layers_that_join_leave_the_others_where_they_are() -> None:
    before = disks.extents([(0, 5000), (1, 4096)])
    after = disks.extents([(0, 5000), (1, 4096), (2, 1)])
    assert after[:2] == before
    assert after[2].start == before[1].start + before[1].sectors


STAT = b"7 (a b) c) S 1 7 7 34816 7 0 0 0 0 0 150 50 0 0 20 0 1 0 200 0 0"


def test_rows_of_processes() -> None:
    row = b"7\x001000\x001700000000\x00" + STAT + b"\x00sleep\x00100\x00"
    found = guestrows.processes(Message(Kind.REPLY, 1, (Field(Tag.PROCESS, row), Field(Tag.PROCESS, b"junk"))))
    assert len(found) == 1
    one = found[0]
    assert (one.pid, one.ppid, one.uid, one.cpu_ns, one.tty) == (7, 1, 1000, 2_000_000_000, "pts/0")
    assert one.started_at == 1_700_000_002.0
    assert one.command == "sleep 100"


@pytest.mark.parametrize(
    "row",
    [
        b"",
        b"\x00" * 4,
        b"x\x00y\x00z\x00(\x00",
        b"1\x000\x000\x00)(" + b" 1" * 30 + b"\x00",
        b"99999999999999999999999999\x00-1\x00nan\x00" + STAT + b"\x00\x1b]0;x\x07",
    ],
)
def test_rows_that_lie_are_passed_over_or_bounded(row: bytes) -> None:
    for one in guestrows.processes(Message(Kind.REPLY, 1, (Field(Tag.PROCESS, row),))):
        assert one.pid < 1 << 63
        assert one.command.isprintable()


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (b"c\x00\x007\x00ended\x00137\x001", [("c", 137, True)]),
        (b"c\x00\x007\x00ended\x000\x000", [("c", 0, False)]),
        (b"c\x00\x007\x00ended\x003", [("c", 3, False)]),
        (b"c\x00\x007\x00running\x000\x000", []),
        (b"c\x00exec\x007\x00ended\x000\x000", []),
        (b"c\x00\x007\x00ended\x00-1\x00yes", [("c", 255, False)]),
        (b"c\x00\x007\x00ended\x00" + b"9" * 9999 + b"\x001", [("c", 255, True)]),
        (b"\xff\x00\x00\x00ended\x00\x00", [("\ufffd", 255, False)]),
        (b"c\x00\x007\x00ended\x000\x000\x00more", []),
        (b"\x00" * 4, []),
        (b"", []),
    ],
)
def test_containers_that_ended(row: bytes, found: list[tuple[str, int, bool]]) -> None:
    """Read by a hostd that starts: no row may keep it from that."""
    assert guestrows.ended(Message(Kind.REPLY, 1, (Field(Tag.PROCESS, row),))) == found


def test_figures() -> None:
    files = {"cpu.stat": "usage_usec 5\nuser_usec 1\n", "pids.current": "3\n", "pids.max": "max\n",
             "memory.current": "junk", "io.stat": "254:0 rbytes=10 wbytes=20 x\n254:1 rbytes=1\n"}  # fmt: skip
    fields = tuple(Field(Tag.STAT, f"{name}\0{text}".encode()) for name, text in files.items())
    found = guestrows.usage(Message(Kind.REPLY, 1, fields))
    assert (found.cpu_ns, found.pids, found.pids_limit, found.memory_bytes) == (5000, 3, 0, 0)
    assert (found.read_bytes, found.write_bytes) == (11, 20)
