"""The start's budget, and the list of modules that a start may load."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from pathlib import Path

import pytest
from peer import Reply

#: What costs a start too much, or shows that something heavy came along.
FORBIDDEN = {
    "re",
    "json",
    "socket",
    "enum",
    "argparse",
    "dataclasses",
    "typing",
    "os",
    "collections",
    "functools",
    "logging",
    "subprocess",
    "threading",
    "select",
    "signal",
    "ssl",
    "tarfile",
    "termios",
    "datetime",
    "pathlib",
    "msgspec",
    "rich",
    "casemate.spec.errors",
    "casemate.cli.errors",
    "site",
    "hashlib",
    "base64",
    "struct",
    "contextlib",
    "importlib",
}
#: What a request may load besides: C modules.
FOR_A_REQUEST = {"select"}


def _loaded(launcher: Path, environment: dict[str, str], *argv: str) -> set[str]:
    """The modules that were loaded when the command ended."""
    program = launcher.read_text().replace(
        "sys.exit(main(sys.argv[1:]))", "code = main(sys.argv[1:]); print('MODULES', *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-IS", "-c", program, *argv], capture_output=True, env=environment, check=True, timeout=30
    )
    line = next(line for line in done.stderr.decode().splitlines() if line.startswith("MODULES"))
    return set(line.split()[1:])


@pytest.mark.parametrize("argv", [["--help"], ["version", "--client"], ["run", "--help"], ["image", "--help"]])
def test_a_start_loads_nothing_heavy(launcher: Path, environment: dict[str, str], argv: list[str]) -> None:
    loaded = _loaded(launcher, environment, *argv)
    assert not loaded & FORBIDDEN
    ours = {name for name in loaded if name.startswith("casemate")}
    assert len(ours) <= 20, sorted(ours)


def test_a_request_loads_nothing_heavy(launcher: Path, environment: dict[str, str], peer) -> None:
    def serve(request, websocket) -> None:
        websocket.control(started=True)
        websocket.control(exit_code=0)

    peer.on("POST", "/v1/containers", Reply(201, {"id": "ab" * 32, "name": "x"}))
    peer.websocket(f"/v1/containers/{'ab' * 32}/attach", serve)
    loaded = _loaded(launcher, environment, "run", "--rm", "debian:12", "true")
    assert not loaded & (FORBIDDEN - FOR_A_REQUEST)


def _seconds(argv: list[str], environment: dict[str, str]) -> float:
    before = time.perf_counter()
    subprocess.run(argv, stdout=subprocess.DEVNULL, env=environment, check=True)
    return time.perf_counter() - before


def test_a_start_takes_at_most_one_and_a_half_of_an_empty_python(launcher: Path, environment: dict[str, str]) -> None:
    """Alternated, so that the machine's other work falls on both; medians; a busy machine gets three tries."""
    empty, ours = ["/usr/bin/python3", "-c", "pass"], [str(launcher), "version", "--client"]
    # Both have their byte code compiled, as installed.
    subprocess.run(
        ["/usr/bin/python3", "-m", "compileall", "-q", str(Path(__file__).parents[3] / "src/casemate/cli")],
        env=os.environ | environment,
        check=True,
    )
    ratios = []
    for _ in range(3):
        pairs = [(_seconds(empty, environment), _seconds(ours, environment)) for _ in range(15)]
        ratios.append(statistics.median(pair[1] for pair in pairs) / statistics.median(pair[0] for pair in pairs))
        if ratios[-1] <= 1.5:
            return
    pytest.fail(f"a start takes {ratios} times an empty python; the budget is 1.5")
