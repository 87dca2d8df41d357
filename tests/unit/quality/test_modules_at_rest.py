"""What a daemon that waits has not imported: each of these takes memory for as long as it runs (decision 0162)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_SOURCE = Path(__file__).resolve().parents[3] / "src"
#: The daemon's own imports are made; it ends before it does anything.
_HOSTD = "from casemate.hostd.entry import main; assert main(['--usage']) == 2"
_CASEMATED = "from casemate.api.daemon import main; assert main(['--usage']) == 2"
_SHOW = "import sys; print(*(name for name, module in sys.modules.items() if module is not None))"


def _imported(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{_SHOW}"], env={"PYTHONPATH": str(_SOURCE), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "core", "absent"),
    [
        pytest.param(
            _HOSTD, "casemate.hostd.daemon",
            {"ssl", "_ssl", "http.client", "urllib.request", "multiprocessing", "sqlite3", "tarfile", "yaml"},
            id="hostd",
        ),
        pytest.param(
            _CASEMATED, "casemate.node.node",
            {"click", "multiprocessing", "uvicorn.main", "wsproto", "h11", "yaml", "difflib", "cryptography", "rich"},
            id="casemated",
        ),
    ],
)  # fmt: skip
def test_what_only_rare_work_needs_is_not_there(code: str, core: str, absent: set[str]) -> None:
    imported = _imported(code)
    assert core in imported, "the daemon was not imported: this test would say nothing"
    assert imported & absent == set()


def test_uvicorn_is_whole_for_who_asks_later() -> None:
    """The placeholder of its command line is gone, and nobody gets it."""
    code = (
        "import casemate.api.http_server as ours, importlib, uvicorn, uvicorn.server\n"
        "assert ours.Server is uvicorn.Server is uvicorn.server.Server\n"
        "real = importlib.import_module('uvicorn.main')\n"
        "assert callable(real.run) and real.Server is ours.Server"
    )
    assert "click" in _imported(code)
