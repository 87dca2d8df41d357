"""The locks hold exact versions with hashes and no address, and agree with what the package asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = ("build", "run", "dev")
PIN = re.compile(r"([a-z0-9-]+)==([0-9][0-9a-z.]*) \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


def pins(path: Path) -> dict[str, str]:
    return {found[1]: found[2] for line in path.read_text().splitlines() if (found := PIN.fullmatch(line))}


def asked(path: Path) -> list[Requirement]:
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_is_a_version_or_its_hash(root: Path, name: str) -> None:
    lines = (root / f"requirements/{name}.lock").read_text().splitlines()
    assert not [
        line
        for line in lines
        if line and not line.startswith("# ") and not PIN.fullmatch(line) and not HASH.fullmatch(line)
    ]
    starts = [number for number, line in enumerate(lines) if PIN.fullmatch(line)]
    assert starts
    assert not [lines[number] for number in starts if not HASH.fullmatch(lines[number + 1])]


@pytest.mark.parametrize("name", LOCKS)
def test_no_address_of_any_index(root: Path, name: str) -> None:
    for path in (root / f"requirements/{name}.lock", root / f"requirements/{name}.in"):
        assert not re.findall(
            r"https?:|file:/|//|--index|--extra-index|--find-links|--trusted|debian\.org", path.read_text()
        )


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_gives_what_is_asked(root: Path, name: str) -> None:
    locked = pins(root / f"requirements/{name}.lock")
    for requirement in asked(root / f"requirements/{name}.in"):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


def test_tests_run_with_the_product_s_versions(root: Path) -> None:
    run, dev = pins(root / "requirements/run.lock"), pins(root / "requirements/dev.lock")
    assert run.items() <= dev.items()


def test_the_package_asks_for_what_is_locked(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())
    declared = {
        str(Requirement(text)) for text in project["project"]["dependencies"] + project["build-system"]["requires"]
    }
    assert declared == {str(requirement) for requirement in asked(root / "requirements/run.in")}
