"""The waiter of a further container in a runsc sandbox (shim/join.c), with sanitizers; runsc is a script here.

The script is what runsc is not: slow, silent, broken, of another version. Real sandboxes: tests/integration/levels.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Notes what it was asked for; `start` copies a line from its standard input, `wait` tells an end when there is one.
RUNSC = """#!/bin/sh
echo "$@" >> {folder}/asked
case "$*" in
*" create "*) test -e {folder}/refuse && {{ echo "no room" >&2; exit 4; }}; exit 0 ;;
*" start "*)
    test -e {folder}/broken && {{ echo broken >&2; exit 5; }}
    read line; echo "said $line"; echo aside >&2; exit 0 ;;
*" wait "*) while ! test -s {folder}/end; do sleep 0.02; done; cat {folder}/end ;;
esac
"""


class Joined:
    """A container that was created with the waiter: this process stands for conmon."""

    def __init__(self, program: Path, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        script = folder / "runsc"
        script.write_text(RUNSC.format(folder=folder))
        script.chmod(0o755)
        self._words = [
            str(program),
            "runsc",
            "--join",
            f"sandbox-{os.getpid()}-{name}",
            str(script),
            "--root",
            str(folder),
        ]
        self._plain = [str(program), "runsc", str(script), "--root", str(folder)]
        self.sandbox = self._words[3]

    def create(self) -> subprocess.CompletedProcess[bytes]:
        reader, writer = os.pipe()
        os.write(writer, b"given\n")
        os.close(writer)
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            try:
                words = [*self._words, "create", "--bundle", "/b", "--pid-file", str(self.folder / "pid"), self.name]
                return subprocess.run(words, stdin=reader, stdout=out, stderr=err, timeout=20, check=False)
            finally:
                os.close(reader)

    def start(self) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*self._plain, "start", self.name], capture_output=True, timeout=20, check=False)

    def do(self, *words: str) -> int:
        return subprocess.run(
            [*self._plain, *words, self.name], capture_output=True, timeout=20, check=False
        ).returncode

    @property
    def waiter(self) -> int:
        return int((self.folder / "pid").read_text())

    def code(self) -> int:
        """The waiter's exit code: it is a child of ours, since we take up orphans."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.waiter, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        raise AssertionError("the waiter goes on")

    def asked(self) -> str:
        return (self.folder / "asked").read_text()


@pytest.fixture
def joined(program: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Joined]:
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    one = Joined(program, tmp_path, f"c{abs(hash(request.node.name)) % 10**8}")
    yield one
    # The script's own wait goes on until it has an end to tell, whatever becomes of who asked.
    (tmp_path / "end").write_text("{}\n")
    with contextlib.suppress(OSError, ValueError):
        os.kill(one.waiter, signal.SIGKILL)
        os.waitpid(one.waiter, 0)
    libc.prctl(36, 0, 0, 0, 0)


def test_it_starts_with_the_files_that_it_was_created_with_and_ends_as_runsc_tells(joined: Joined) -> None:
    assert joined.create().returncode == 0
    assert joined.start().returncode == 0
    assert (joined.folder / "out").read_bytes() == b"said given\n"
    assert (joined.folder / "err").read_bytes() == b"aside\n"
    (joined.folder / "end").write_text('{"id":"c","exitStatus":9}\n')
    assert joined.code() == 9


def test_a_create_that_fails_leaves_nothing(joined: Joined) -> None:
    (joined.folder / "refuse").touch()
    assert joined.create().returncode == 4
    assert not (joined.folder / "pid").exists()
    assert not list(joined.folder.glob("*.join"))


def test_a_start_that_fails_is_told_and_can_be_tried_again(joined: Joined) -> None:
    joined.create()
    (joined.folder / "broken").touch()
    assert joined.start().returncode == 5
    (joined.folder / "broken").unlink()
    assert joined.start().returncode == 0


@contextlib.contextmanager
def control(joined: Joined, reply: bytes) -> Iterator[list[bytes]]:
    """The sandbox's control socket: answers every question with *reply*, and goes."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0runsc-sandbox.{joined.sandbox}\0".encode())
        listener.listen(4)
        listener.settimeout(20)

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(4096))
                    connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join(20)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b'{"success":true,"err":"","result":2304}', 9),
        (b'{"success":true,"err":"","result":15}', 143),
        (b'{"success":true,"err":"","result":0}', 0),
        (b'{"success":false,"err":"no such container","result":null}', 255),
        (b"", 137),
        (b"x" * 9000, 137),
        (b"}", 255),
        (b'{"success":true,"result":99999999999999999999}', 255),
        (b'{"success":true,"result":-1}', 255),
        (b"\0\0\0}", 137),
    ],
)
def test_what_the_sandbox_answers_becomes_an_exit_code(joined: Joined, reply: bytes, code: int) -> None:
    with control(joined, reply) as asked:
        assert joined.create().returncode == 0
        assert joined.start().returncode == 0
        assert joined.code() == code
    assert json.loads(asked[0]) == {"method": "containerManager.Wait", "arg": joined.name}


def test_a_signal_is_passed_on(joined: Joined) -> None:
    joined.create()
    joined.start()
    os.kill(joined.waiter, signal.SIGUSR1)
    deadline = time.monotonic() + 20
    while f"kill {joined.name} {int(signal.SIGUSR1)}" not in joined.asked():
        assert time.monotonic() < deadline, joined.asked()
        time.sleep(0.02)
    (joined.folder / "end").write_text('{"exitStatus":0}')
    assert joined.code() == 0


def test_pause_and_resume_are_signals_and_a_mark(joined: Joined) -> None:
    joined.create()
    assert joined.do("pause") == 0
    assert (joined.folder / f"{joined.name}.paused").exists()
    assert joined.do("resume") == 0
    assert not (joined.folder / f"{joined.name}.paused").exists()
    assert f"kill --all {joined.name} STOP" in joined.asked()
    assert f"kill --all {joined.name} CONT" in joined.asked()
    assert joined.do("delete", "--force") == 0
    assert not list(joined.folder.glob("*.join"))


def test_without_a_waiter_the_words_are_runscs_own(joined: Joined) -> None:
    """As for a lone container: `start` reads a line, here of nothing."""
    done = subprocess.run([*joined._plain, "start", "lone"], capture_output=True, timeout=20, check=False)
    assert done.stdout == b"said \n"


def test_when_its_supervisor_goes_it_ends_the_container(joined: Joined) -> None:
    words = [*joined._words, "create", "--bundle", "/b", "--pid-file", str(joined.folder / "pid"), joined.name]
    # A shell that stands for conmon, and ends.
    subprocess.run(["sh", "-c", '"$@"; exit 0', "sh", *words], stdin=subprocess.DEVNULL, timeout=20, check=True)
    assert joined.code() == 137
    assert f"kill --all {joined.name} 9" in joined.asked()
