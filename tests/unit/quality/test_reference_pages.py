"""The generated pages are those that the code gives."""

from __future__ import annotations

from pathlib import Path

from reference import PAGES, stale


def test_no_page_is_stale(root: Path) -> None:
    assert not [path.name for path, _ in stale(root / "docs")], "run: python3 tools/reference.py"


def test_a_stale_page_is_found(root: Path, tmp_path: Path) -> None:
    for name, _ in PAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((root / "docs" / name).read_text())
    changed, removed = (tmp_path / name for name, _ in PAGES[:2])
    changed.write_text(changed.read_text() + "\n")
    removed.unlink()
    assert {path for path, _ in stale(tmp_path)} == {changed, removed}
