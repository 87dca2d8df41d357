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
    before = templates(pair)
    words = ("--template", "none", "--name", "cold", "busybox", "sh", "-c", "echo x > /x; sleep 9")
    done = vm("run", "-d", "--isolation", "microvm", *words)
    assert done.returncode == 0, done.stderr
    assert vm("inspect", "-f", "{{.Casemate.Template}}", "cold").stdout == "none\n"
    assert vm("exec", "cold", "ip", "route").stdout.startswith("default")
    assert templates(pair) == before
    # A copy out of a stopped one is a machine too.
    assert vm("stop", "-t", "0", "cold").returncode == 0
    assert vm("cp", "cold:/x", str(tmp_path / "x")).returncode == 0
    assert (tmp_path / "x").read_text() == "x\n"
    assert templates(pair) == before
    assert vm("rm", "-f", "cold").returncode == 0
    with setting(pair, "project"):
        # Nobody gets less than the host's setting says.
        done = vm(*ALONE, "--template", "shared", "busybox", "echo", "own")
        assert done.stdout == "own\n", done.stderr
        assert len(templates(pair) - before) == 1


def test_a_template_is_refused_where_there_is_none(vm: Run) -> None:
    done = vm("run", "--rm", "--isolation", "namespace", "--template", "none", "busybox", "true")
    assert done.returncode == 125
    assert "--isolation microvm" in done.stderr
    done = vm("run", "--rm", "--isolation", "microvm", "--template", "hot", "busybox", "true")
    assert done.returncode == 125
    assert "shared, project, none" in done.stderr
    assert vm("pod", "create", "--isolation", "microvm", "--template", "project", "apart").returncode == 0
    done = vm("run", "--rm", "--pod", "apart", "--template", "shared", "busybox", "true")
    assert "pod create" in done.stderr
    assert vm("pod", "rm", "apart").returncode == 0
