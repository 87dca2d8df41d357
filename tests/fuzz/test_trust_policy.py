"""Every input that the fuzzer of trust policies kept, and some that it starts from."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="missing: cryptography")
pytest.importorskip("cel", reason="missing: common-expression-language")

from tests.fuzz.trust_policy import TARGETS, fuzz_one

CORPUS = sorted(Path(__file__).with_name("trust-policy-corpus").glob("*"))


def test_the_corpus() -> None:
    assert CORPUS
    assert {path.read_bytes()[0] % len(TARGETS) for path in CORPUS} == set(range(len(TARGETS)))
    for path in CORPUS:
        fuzz_one(path.read_bytes())
