"""Every input that the fuzzer kept, and those that it starts from, still gives values or a CasemateError."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="missing: cryptography")
pytest.importorskip("tuf", reason="missing: tuf")

from tests.fuzz.trust_documents import TARGETS, fuzz_one

CORPUS = sorted(Path(__file__).with_name("trust-documents-corpus").glob("*"))


def test_the_corpus() -> None:
    assert {path.read_bytes()[0] % len(TARGETS) for path in CORPUS} == set(range(len(TARGETS)))
    for path in CORPUS:
        fuzz_one(path.read_bytes())
