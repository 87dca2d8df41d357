"""A pair of daemons for the tests of policy; a world on it for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.daemons import Daemons, running_daemons
from tests.integration.policy.world import World, import_image, world_of


@pytest.fixture(scope="module")
def pair() -> Iterator[Daemons]:
    with running_daemons(CASEMATE_POLICY_PROMPT_DEADLINE="6") as daemons:
        import_image(daemons)
        yield daemons


@pytest.fixture
def world(pair: Daemons) -> Iterator[World]:
    with world_of(pair) as one:
        yield one
