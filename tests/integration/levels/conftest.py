"""A pair of daemons that has the level ``microvm``: casemate-vm and the agent of this checkout, a guest kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import SOURCE, Daemons, running_daemons

ROOT = Path(__file__).parents[3]
PACKAGES = Path("/var/cache/casemate-tests/kernel")
Run = Callable[..., subprocess.CompletedProcess[str]]
_PROGRAM = "import sys; from casemate.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """The folder in which the agent and casemate-vm were built."""
    for program in ("qemu-system-x86_64", "gcc", "make", "dpkg-deb", "busybox"):
        if shutil.which(program) is None:
            pytest.skip(f"missing: {program}")
    # Not pytest's folder, which another run of pytest's closes to others: casemated reads the agent.
    folder = Path(tempfile.mkdtemp(prefix="casemate-built-"))
    folder.chmod(0o755)
    for part in ("guest", "shim"):
        command = ["make", "-s", "-C", str(ROOT / part), f"BUILD={folder / part}"]
        done = subprocess.run(command, capture_output=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr.decode()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def package() -> Path:
    """Debian's kernel package."""
    found = sorted(PACKAGES.glob("linux-image-*.deb"))
    if not found:
        pytest.skip(f"missing: a kernel package in {PACKAGES} (the tests of microvm fetch it)")
    return found[-1]


@pytest.fixture(scope="session")
def pair(programs: Path) -> Iterator[Daemons]:
    """Without a guest kernel at first: the tests' order begins with that."""
    settings = {
        "CASEMATE_MICROVM_SHIM": str(programs / "shim/casemate-vm"),
        "CASEMATE_MICROVM_AGENT": str(programs / "guest/agent"),
    }
    with running_daemons(**settings) as daemons:
        daemons.import_busybox()
        yield daemons


def environment(pair: Daemons) -> dict[str, str]:
    """The command line's, which speaks to *pair*."""
    found = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(SOURCE)}
    return found | {"CASEMATE_HOST": f"unix://{pair.socket}"}


def words_of_cli() -> list[str]:
    """How the command line is started."""
    return [sys.executable, "-c", _PROGRAM]


@pytest.fixture(scope="session")
def cm(pair: Daemons) -> Run:
    """The command line."""

    def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*words_of_cli(), *words],
            env=environment(pair),
            text=True,
            timeout=170,
            check=False,
            **{"capture_output": True, **options},  # type: ignore[call-overload]
        )

    return run


@pytest.fixture(scope="session")
def vm(cm: Run, package: Path) -> Run:
    """The command line, where the level is there."""
    done = cm("system", "kernel", "install", "-q", str(package))
    assert done.returncode == 0, done.stderr
    return cm
