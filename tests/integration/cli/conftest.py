"""The launcher as it is installed, against the shared pair of daemons."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.integration.daemons import SOURCE, Daemons
from tests.terminal import Cli

LAUNCHER = """#!/usr/bin/python3 -IS
import sys

sys.path += [{source!r}, {site!r}]
from casemate.cli.main import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bin") / "casemate"
    path.write_text(LAUNCHER.format(source=str(SOURCE), site=str(Path(msgspec.__file__).parents[1])))
    path.chmod(0o755)
    return path


@pytest.fixture
def environment(daemons: Daemons, busybox: str, tmp_path: Path) -> dict[str, str]:
    kept = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C.UTF-8", "TERM": "xterm"}
    return kept | {"CASEMATE_HOST": f"unix://{daemons.socket}"}


@pytest.fixture
def cm(launcher: Path, environment: dict[str, str], tmp_path: Path) -> Cli:
    """Run the command line; its CompletedProcess."""

    def run(*argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(launcher), *argv],
            input=stdin,
            capture_output=True,
            env=environment,
            cwd=tmp_path,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture(autouse=True)
def nothing_stays(daemons: Daemons) -> Iterator[None]:
    """A test that fails leaves nothing to the next one."""
    yield
    for row in daemons.client.containers(everything=True):
        daemons.client.remove(row.id, force=True, volumes=True)
