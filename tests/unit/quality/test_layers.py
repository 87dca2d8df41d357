"""The import contracts of .importlinter hold, and each of them can fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LINT = """
import sys
from importlinter.cli import lint_imports
sys.exit(lint_imports(config_filename=".importlinter", no_cache=True))
"""


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(root / "src"), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "COLUMNS": "200"}
    command = [sys.executable, "-B", "-c", LINT]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_contracts_hold(root: Path) -> None:
    result = lint(root)
    assert result.returncode == 0, result.stdout


# Where a line is added (a new file where there is none), and the contract that must break.
BREACHES = [
    ("host/breach.py", "import casemate.storage", "A layer imports only layers below it"),
    ("storage/breach.py", "import casemate.network", "A layer imports only layers below it"),
    ("unplaced/__init__.py", "", "A layer imports only layers below it"),
    ("hostd/breach.py", "import http.client", "What holds privilege never reaches what parses"),
    ("node/breach.py", "import casemate.isolation", "hostd is reached through its client and protocol alone"),
    ("spec/breach.py", "import os", "Plans, argument lists, parsers, policy, trust and spec have no effects"),
    ("network/plan.py", "import time", "Plans, argument lists, parsers, policy, trust and spec have no effects"),
    (
        "isolation/deeper/plan.py",
        "import socket",
        "Plans, argument lists, parsers, policy, trust and spec have no effects",
    ),
    ("node/breach.py", "import casemate.api", "A layer imports only layers below it"),
    ("spec/api/breach.py", "import time", "Plans, argument lists, parsers, policy, trust and spec have no effects"),
    ("storage/breach.py", "import casemate.storage.inside", "What reads archives and untrusted trees"),
    ("cli/breach.py", "import casemate.node", "The command line reaches the daemon through the API's client alone"),
]


@pytest.mark.parametrize(("name", "line", "contract"), BREACHES, ids=[f"{name}: {line}" for name, line, _ in BREACHES])
def test_a_breach_is_found(root: Path, tmp_path: Path, name: str, line: str, contract: str) -> None:
    shutil.copytree(root / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / ".importlinter", tmp_path)
    breach = tmp_path / "src/casemate" / name
    breach.parent.mkdir(exist_ok=True)
    (breach.parent / "__init__.py").touch()
    with breach.open("a") as file:
        file.write(f"\n{line}\n")
    result = lint(tmp_path)
    assert result.returncode != 0
    broken = [text for text in result.stdout.splitlines() if " BROKEN" in text]
    assert any(text.startswith(contract) for text in broken), result.stdout
