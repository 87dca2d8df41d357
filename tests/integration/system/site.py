"""A whole installation for one module of tests: both daemons, the launcher, and a container that must notice nothing.

:class:`Site` runs command lines as root or as another unix user; :class:`Canary` is a container that counts aloud
for as long as the module's tests do their worst; :func:`traces` is what a refused or failed command may not add to.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tests.integration import leaks
from tests.integration.daemons import SOURCE, Daemons, running_daemons

from casemate.spec.api import PodList, VolumeList

IMAGE = "busybox"
LAUNCHER = """#!/usr/bin/python3 -IS
import sys

sys.path += [{source!r}, {site!r}]
from casemate.cli.main import main

sys.exit(main(sys.argv[1:]))
"""
#: Twenty numbers a second; a pause in them means that somebody stopped or killed the container.
COUNTING = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"
#: On two busy cores a tick is late now and then; a restart of a daemon would take longer than this only when hung.
LONGEST_PAUSE_S = 5.0

Done = subprocess.CompletedProcess[bytes]


@dataclass(frozen=True)
class Account:
    """A unix user made for a test."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


class Site:
    """Both daemons and the command line. Calling it runs ``casemate ARGV``."""

    def __init__(self, daemons: Daemons) -> None:
        self.daemons = daemons
        self.folder = daemons.scope.folder
        self.launcher = self.folder / "casemate"
        self.launcher.write_text(LAUNCHER.format(source=str(SOURCE), site=str(Path(msgspec.__file__).parents[1])))
        self.launcher.chmod(0o755)
        self.home = self.folder / "home"
        self.home.mkdir()

    @property
    def environment(self) -> dict[str, str]:
        kept = {"PATH": os.environ["PATH"], "HOME": str(self.home), "LC_ALL": "C.UTF-8", "TERM": "xterm"}
        return kept | {"CASEMATE_HOST": f"unix://{self.daemons.socket}"}

    def argv(self, *argv: str, user: Account | None = None) -> list[str]:
        line = [str(self.launcher), *argv]
        if user is None:
            return line
        groups = f"--groups={','.join(map(str, user.groups))}" if user.groups else "--clear-groups"
        return ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", groups, *line]

    def __call__(
        self,
        *argv: str,
        stdin: bytes = b"",
        user: Account | None = None,
        environment: dict[str, str] | None = None,
        timeout_s: float = 60,
    ) -> Done:
        return subprocess.run(
            self.argv(*argv, user=user),
            input=stdin,
            capture_output=True,
            env=self.environment | (environment or {}),
            cwd="/",
            timeout=timeout_s,
            check=False,
        )

    def inspect(self, reference: str) -> dict[str, object]:
        """One container as ``inspect`` prints it."""
        done = self("inspect", reference)
        assert done.returncode == 0, done.stderr
        first: dict[str, object] = json.loads(done.stdout)[0]
        return first

    def audit(self) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = json.loads(self("audit", "ls", "--tail", "1000", "--json").stdout)
        return rows


def refusal(done: Done, code: str, exit_code: int = 125) -> str:
    """Assert that a command line refused with *code*, a detail and a remedy; the text that it printed."""
    text = done.stderr.decode()
    assert done.returncode == exit_code, (done.returncode, text)
    assert "remedy:" in text, text
    assert "Traceback" not in text, text
    assert "internal" not in text.lower(), text
    if code:
        assert code in text, text
    return text


def refused(site: Site, code: str, *argv: str, exit_code: int = 125, **more: object) -> dict[str, object]:
    """Run ``casemate --json ARGV``; assert its code and that it has a detail and a remedy; the problem document."""
    done = site("--json", *argv, **more)  # type: ignore[arg-type]
    text = done.stderr.decode(errors="replace").strip()
    assert done.returncode == exit_code, (done.returncode, text, done.stdout)
    problem: dict[str, object] = json.loads(text.splitlines()[-1])
    if "code" not in problem and isinstance(problem.get("error"), dict):
        problem = problem["error"]  # type: ignore[assignment]
    assert problem["code"] == code, problem
    assert problem["detail"], problem
    assert problem["remedy"], problem
    assert "Traceback" not in text
    return problem


class Canary:
    """A container that counts aloud, and what must be true of it at the end."""

    NAME = "canary"

    def __init__(self, site: Site) -> None:
        self.site = site
        done = site("run", "-d", "--name", self.NAME, IMAGE, "sh", "-c", COUNTING)
        assert done.returncode == 0, done.stderr
        self.id = done.stdout.decode().strip()
        self.pid = site.daemons.client.inspect(self.id).pid

    def check(self) -> None:
        """It runs, it is the same process, and its numbers have neither a gap nor a long pause."""
        settle(lambda: len(self.site("logs", self.id).stdout.splitlines()) > 5)
        detail = self.site.daemons.client.inspect(self.id)
        assert (detail.summary.status, detail.pid, detail.summary.restarts) == ("running", self.pid, 0)
        done = self.site("logs", "-t", self.id)
        assert done.returncode == 0, done.stderr
        lines = [line.split(" ", 1) for line in done.stdout.decode().splitlines()]
        numbers = [int(number) for _, number in lines]
        assert numbers == list(range(len(numbers))), f"a gap near {_first_gap(numbers)}"
        assert len(numbers) > 5
        times = [_seconds(stamp) for stamp, _ in lines]
        pauses = [after - before for before, after in itertools.pairwise(times)]
        assert max(pauses) < LONGEST_PAUSE_S, f"it was still for {max(pauses):.1f} s"
        assert time.time() - times[-1] < LONGEST_PAUSE_S, "it is still"


def _first_gap(numbers: list[int]) -> int:
    return next((i for i, number in enumerate(numbers) if i != number), -1)


def _seconds(stamp: str) -> float:
    """Seconds since the epoch of an RFC 3339 time in UTC with a fraction."""
    whole, _, rest = stamp.partition(".")
    fraction = "".join(char for char in rest if char.isdigit())
    import calendar  # noqa: PLC0415 - only here

    moment = calendar.timegm(time.strptime(whole.rstrip("Z"), "%Y-%m-%dT%H:%M:%S"))
    return moment + (float(f"0.{fraction}") if fraction else 0.0)


def traces(site: Site) -> set[str]:
    """What the product has made and what of it is in the kernel, a line each; mounted layers stay until pruned."""
    scope = site.daemons.scope
    client = site.daemons.client
    found = {f"container {row.id}" for row in client.containers(everything=True)}
    found |= {f"image {image.id} {' '.join(sorted(image.names))}" for image in client.images()}
    found |= {f"volume {row.name}" for row in client._get("/v1/volumes", VolumeList).volumes}
    found |= {f"pod {row.id}" for row in client._get("/v1/pods", PodList).pods}
    kernel = {*leaks._mounts(scope), *leaks._loops(scope), *leaks._links(scope), *leaks._cgroups(scope)}
    found |= {line for line in kernel if "/host-run/layers/" not in line and "/host-state/layers/" not in line}
    for place in ("host-run/c", "host-run/netns", "host-run/ns", "host-run/runtime", "host-state/pods",
                  "state/ingest", "state/staging", "state/uploads", "state/leases"):  # fmt: skip
        folder = site.folder / place
        if folder.is_dir():
            found |= {f"file {place}/{entry.name}" for entry in folder.iterdir()}
    return found


def settle(wanted: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Whether *wanted* came true in time."""
    deadline = time.monotonic() + timeout_s
    while not wanted():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def installed(**settings: str) -> Iterator[Site]:
    """A site of its own with the image ``busybox``; at its end nothing of it may be left in the kernel."""
    with running_daemons(**settings) as daemons:
        site = Site(daemons)
        daemons.import_busybox(IMAGE)
        yield site
        daemons.close()
        scope = daemons.scope

        def left() -> set[str]:
            lines = {*leaks._mounts(scope), *leaks._loops(scope), *leaks._links(scope), *leaks._cgroups(scope)}
            return {line for line in lines if "/host-run/layers/" not in line and "/host-state/layers/" not in line
                    and line != f"mount {scope.folder}/host-run" and not line.endswith("/probe")}  # fmt: skip

        try:
            assert settle(lambda: not left()), left()
        finally:
            leaks.clean(scope)


@contextlib.contextmanager
def account(*groups: int) -> Iterator[Account]:
    """A unix user of the test's own, in *groups* besides its own; removed afterwards."""
    name = f"cmt{secrets.token_hex(4)}"
    subprocess.run(["useradd", "--no-create-home", "--user-group", "--shell", "/bin/sh",
                    *(["--groups", ",".join(map(str, groups))] if groups else []), name], check=True)  # fmt: skip
    import pwd  # noqa: PLC0415 - only here

    entry = pwd.getpwnam(name)
    try:
        yield Account(name, entry.pw_uid, entry.pw_gid, tuple(groups))
    finally:
        subprocess.run(["userdel", name], check=False, capture_output=True)
