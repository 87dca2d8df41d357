"""Error codes are API: own, unique, well formed, documented, and each raised by a test."""

from __future__ import annotations

import ast
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
    """A test expects the class, or compares the code; a name that is only imported or written about is not enough."""
    expected: set[str] = set()
    for path in (root / "tests").rglob("*.py"):
        if path != Path(__file__):
            expected |= expectations(path.read_text())
    assert not [f"{cls.code} ({cls.__qualname__})" for cls in classes if not {cls.code, cls.__name__} & expected]


def expectations(source: str) -> set[str]:
    """Classes that *source* catches, in ``raises``, ``isinstance``, ``except`` or as ``Class.code``, and codes among
    its strings. Where ``raises`` is given a variable, every class that is used as a value counts (tables of cases)."""
    found: set[str] = set()
    values: set[str] = set()
    is_table = False
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="raises") | ast.Name(id="isinstance")):
                found |= _names(node)
                is_table |= any(isinstance(one, ast.Name) and one.id.islower() for one in node.args)
            case ast.ExceptHandler(type=ast.expr()):
                found |= _names(node.type)
            case ast.Attribute(value=one, attr="code"):
                found |= _names(one)
            case ast.Name(id=name, ctx=ast.Load()):
                values.add(name)
            case ast.Constant(value=str() | bytes()) if id(node) not in prose:
                text = node.value if isinstance(node.value, str) else node.value.decode(errors="replace")
                found |= {text, *re.findall(r'"([a-z0-9_.]+)"', text), *re.findall(r"except \S*?(\w+) as", text)}
    return found | (values if is_table else set())


def _names(node: ast.AST) -> set[str]:
    return {one.attr if isinstance(one, ast.Attribute) else one.id
            for one in ast.walk(node) if isinstance(one, ast.Attribute | ast.Name)}  # fmt: skip


def test_a_name_alone_is_no_expectation() -> None:
    assert "TooBig" not in expectations("from x import TooBig\n")
    assert "too.big" not in expectations('def test():\n    """Not too.big."""\n    # "too.big"\n')
    assert "TooBig" not in expectations("from x import TooBig\nmade = TooBig()\n")
    for text in ("with pytest.raises(x.TooBig): f()", "try: f()\nexcept TooBig: pass", "assert c == TooBig.code",
                 "w = TooBig\nwith pytest.raises(w): f()"):  # fmt: skip
        assert "TooBig" in expectations(text), text
    for text in ('assert p["code"] == "too.big"', """assert b'"too.big"' in err"""):
        assert "too.big" in expectations(text), text
