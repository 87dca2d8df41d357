"""House rules that no linter knows: file length, module names, package docstrings."""

from __future__ import annotations

import ast
from pathlib import Path

MAX_LINES = 600
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def python_files(files: list[Path]) -> list[Path]:
    return [path for path in files if path.suffix == ".py" or path.read_bytes()[:16].startswith(b"#!/usr/bin/python")]


def test_no_file_is_too_long(committed_files: list[Path]) -> None:
    lengths = {path: len(path.read_bytes().splitlines()) for path in python_files(committed_files)}
    assert lengths
    assert not {str(path): length for path, length in lengths.items() if length > MAX_LINES}


def test_names_say_what_is_inside(committed_files: list[Path]) -> None:
    names = {path for path in python_files(committed_files) if {path.stem, path.parent.name} & BANNED_NAMES}
    assert not names


def test_every_package_says_what_it_does(root: Path) -> None:
    packages = sorted((root / "src").rglob("__init__.py"))
    assert packages
    assert not [str(path) for path in packages if not ast.get_docstring(ast.parse(path.read_text()))]
