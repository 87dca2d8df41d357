"""docs/reference/cli.md is what the table of commands gives."""

from __future__ import annotations

from pathlib import Path

from casemate.cli.flags import GLOBAL_FLAGS
from casemate.cli.index import ROWS, load
from casemate.cli.reference import cli_page

PAGE = Path(__file__).parents[3] / "docs/reference/cli.md"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == cli_page(), "stale; run: python3 tools/reference.py"


def test_the_page_names_everything() -> None:
    text = cli_page()
    for path, *_ in ROWS:
        assert f"\n### casemate {path}\n" in text
        for flag in (*load(path).flags, *GLOBAL_FLAGS):
            assert f"`--{flag.name}" in text
