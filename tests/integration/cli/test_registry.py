"""Images over a real registry, as typed: push, a run that pulls, and a refusal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.registry import running_registry
from tests.terminal import Cli, Terminal


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Debian's docker-registry on a free port of the loopback; ``host:port``."""
    with running_registry(tmp_path) as host:
        yield host


def test_push_and_pull(cm: Cli, registry: str, launcher: Path, environment: dict[str, str]) -> None:
    name = f"{registry}/tools/box:1"
    assert cm("tag", "busybox", name).returncode == 0
    pushed = cm("push", "--plain-http", name)
    assert b"digest: sha256:" in pushed.stdout, pushed.stderr
    assert cm("rmi", name).returncode == 0
    pulled = cm("pull", "--plain-http", name)
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout.splitlines()[-1] == name.encode()
    assert cm("run", "--rm", name, "echo", "from", "afar").stdout == b"from afar\n"
    assert cm("rmi", name).returncode == 0
    terminal = Terminal([str(launcher), "pull", "--plain-http", name], environment)
    assert terminal.finish() == 0
    assert "━".encode() in terminal.seen
    assert cm("rmi", name).returncode == 0


def test_what_is_not_there(cm: Cli, registry: str) -> None:
    done = cm("pull", "--plain-http", f"{registry}/none:1")
    assert done.returncode == 125
    assert b"remedy:" in done.stderr
    done = cm("run", "--rm", f"{registry}/none:1", "true")
    assert done.returncode == 125
    assert b"Unable to find image" in done.stderr
