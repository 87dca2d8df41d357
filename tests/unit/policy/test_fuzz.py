"""The fuzzer's seeds, and mutations of them drawn by Hypothesis; atheris is run by hand for longer."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz import policy_parse


def test_every_seed_is_rules_or_an_error() -> None:
    for seed in policy_parse.SEEDS:
        policy_parse.one_input(seed)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(policy_parse.SEEDS), st.data())
def test_mutated_seeds(seed: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(seed)))
    end = data.draw(st.integers(at, min(len(seed), at + 20)))
    piece = data.draw(
        st.binary(max_size=6) | st.sampled_from([b"\n", b": ", b"[", b"}", b"- ", b"null", b"-1", b"&a ", b"'"])
    )
    policy_parse.one_input(seed[:at] + piece + seed[end:])
