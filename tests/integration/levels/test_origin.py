"""The setting ``microvm.template`` from the command line: a cold boot for each machine, a template for each project."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.integration.daemons import Daemons

pytestmark = pytest.mark.root

Run = Callable[..., subprocess.CompletedProcess[str]]
ALONE = ("run", "--rm", "--isolation", "microvm")


@contextmanager
def setting(pair: Daemons, kind: str) -> Iterator[None]:
    """hostd with *kind*, and with its default again afterwards."""
    restart(pair, kind)
    try:
        yield
    finally:
        restart(pair, "shared")


def restart(pair: Daemons, kind: str) -> None:
    pair.kill("casemate-hostd", signal.SIGTERM)
    pair.environment["CASEMATE_MICROVM_TEMPLATE"] = kind
    pair.start("casemate-hostd")


def templates(pair: Daemons) -> set[str]:
    return {path.parent.name for path in (pair.scope.folder / "host-state/templates").glob("*/manifest.json")}


def test_a_cold_boot_and_a_projects_template(pair: Daemons, vm: Run, tmp_path: Path) -> None:
    """In one, since each restart and each boot of a guest takes its seconds."""
    with setting(pair, "none"):
        before = templates(pair)
        done = vm(
            "run", "-d", "--isolation", "microvm", "--name", "cold", "busybox", "sh", "-c", "echo x > /x; sleep 9"
        )
        assert done.returncode == 0, done.stderr
        assert vm("exec", "cold", "ip", "route").stdout.startswith("default")
        assert templates(pair) == before
        # A copy out of a stopped one is a machine too.
        assert vm("stop", "-t", "0", "cold").returncode == 0
        assert vm("cp", "cold:/x", str(tmp_path / "x")).returncode == 0
        assert (tmp_path / "x").read_text() == "x\n"
        assert templates(pair) == before
        assert vm("rm", "-f", "cold").returncode == 0
    with setting(pair, "project"):
        done = vm(*ALONE, "busybox", "echo", "own")
        assert done.stdout == "own\n", done.stderr
        assert len(templates(pair) - before) == 1
