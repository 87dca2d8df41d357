"""The files of the checkout, for tests that judge them."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

#: Folders whose files are ours, and the files beside them.
FOLDERS = (".ci", "bench", "docs", "guest", "packaging", "requirements", "shim", "src", "tests", "tools")
MADE = {"__pycache__", "_build", ".hypothesis", ".mypy_cache", ".ruff_cache", ".pytest_cache", "build", "dist"}


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def committed_files() -> list[Path]:
    """Every file that is, or would be, committed. Without git, which CI need not have."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sorted(path for path in found if not MADE & set(path.relative_to(ROOT).parts) and path.suffix != ".pyc")
