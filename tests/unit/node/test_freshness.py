"""Which publisher answers for a repository, and who may say so."""

from __future__ import annotations

import pytest

from casemate.node.core import Caller
from casemate.node.freshness import Source, _demand
from casemate.spec.errors import GrantMissing


def test_prefixes_end_at_whole_parts() -> None:
    source = Source("web", "/site", ("registry.example/web", "registry.example/web/deep"), b"")
    assert source.covers("registry.example/web") == len("registry.example/web")
    assert source.covers("registry.example/web/deep/app") == len("registry.example/web/deep")
    for other in ("registry.example/website", "registry.example", "other/registry.example/web"):
        assert source.covers(other) == -1


def test_following_needs_the_grant() -> None:
    with pytest.raises(GrantMissing):
        _demand(Caller("1000:eve"), "to follow a publisher")
    _demand(Caller("0:root", grants=lambda: frozenset(("trust",))), "to follow a publisher")
