"""Prefixes of repositories, as people write them."""

from __future__ import annotations

import pytest

from casemate.spec.reference import ReferenceInvalid, parse_prefix


def test_prefixes_of_repositories() -> None:
    for text, wanted in (
        ("registry.example", "registry.example"), ("localhost:5000", "localhost:5000"), ("a/b", "docker.io/a/b"),
        ("registry.example/team/", "registry.example/team"), ("debian", "docker.io/library/debian"),
    ):  # fmt: skip
        assert parse_prefix(text) == wanted
    for text in ("registry.example/a:1", "a@sha256:" + "ab" * 32, "A", "", "registry.example:99999"):
        with pytest.raises(ReferenceInvalid):
            parse_prefix(text)
