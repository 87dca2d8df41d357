"""One isolation level as the cases use it: the command line, and a container that runs all the time."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.terminal import Terminal

Flags = tuple[str, ...]
Done = subprocess.CompletedProcess[bytes]
TIMEOUT_S = 60


class Chamber:
    """The level *level*, through the command line at *launcher*; *folder* is of the case alone."""

    image = "busybox"

    def __init__(self, level: str, launcher: Path, environment: dict[str, str]) -> None:
        self.level = level
        self.level_flags = ("--isolation", level)
        self._launcher = launcher
        self._environment = environment
        self._numbers = itertools.count()
        self._box = self._raw = ""
        self.folder = Path()

    def cm(self, *argv: str, stdin: bytes = b"") -> Done:
        """The command line."""
        return subprocess.run(
            [str(self._launcher), *argv], input=stdin, capture_output=True, env=self._environment, cwd=self.folder,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip

    def ok(self, *argv: str, stdin: bytes = b"") -> str:
        """The same, which must succeed; what it printed."""
        done = self.cm(*argv, stdin=stdin)
        assert done.returncode == 0, done
        return done.stdout.decode().strip()

    def begin(self, *argv: str) -> subprocess.Popen[bytes]:
        """The command line, without waiting for it."""
        return subprocess.Popen(
            [str(self._launcher), *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=self._environment, cwd=self.folder,
        )  # fmt: skip

    def terminal(self, *argv: str) -> Terminal:
        return Terminal([str(self._launcher), *argv], self._environment | {"TERM": "xterm"})

    def run(self, *flags: str, script: str, stdin: bytes = b"") -> Done:
        """A container of its own that runs a shell's *script* and is removed."""
        return self.cm("run", "--rm", *self.level_flags, *flags, self.image, "sh", "-c", script, stdin=stdin)

    @property
    def probe(self) -> tuple[str, ...]:
        """Flags that show a container the program of probe.c, as /probe."""
        source, program = Path(__file__).with_name("probe.c"), self._launcher.with_name("probe")
        if shutil.which("gcc") is None:
            pytest.skip("missing: gcc")
        if not program.exists():
            subprocess.run(["gcc", "-static", "-Os", "-o", str(program), str(source)], check=True, timeout=TIMEOUT_S)
        return ("-v", f"{program}:/probe:ro")

    def name(self) -> str:
        return f"c{next(self._numbers)}"

    @property
    def box(self) -> str:
        """A container that runs all the time; no case may change what another could see."""
        if not self._box:
            name = f"box-{self.level}"
            self.ok("run", "-d", "--name", name, *self.level_flags, self.image, "sleep", "100000")
            self._box = name
        return self._box

    @property
    def raw(self) -> str:
        """Another, which may make packets by hand; it has the program of probe.c."""
        if not self._raw:
            name = f"raw-{self.level}"
            flags = ("--cap-add", "NET_RAW", *self.probe)
            self.ok("run", "-d", "--name", name, *self.level_flags, *flags, self.image, "sleep", "100000")
            self._raw = name
        return self._raw

    def exec(self, *flags: str, script: str, stdin: bytes = b"") -> Done:
        """A shell's *script* in the box."""
        return self.cm("exec", *flags, self.box, "sh", "-c", script, stdin=stdin)

    @contextmanager
    def started(self, *flags: str, script: str = "sleep 100000") -> Iterator[str]:
        """A container in the background, by name; removed at the end."""
        name = self.name()
        self.ok("run", "-d", "--name", name, *self.level_flags, *flags, self.image, "sh", "-c", script)
        try:
            yield name
        finally:
            self.cm("rm", "-f", "-v", name)

    @contextmanager
    def made(self, *flags: str, script: str = "true") -> Iterator[str]:
        """A container that was created and not started."""
        name = self.name()
        self.ok("create", "--name", name, *self.level_flags, *flags, self.image, "sh", "-c", script)
        try:
            yield name
        finally:
            self.cm("rm", "-f", "-v", name)

    @contextmanager
    def pod(self, *flags: str) -> Iterator[str]:
        name = f"p{next(self._numbers)}"
        self.ok("pod", "create", "--name", name, *self.level_flags, *flags)
        try:
            yield name
        finally:
            self.cm("pod", "rm", "-f", name)

    @contextmanager
    def volume(self) -> Iterator[str]:
        name = f"v{next(self._numbers)}"
        self.ok("volume", "create", name)
        try:
            yield name
        finally:
            self.cm("volume", "rm", "-f", name)

    def inspect(self, name: str) -> Any:
        return json.loads(self.ok("inspect", name))[0]

    def state(self, name: str) -> str:
        found: str = self.inspect(name)["State"]["Status"]
        return found

    def address(self, name: str) -> str:
        return self.ok("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name)

    def usage(self, name: str) -> dict[str, Any]:
        """What it uses, as the API says."""
        connection = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.connect(self._environment["CASEMATE_HOST"].removeprefix("unix://"))
        try:
            connection.request("GET", f"/v1/stats?container={name}&stream=false")
            row: dict[str, Any] = json.load(connection.getresponse())["rows"][0]
            return row
        finally:
            connection.close()

    def kill_host_process(self, pid: int) -> None:
        """KILL the process of the host that stands for the container."""
        assert pid > 1
        os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        for name in (self._box, self._raw):
            if name:
                self.cm("rm", "-f", "-v", name)


#: How long a case waits for something: less where it is known that it will not come.
PATIENCE_S, LITTLE_PATIENCE_S = 20.0, 3.0
_patience_s = PATIENCE_S


def be_patient(seconds: float) -> None:
    """How long :func:`until` waits from now on."""
    global _patience_s  # noqa: PLW0603 - one case runs at a time, and its helpers are plain functions
    _patience_s = seconds


def until(done: Callable[[], bool], factor: float = 1.0) -> None:
    """Wait for *done*."""
    deadline = time.monotonic() + _patience_s * factor
    while not done():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)
