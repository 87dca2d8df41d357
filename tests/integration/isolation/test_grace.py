"""What casemate-vm spares a runsc that it starts (shim/grace.c): seen by what stands in runsc's place."""

from __future__ import annotations

import errno
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root

#: Tells what it begins with, and what membarrier(2) answers: whether it can be asked, to be registered for the private
#: expedited command (16), and to give that (8), which the kernel refuses to who is not.
RUNSC = """#!/usr/bin/python3
import ctypes, json, os

call = ctypes.CDLL(None, use_errno=True).syscall

def membarrier(command):
    return ctypes.get_errno() if call(324, command, 0, 0) < 0 else 0

def flags(number):
    try:
        with open(f"/proc/self/fdinfo/{number}") as rows:
            return int(next(row for row in rows if row.startswith("flags")).split()[1], 8)
    except OSError:
        return None

print(json.dumps({
    "registered": membarrier(16),
    "given": membarrier(8),
    "asked": membarrier(0),
    "open": {number: flags(number) for number in (256, 257, 258, 511)},
    "beside": [int(pid) for pid in open(f"/proc/self/task/{os.getpid()}/children").read().split()],
}))
"""
_O_PATH = 0o10000000


def told(program: Path, folder: Path, *words: str) -> dict[str, Any]:
    script = folder / "runsc"
    script.write_text(RUNSC)
    script.chmod(0o755)
    argv = [str(program), "runsc", str(script), "--root", str(folder), *words, "c"]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


def test_the_registration_is_answered_and_not_made(program: Path, tmp_path: Path) -> None:
    found = told(program, tmp_path, "--platform=ptrace", "state")
    assert (found["registered"], found["given"], found["asked"]) == (0, errno.EPERM, 0)
    assert found["beside"] == []
    assert set(found["open"].values()) == {None}


def test_the_platform_that_wants_it_is_registered(program: Path, tmp_path: Path) -> None:
    found = told(program, tmp_path, "--platform=kvm", "state")
    assert (found["registered"], found["given"]) == (0, 0)


def test_a_sandbox_begins_with_room_for_its_descriptors(program: Path, tmp_path: Path) -> None:
    numbers = told(program, tmp_path, "create", "--bundle", "/b")["open"]
    assert numbers.pop("511") & _O_PATH
    assert set(numbers.values()) == {None}


def test_beside_create_runs_a_process_that_ends_with_it(program: Path, tmp_path: Path) -> None:
    found = told(program, tmp_path, "create", "--bundle", "/b")
    (beside,) = found["beside"]
    deadline = time.monotonic() + 30
    while _runs(beside) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(beside)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
