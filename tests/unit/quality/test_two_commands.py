"""The README's two commands exist, and CI runs exactly what they run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest


def recipe(root: Path, target: str) -> list[str]:
    """The scripts that `make TARGET` runs, in order."""
    found = re.search(rf"^{target}:\n((?:\t.*\n)+)", (root / "Makefile").read_text(), re.MULTILINE)
    assert found, target
    return [re.sub(r"\s*\$\(TESTS\)", "", line.removeprefix("@")) for line in found[1].replace("\t", "").splitlines()]


@pytest.mark.parametrize("target", ["run", "test", "start", "stop"])
def test_the_readme_s_commands_are_targets(root: Path, target: str) -> None:
    assert f"sudo make {target}" in (root / "README.md").read_text()
    for command in recipe(root, target):
        assert os.access(root / command.split()[0], os.X_OK), command


def test_ci_runs_what_the_two_commands_run(root: Path) -> None:
    """Not through make, which a fresh machine need not have."""
    steps = re.findall(
        r"^    timed 'make \w+' (?:timeout .* )?(packaging/.*)$", (root / ".ci/run").read_text(), re.MULTILINE
    )
    assert steps == [*recipe(root, "run"), *recipe(root, "test"), *recipe(root, "check")]
