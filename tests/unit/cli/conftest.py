"""The launcher as it is installed, and a peer that speaks the contract."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from peer import Peer

SOURCE = Path(__file__).parents[3] / "src"
LAUNCHER = """#!/usr/bin/python3 -IS
import sys

sys.path += [{source!r}, {site!r}]
from casemate.cli.main import main

sys.exit(main(sys.argv[1:]))
"""

Cli = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bin") / "casemate"
    path.write_text(LAUNCHER.format(source=str(SOURCE), site=str(Path(msgspec.__file__).parents[1])))
    path.chmod(0o755)
    return path


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    found = Peer(tmp_path / "s.sock")
    yield found
    found.close()
    assert not found.failures


@pytest.fixture
def environment(peer: Peer, tmp_path: Path) -> dict[str, str]:
    kept = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C.UTF-8", "TERM": "xterm"}
    return kept | {"CASEMATE_HOST": peer.host}


@pytest.fixture
def cm(launcher: Path, environment: dict[str, str], tmp_path: Path) -> Cli:
    """Run the command line; its CompletedProcess."""

    def run(*argv: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(launcher), *argv],
            input=stdin,
            capture_output=True,
            env=environment | (env or {}),
            cwd=tmp_path,
            timeout=30,
            check=False,
        )

    return run
