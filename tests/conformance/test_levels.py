"""The same cases at every level; a case that a level cannot meet is listed, and must fail there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.conformance import (
    cases_exec,
    cases_files,
    cases_limits,
    cases_network,
    cases_pods,
    cases_process,
    cases_users,
)
from tests.conformance.case import CASES
from tests.conformance.chamber import LITTLE_PATIENCE_S, PATIENCE_S, Chamber, be_patient
from tests.conformance.conftest import LEVELS
from tests.conformance.exceptions import EXCEPTIONS

MODULES = (cases_process, cases_users, cases_files, cases_limits, cases_exec, cases_pods, cases_network)
PAGE = Path(__file__).parents[2] / "docs/reference/levels.md"


def parameters() -> list[object]:
    found: list[object] = []
    for level in LEVELS:
        for case in CASES.values():
            reason = EXCEPTIONS.get((level, case.id))
            marks = [pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)] if reason else []
            found.append(pytest.param(level, case.id, id=f"{level}-{case.id}", marks=marks))
    return found


@pytest.mark.root
@pytest.mark.parametrize(("level", "case"), parameters())
def test_case(level: str, case: str, chambers: dict[str, Chamber], missing: dict[str, str], tmp_path: Path) -> None:
    if level in missing:
        pytest.skip(f"missing: level {level}: {missing[level]}")
    chamber = chambers[level]
    chamber.folder = tmp_path
    be_patient(LITTLE_PATIENCE_S if (level, case) in EXCEPTIONS else PATIENCE_S)
    CASES[case].check(chamber)


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 150
    assert {case.group for case in CASES.values()} >= {
        *("process", "user", "security", "mount", "volume", "bind", "copy", "limit", "signal", "tty", "exec", "pod"),
        *("network", "stats", "failure"),
    }


def test_the_page_lists_the_exceptions() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert {(level, case): reason for level, case, reason in rows} == EXCEPTIONS
    assert all(case in CASES and level in LEVELS for level, case in EXCEPTIONS)
