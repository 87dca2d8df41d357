"""Links between documents lead somewhere; the version is one."""

from __future__ import annotations

import re
from pathlib import Path

from casemate import __version__

LINK = re.compile(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("http://", "https://", "mailto:", "urn:")


def dead_links(document: Path) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", document.read_text()))
    dead = []
    for target in LINK.findall(text):
        path, _, anchor = target.partition("#")
        if target.startswith(ELSEWHERE):
            continue
        file = (document.parent / path) if path else document
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            dead.append(target)
    return dead


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere(committed_files: list[Path], root: Path) -> None:
    documents = [path for path in committed_files if path.suffix == ".md"]
    assert root / "README.md" in documents
    dead = {str(path.relative_to(root)): dead_links(path) for path in documents}
    assert not {path: links for path, links in dead.items() if links}


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One two\n[a](#one-two) [b](page.md) [c](gone.md) [d](#three) [e](https://example.org) `[f](x)`\n"
    )
    assert dead_links(page) == ["gone.md", "#three"]


def test_the_changelog_knows_the_version(root: Path) -> None:
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == __version__


def test_every_decision_has_a_number_of_its_own(root: Path) -> None:
    numbers = [path.name[:4] for path in sorted((root / "docs/decisions").glob("[0-9]*.md"))]
    assert numbers
    assert len(numbers) == len(set(numbers))


def test_every_decision_says_where_it_stands(root: Path) -> None:
    for path in (root / "docs/decisions").glob("[0-9]*.md"):
        text = path.read_text()
        assert text.startswith(f"# {path.name[:4]}: "), path.name
        assert "*Status: " in text, path.name
