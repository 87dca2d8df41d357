"""A pair of daemons with every level that this machine can have, and the table at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.conformance.case import CASES
from tests.conformance.chamber import Chamber
from tests.integration.cli.conftest import LAUNCHER
from tests.integration.daemons import SOURCE, Daemons, running_daemons

ROOT = Path(__file__).parents[2]
#: Debian's kernel package, fetched once for all runs of the tests on a machine.
KERNELS = Path("/var/cache/casemate-tests/kernel")
LEVELS = ("namespace", "gvisor", "microvm")
_MARKS = {"passed": "ok", "xfailed": "no", "failed": "FAILED", "error": "FAILED", "skipped": "-"}
#: (level, case) to how it went.
results: dict[tuple[str, str], str] = {}


@pytest.fixture(scope="session")
def pair() -> Iterator[Daemons]:
    """Both daemons, casemate-vm and the guest agent built from this checkout, and an image."""
    settings: dict[str, str] = {}
    if shutil.which("gcc") and shutil.which("make"):
        # Not pytest's folder, which another run of pytest's closes to others: casemated reads the agent.
        build = Path(tempfile.mkdtemp(prefix="casemate-built-"))
        build.chmod(0o755)
        for part in ("guest", "shim"):
            command = ["make", "-s", "-C", str(ROOT / part), f"BUILD={build / part}"]
            subprocess.run(command, capture_output=True, timeout=180, check=True)
        settings = {
            "CASEMATE_MICROVM_SHIM": str(build / "shim/casemate-vm"),
            "CASEMATE_MICROVM_AGENT": str(build / "guest/agent"),
        }
    # As users have it; one template more does not matter among so many starts.
    settings["CASEMATE_MICROVM_REHEARSAL"] = "true"
    with running_daemons(**settings) as daemons:
        daemons.import_busybox()
        yield daemons
    if "CASEMATE_MICROVM_SHIM" in settings:
        shutil.rmtree(Path(settings["CASEMATE_MICROVM_SHIM"]).parents[1], ignore_errors=True)


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bin") / "casemate"
    path.write_text(LAUNCHER.format(source=str(SOURCE), site=str(Path(msgspec.__file__).parents[1])))
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def chambers(pair: Daemons, launcher: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Chamber]]:
    home = tmp_path_factory.mktemp("home")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "CASEMATE_HOST": f"unix://{pair.socket}",
    }
    found = {level: Chamber(level, launcher, environment) for level in LEVELS}
    for chamber in found.values():
        chamber.folder = home
    yield found
    for chamber in found.values():
        chamber.close()


@pytest.fixture(scope="session")
def missing(chambers: dict[str, Chamber]) -> dict[str, str]:
    """The levels that this machine cannot have, each with the reason; found by running a container."""
    found: dict[str, str] = {}
    if kernel := guest_kernel():
        installed = chambers["microvm"].cm("system", "kernel", "install", "-q", str(kernel))
        assert installed.returncode == 0, installed
    for level, chamber in chambers.items():
        done = chamber.run(script="true")
        if done.returncode:
            found[level] = done.stderr.decode(errors="replace").strip()[-300:]
    return found


def guest_kernel() -> Path | None:
    """Debian's package, from the cache of earlier runs or by apt; None where neither has it."""
    kept = sorted(KERNELS.glob("linux-image-*.deb"))
    if kept or shutil.which("apt-get") is None:
        return kept[-1] if kept else None
    shown = subprocess.run(["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True, check=False)
    names = [line.split()[-1] for line in shown.stdout.splitlines() if "Depends: linux-image-" in line]
    if not names:
        return None
    KERNELS.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", names[0]], cwd=KERNELS, capture_output=True, timeout=300, check=False)
    return next(iter(sorted(KERNELS.glob("linux-image-*.deb"))), None)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how each case went."""
    name = report.nodeid.rpartition("test_case[")[2].removesuffix("]")
    level, _, case = name.partition("-")
    if level not in LEVELS or case not in CASES:
        return
    outcome = "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
    if report.when == "call" or outcome in ("failed", "skipped"):
        results[level, case] = _MARKS[outcome]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table: a line for each case, a column for each level."""
    if not results:
        return
    terminalreporter.section("conformance")
    levels = [level for level in LEVELS if any(key[0] == level for key in results)]
    width = max(len(case) for _, case in results)
    terminalreporter.write_line(f"{'case':{width}}  " + "".join(f"{level:<11}" for level in levels))
    for case in CASES:
        row = [results.get((level, case), "") for level in levels]
        if any(row):
            terminalreporter.write_line(f"{case:{width}}  " + "".join(f"{mark:<11}" for mark in row).rstrip())
    for level in levels:
        marks = [mark for (of, _), mark in results.items() if of == level]
        counted = ", ".join(f"{marks.count(mark)} {mark}" for mark in dict.fromkeys(_MARKS.values()) if mark in marks)
        terminalreporter.write_line(f"{level}: {counted}")
