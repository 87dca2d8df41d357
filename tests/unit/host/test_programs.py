"""The runner of programs: bounds, time, environment, descriptors. Runs the real programs of any host."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from casemate.host import programs
from casemate.spec.errors import HostLacks, ProgramFailed, TimedOut


def run(*argv: str, timeout_s: float = 10.0, **options: object) -> programs.Completed:
    return asyncio.run(programs.run(argv, timeout_s=timeout_s, **options))


def test_output_and_code_come_back() -> None:
    done = run("sh", "-c", "echo out; echo err >&2; exit 3", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


def test_a_failure_says_what_the_program_said() -> None:
    with pytest.raises(ProgramFailed, match="ended with 3: no such thing") as caught:
        run("sh", "-c", "echo no such thing >&2; exit 3")
    assert caught.value.facts == {"program": "sh", "returncode": 3}


def test_a_signal_is_named() -> None:
    with pytest.raises(ProgramFailed, match="killed by signal 9"):
        run("sh", "-c", "kill -9 $$")


@pytest.mark.parametrize("name", ["no-such-program", "/no/such/program", "/etc/passwd"])
def test_a_missing_program_is_what_the_host_lacks(name: str) -> None:
    with pytest.raises(programs.ProgramMissing) as caught:
        run(name)
    assert isinstance(caught.value, HostLacks)


def test_standard_input_is_null_unless_given() -> None:
    assert run("cat").stdout == b""
    assert run("cat", stdin=b"x" * 3_000_000, max_output_bytes=4_000_000).stdout == b"x" * 3_000_000


def test_output_is_bounded_and_drained() -> None:
    done = run("sh", "-c", "head -c 3000000 /dev/zero; echo done >&2", max_output_bytes=1000)
    assert (len(done.stdout), done.truncated, done.stderr) == (1000, True, b"done\n")


def test_only_the_named_environment_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "leaks")
    monkeypatch.setenv("LD_PRELOAD", "")
    lines = set(run("env", env={"EXTRA": "1"}).stdout.decode().split("\n"))
    assert lines == {f"PATH={programs.SAFE_PATH}", "LC_ALL=C.UTF-8", "HOME=/", "EXTRA=1", ""}


def test_descriptors_get_their_numbers_and_no_other_leaks(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("A")
    (tmp_path / "b").write_text("B")
    with (tmp_path / "a").open() as a, (tmp_path / "b").open() as b:
        # Numbers that cross: each one's target is the other's source.
        one, other = a.fileno(), b.fileno()
        done = run(
            "sh",
            "-c",
            f"cat /proc/self/fd/{other} /proc/self/fd/{one}; ls /proc/self/fd",
            pass_fds={other: one, one: other},
        )
    head, *numbers = done.stdout.decode().split("\n", 1)
    assert head.startswith("AB")
    inherited = {int(n) for n in (head[2:] + "\n" + numbers[0]).split()}
    # One more is the listing's own.
    assert len(inherited - {0, 1, 2, one, other} - _inheritable()) <= 1


def _inheritable() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.get_inheritable(int(name)):
                found.add(int(name))
        except OSError:
            continue
    return found


def test_a_slow_program_gets_term_then_kill(tmp_path: Path) -> None:
    mark = tmp_path / "term"
    script = f"trap 'echo > {mark}' TERM; echo ready; while :; do sleep 0.05; done"
    started = time.monotonic()
    with pytest.raises(TimedOut):
        run("sh", "-c", script, timeout_s=0.5, grace_s=0.3)
    assert mark.exists()
    assert time.monotonic() - started < 5


def test_the_whole_group_ends_with_a_cancelled_caller(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    async def cancelled() -> None:
        task = asyncio.ensure_future(
            programs.run(
                ["sh", "-c", f"(trap '' TERM; exec sleep 60) & echo $! $$ > {pids}; wait"], timeout_s=60, grace_s=1
            )
        )
        async with asyncio.timeout(10):
            while not pids.exists() or not pids.read_text().strip():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    deadline = time.monotonic() + 5
    while any(map(_runs, pids.read_text().split())):
        assert time.monotonic() < deadline


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_grandchild_that_holds_the_pipe_does_not_hold_us(tmp_path: Path) -> None:
    started = time.monotonic()
    done = run("sh", "-c", f"sleep 30 & echo $! > {tmp_path}/pid; echo here")
    assert done.stdout == b"here\n"
    assert time.monotonic() - started < 5
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_the_working_folder_can_be_set(tmp_path: Path) -> None:
    assert run("pwd", cwd=str(tmp_path)).stdout.decode().strip() == str(tmp_path)


def test_sigpipe_is_not_ignored_in_the_child() -> None:
    ignored = [
        line for line in run("cat", "/proc/self/status").stdout.decode().split("\n") if line.startswith("SigIgn")
    ]
    assert int(ignored[0].split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


def test_no_descriptor_stays_open() -> None:
    run("true")
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(5):
        run("true")
    with pytest.raises(programs.ProgramMissing):
        run("no-such-program", stdin=b"x")
    assert sorted(os.listdir("/proc/self/fd")) == before
