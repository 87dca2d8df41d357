"""Pods of several containers at level gvisor: who ends when what is killed, what is said, what is left.

What such a pod can do when nothing is killed is tests/conformance's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import Daemons
from tests.integration.levels.conftest import Run

pytestmark = pytest.mark.root

POD = "several"


@pytest.fixture
def two(pair: Daemons, cm: Run) -> Iterator[None]:
    """A pod with the containers k1 and k2, which sleep."""
    if shutil.which("runsc") is None:
        pytest.skip("missing: runsc")
    done = cm("pod", "create", "--isolation", "gvisor", POD)
    assert done.returncode == 0, done.stderr
    for name in ("k1", "k2"):
        done = cm("run", "-d", "--name", name, "--pod", POD, "busybox", "sleep", "100000")
        assert done.returncode == 0, done.stderr
    yield
    assert cm("pod", "rm", "-f", POD).returncode == 0
    until(lambda: not mentioned(pair))
    for folder in ("runsc", "gvisor"):
        left = [one.name for one in (pair.scope.folder / "host-run" / folder).iterdir() if one.name != "root"]
        assert not left, "nothing of a sandbox stays"


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.05)


def mentioned(pair: Daemons) -> list[int]:
    """Processes of runsc, waiters and conmons that name the run folder of *pair*."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                words = (place / "cmdline").read_bytes()
            except OSError:
                continue
            if str(pair.scope.folder).encode() in words and words.split(b"\0")[0].rpartition(b"/")[2] in (
                b"runsc-sandbox",
                b"runsc-gofer",
                b"conmon",
                b"casemate-vm",
            ):
                found.append(int(place.name))
    return found


def first_process(cm: Run, name: str) -> int:
    return int(json.loads(cm("inspect", name).stdout)[0]["State"]["Pid"])


def sandbox_of(pair: Daemons) -> int:
    names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in mentioned(pair)}
    (found,) = [pid for pid, words in names.items() if words.startswith(b"runsc-sandbox")]
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, "137"), (signal.SIGTERM, "143")])
def test_a_waiter_that_is_signalled_ends_its_container_alone(cm: Run, two: None, number: int, code: str) -> None:
    os.kill(first_process(cm, "k1"), number)
    assert cm("wait", "k1").stdout.strip() == code
    # What the container had in the sandbox is taken out of it, and it can be started again beside the other.
    until(lambda: cm("exec", "k2", "sh", "-c", "ls -d /proc/[0-9]* | wc -l").stdout.strip() in ("2", "3", "4"))
    assert cm("start", "k1").returncode == 0
    assert cm("exec", "k1", "echo", "again").stdout == "again\n"
    assert cm("exec", "k2", "echo", "alive").stdout == "alive\n"


def test_a_conmon_that_is_killed_leaves_the_others(cm: Run, two: None) -> None:
    waiter = first_process(cm, "k1")
    os.kill(parent_of(waiter), signal.SIGKILL)
    assert cm("wait", "k1").stdout.strip() == "255"
    until(lambda: not Path(f"/proc/{waiter}").exists())
    assert cm("exec", "k2", "echo", "alive").stdout == "alive\n"


def test_a_sandbox_that_is_killed_ends_all_of_it(cm: Run, two: None, pair: Daemons) -> None:
    os.kill(sandbox_of(pair), signal.SIGKILL)
    assert [cm("wait", name).stdout.strip() for name in ("k1", "k2")] == ["137", "137"]
    done = cm("start", "k2")
    assert done.returncode == 0, done.stderr
    assert cm("exec", "k2", "echo", "anew").stdout == "anew\n"


def test_hostd_that_comes_back_finds_both(cm: Run, two: None, pair: Daemons) -> None:
    pair.kill("casemate-hostd")
    os.kill(first_process(cm, "k2"), signal.SIGTERM)
    pair.start("casemate-hostd")
    assert cm("exec", "k1", "echo", "on").stdout == "on\n"
    assert cm("wait", "k2").stdout.strip() == "143"
    assert cm("stop", "-t", "0", "k1").returncode == 0


def test_the_last_to_end_takes_the_sandbox_along(cm: Run, two: None, pair: Daemons) -> None:
    sandbox = sandbox_of(pair)
    for name in ("k1", "k2"):
        assert cm("kill", name).returncode == 0
    until(lambda: not Path(f"/proc/{sandbox}").exists())
    assert cm("start", "k1").returncode == 0
    assert sandbox_of(pair) != sandbox


def test_standard_files_are_each_ones_own(cm: Run, two: None) -> None:
    done = cm("run", "--rm", "--pod", POD, "busybox", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert cm("run", "-i", "--rm", "--pod", POD, "busybox", "cat", input="given\n").stdout == "given\n"
    done = cm("run", "--rm", "--pod", POD, "busybox", "no-such-program")
    assert (done.returncode, "cannot be started" in done.stderr) == (127, True)


def test_one_is_paused_and_the_other_is_not(cm: Run, two: None) -> None:
    assert cm("pause", "k1").returncode == 0
    states = {name: json.loads(cm("inspect", name).stdout)[0]["State"]["Status"] for name in ("k1", "k2")}
    assert states == {"k1": "paused", "k2": "running"}
    assert cm("exec", "k2", "echo", "alive").stdout == "alive\n"
    assert cm("unpause", "k1").returncode == 0
    assert cm("pause", "k1").returncode == 0
    assert cm("kill", "k1").returncode == 0, "a paused one can be killed"
    assert cm("wait", "k1").stdout.strip() == "137"
