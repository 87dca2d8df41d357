"""Images over a real registry, as typed: push, a run that pulls, and a refusal."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.cli.terminal import Cli, Terminal


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Debian's docker-registry on a free port of the loopback; ``host:port``."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("missing: docker-registry")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/registry}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\nlog: {{level: error}}\n"
    )
    process = subprocess.Popen([program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


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
