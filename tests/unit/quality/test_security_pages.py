"""Each promise and each hostile input of docs/security names a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
PAGES = ("threat-model.md", "hostile-input.md")


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def missing(page: Path, tests: Path) -> list[str]:
    """The tests that *page* names and *tests* does not have."""
    lost = []
    for path, name in NAMED.findall(page.read_text()):
        file = tests / path
        if not file.is_file() or not name.startswith("test_") or name not in functions(file):
            lost.append(f"{path}::{name}")
    return lost


def rows_without(page: Path) -> list[str]:
    """Rows of those tables that have a column for tests, and name none."""
    bare, judged = [], False
    for line in page.read_text().splitlines():
        if not line.startswith("|"):
            judged = False
        elif re.search(r"\| tests? \|$", line):
            judged = True
        elif judged and not set(line) <= set("|- ") and not NAMED.search(line.rstrip(" |").rpartition("|")[2]):
            bare.append(line)
    return bare


def test_every_named_test_is_there(root: Path) -> None:
    for name in PAGES:
        page = root / "docs/security" / name
        assert not missing(page, root / "tests"), name
        assert len(NAMED.findall(page.read_text())) > 30, name


def test_every_promise_has_one(root: Path) -> None:
    for name in PAGES:
        assert not rows_without(root / "docs/security" / name), name


def test_what_is_not_there_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    rows = "| a | test |\n|---|---|\n| x | `unit/here.py::test_it` |\n| y | none |\n\n| z | `unit/x.py::test_y` |\n"
    page.write_text(rows)
    (tmp_path / "unit").mkdir()
    (tmp_path / "unit/here.py").write_text("def test_it():\n    pass\n")
    assert missing(page, tmp_path) == ["unit/x.py::test_y"]
    assert rows_without(page) == ["| y | none |"]
