"""Error codes are API: own, unique, well formed, documented, and each raised by a test."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from casemate.spec.errors import CasemateError, error_classes
from reference import import_everything


@pytest.fixture(scope="module")
def classes() -> list[type[CasemateError]]:
    """Those of the package, without the ones that tests define."""
    import_everything()
    return sorted({cls for cls in error_classes() if cls.__module__.startswith("casemate.")}, key=lambda cls: cls.code)


def test_each_class_has_a_code_of_its_own(classes: list[type[CasemateError]]) -> None:
    assert not [cls.__qualname__ for cls in classes if "code" not in cls.__dict__]
    assert not [code for code, count in Counter(cls.code for cls in classes).items() if count > 1]


def test_codes_titles_and_numbers_are_well_formed(classes: list[type[CasemateError]]) -> None:
    for cls in classes:
        assert re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*", cls.code), cls.code
        assert 400 <= cls.status <= 599, cls.code
        assert cls.exit_code in (125, 126, 127, 130), cls.code  # 130: 128 + SIGINT, at a terminal
        assert cls.title, cls.code
        assert not cls.title.endswith("."), cls.code
        assert cls.remedy, cls.code


def test_every_code_is_raised_by_a_test(classes: list[type[CasemateError]], root: Path) -> None:
    """By the class's name or the code in a test file; this one names none."""
    tests = "\n".join(path.read_text() for path in (root / "tests").rglob("*.py") if path != Path(__file__))
    words = set(re.findall(r"[A-Za-z_][A-Za-z_0-9]*(?:\.[a-z_0-9]+)*", tests))
    names = {part for word in words for part in (word, word.split(".")[-1])}
    assert not [f"{cls.code} ({cls.__qualname__})" for cls in classes if not {cls.code, cls.__name__} & names]
