"""Nothing that is committed belongs to one machine: no folder of it, no package index, no leftover."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FORBIDDEN = {
    "a folder in /opt that is not ours": re.compile(rb"(?<![\w.])/opt/(?!casemate\b)[a-z]"),
    "a work folder at the root": re.compile(rb"(?<![\w.})$-])/work/(?=[a-z])"),
    "somebody's home": re.compile(rb"(?<![\w.-])/(home|Users)/(?!casemate\b)[a-z]+/"),
    "root's configuration": re.compile(rb"(?<![\w.-])/root/\.(?!docker\b)[a-z]"),
    "a package index": re.compile(rb"files[.]pythonhosted|pypi[.]org/simple"),
    "a conflict mark": re.compile(rb"^(<{7}|>{7}) ", re.MULTILINE),
}
# "@" is taken out: this file names none of them either.
SAMPLES = [
    "cd /op@t/tools",
    "in /wor@k/main",
    "/hom@e/jo/x",
    "/roo@t/.cache",
    "https://pypi.or@g/simple",
    "<<<@<<<< HEAD",
]


def faults(text: bytes) -> list[str]:
    return [f"{what}: {found[0]!r}" for what, pattern in FORBIDDEN.items() if (found := pattern.search(text))]


def test_no_file_names_one_machine(committed_files: list[Path]) -> None:
    assert len(committed_files) > 20
    found = {str(path): faults(path.read_bytes()) for path in committed_files}
    assert not {path: what for path, what in found.items() if what}


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_fault_is_found(sample: str) -> None:
    assert len(faults(sample.replace("@", "").encode())) == 1


def test_no_editor_or_build_leftovers(committed_files: list[Path]) -> None:
    assert not [str(path) for path in committed_files if path.suffix in (".orig", ".rej", ".swp", ".bak", ".log")]
