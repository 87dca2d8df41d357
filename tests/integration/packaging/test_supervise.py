"""packaging/supervise with real processes: restarts, bounds, and whom it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[3] / "packaging/supervise"
NAME = "trial"


class Supervision:
    """One supervisor's folder, and the three verbs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"

    def start(self, script: str, starts: int = 8) -> subprocess.CompletedProcess[str]:
        return self._call(
            "start",
            "--log",
            str(self.log),
            "--starts",
            str(starts),
            "--",
            "setpriv",
            "--pdeathsig",
            "TERM",
            "sh",
            "-c",
            script,
        )

    def stop(self) -> subprocess.CompletedProcess[str]:
        return self._call("stop")

    def supervisor(self) -> int:
        """The supervisor's pid, 0 when there is none."""
        text = self._call("status").stdout.strip()
        return int(text) if text.isdigit() else 0

    def daemon(self) -> int:
        """The daemon's pid; waited for, since a start answers before it."""
        path = self.folder / f"{NAME}.pid"
        until(path.exists)
        return int(path.read_text())

    def _call(self, verb: str, *rest: str) -> subprocess.CompletedProcess[str]:
        command = [str(PROGRAM), verb, NAME, "--run", str(self.folder), *rest]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def supervision(tmp_path: Path) -> Iterator[Supervision]:
    made = Supervision(tmp_path)
    yield made
    assert made.stop().returncode == 0
    assert made.supervisor() == 0


def until(what: Callable[[], bool], limit_s: float = 15.0) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_starts_once_and_stops(supervision: Supervision) -> None:
    assert supervision.start("echo up; exec sleep 1000").returncode == 0
    until(lambda: supervision.log.exists() and "up" in supervision.log.read_text())
    daemon, supervisor = supervision.daemon(), supervision.supervisor()
    assert lives(daemon)
    assert "already" in supervision.start("echo twice").stderr
    assert (supervision.daemon(), supervision.supervisor()) == (daemon, supervisor)
    assert supervision.stop().returncode == 0
    assert not lives(daemon)
    assert not (supervision.folder / f"{NAME}.pid").exists()
    assert "twice" not in supervision.log.read_text()


def test_a_daemon_that_is_killed_comes_back(supervision: Supervision) -> None:
    supervision.start("exec sleep 1000")
    first = supervision.daemon()
    os.kill(first, signal.SIGKILL)
    until(lambda: (supervision.folder / f"{NAME}.pid").exists() and supervision.daemon() != first)
    assert lives(supervision.daemon())
    assert "status -9" in supervision.log.read_text()


def test_gives_up_on_a_daemon_that_ends_at_once(supervision: Supervision) -> None:
    supervision.start("echo begun; exit 3", starts=2)
    until(lambda: "giving up" in supervision.log.read_text())
    until(lambda: supervision.supervisor() == 0)
    assert supervision.log.read_text().count("begun") == 2


def test_a_program_that_is_not_there_is_named(supervision: Supervision) -> None:
    supervision.start("exec /nowhere/to/be/found", starts=1)
    until(lambda: "giving up" in supervision.log.read_text())
    assert "/nowhere/to/be/found" in supervision.log.read_text()


def test_the_daemon_s_children_go_on(supervision: Supervision) -> None:
    """Containers are such children."""
    supervision.start("setsid sleep 1000 & echo child $!; exec sleep 1000")
    until(lambda: "child" in supervision.log.read_text())
    child = int(supervision.log.read_text().split()[-1])
    try:
        assert supervision.stop().returncode == 0
        assert lives(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_daemon_deaf_to_term_is_not_left_behind(supervision: Supervision) -> None:
    """The grace is 20 s; here only that TERM arrives, and is waited for."""
    supervision.start("trap 'sleep 0.5; echo late; exit 0' TERM; echo up; while :; do sleep 0.1; done")
    until(lambda: "up" in supervision.log.read_text())
    assert supervision.stop().returncode == 0
    assert "late" in supervision.log.read_text()


def test_when_the_supervisor_dies_so_does_the_daemon(supervision: Supervision) -> None:
    supervision.start("exec sleep 1000")
    daemon = supervision.daemon()
    os.kill(supervision.supervisor(), signal.SIGKILL)
    until(lambda: not lives(daemon))
    assert supervision.supervisor() == 0


def test_a_pid_of_long_ago_is_never_signalled(supervision: Supervision) -> None:
    with subprocess.Popen(["sleep", "1000"]) as bystander:
        (supervision.folder / f"{NAME}.lock").write_text(f"{bystander.pid}\n")
        assert supervision.stop().returncode == 0
        assert bystander.poll() is None
        bystander.kill()


def test_the_log_is_bounded(supervision: Supervision) -> None:
    """9 MB are written; 8 MiB is the bound, of which the newer half stays. It is looked at every five seconds."""
    supervision.start("head -c 9000000 /dev/zero | tr '\\0' 'x' | fold -w 100; echo last; exec sleep 1000")
    until(lambda: supervision.log.stat().st_size > 9_000_000, limit_s=30)
    until(lambda: 1 << 20 < supervision.log.stat().st_size <= 8 << 20)
    assert supervision.log.read_bytes().endswith(b"last\n")


def test_the_caller_s_environment_stays_outside(supervision: Supervision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "1")
    monkeypatch.setenv("CASEMATE_LIMITS_PIDS", "99")
    supervision.start("env; echo done; exec sleep 1000")
    until(lambda: "done" in supervision.log.read_text())
    text = supervision.log.read_text()
    assert "SECRET_OF_THE_CALLER" not in text
    assert "CASEMATE_LIMITS_PIDS=99" in text


@pytest.mark.parametrize(
    "arguments", [[], ["start"], ["start", "x"], ["stop", "x", "--", "sh"], ["start", "x", "--what", "y", "--", "sh"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = subprocess.run([str(PROGRAM), *arguments], capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 2
    assert "supervise start NAME" in result.stderr
