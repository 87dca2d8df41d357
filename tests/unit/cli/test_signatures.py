"""What ``trust verify`` and its kin make of words, before any daemon is asked."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest

pytest.importorskip("cryptography", reason="missing: cryptography")

from casemate.cli.commands import signatures
from casemate.spec.api.signatures import VerifyAnswer
from casemate.trust.signature import produce


def test_short_names_of_predicates_are_those_of_the_library() -> None:
    assert signatures.PREDICATES == produce.PREDICATES


def test_holders_of_keys_have_names_of_their_own() -> None:
    assert signatures._names(["a/cosign.pub", "b/cosign.pub", "c", ".pub"]) == {
        "a/cosign.pub": "cosign", "b/cosign.pub": "b/cosign.pub", "c": "c", ".pub": ".pub",
    }  # fmt: skip


def test_every_outcome_has_an_exit_code() -> None:
    outcomes = get_args(get_type_hints(VerifyAnswer)["outcome"])
    assert set(outcomes) == set(signatures.EXIT_CODES)
    assert not set(signatures.EXIT_CODES.values()) & {1, 125, 126, 127}
