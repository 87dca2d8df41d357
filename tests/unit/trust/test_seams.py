"""In trust only modules named ``apply`` have effects: the import contract lets them, and no other may use them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import casemate.trust

ROOT = Path(casemate.trust.__path__[0])
#: Loaded when they are needed, and only then: none of them may cost a command that does without.
LAZY = ("cryptography", "tuf", "securesystemslib", "cel", "cvss", "sqlite3")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def test_only_apply_has_effects() -> None:
    modules = sorted(ROOT.rglob("*.py"))
    assert len(modules) > 40
    pure = [path for path in modules if path.name != "apply.py"]
    assert len(pure) < len(modules)
    for path in pure:
        reached = {
            name
            for name in imported(path)
            if name.endswith(".apply") or ".apply." in name or name.startswith("casemate.host")
        }
        assert not reached, path


def test_imports_between_siblings_and_upwards() -> None:
    for path in ROOT.rglob("*.py"):
        layers = {name.split(".")[1] for name in imported(path) if name.startswith("casemate.") and name.count(".")}
        assert layers <= {"trust", "spec", "host"}, path


def test_admission_loads_nothing_that_is_not_used() -> None:
    program = (
        "import sys\nimport casemate.trust.admission\n"
        f"late = [name for name in {LAZY!r} if name in sys.modules]\n"
        "assert not late, late\n"
        "import casemate.trust.rules.decide, casemate.trust.freshness.resolve, casemate.trust.feed.severity\n"
        "late = [name for name in ('cryptography', 'tuf', 'cel', 'cvss') if name in sys.modules]\n"
        "assert not late, late\n"
    )
    command = [sys.executable, "-c", program]
    answer = subprocess.run(
        command, check=False, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT.parents[1])}
    )
    assert answer.returncode == 0, answer.stderr
