"""Fixtures for the tests that need both daemons."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.daemons import Daemons, running_daemons


@pytest.fixture(scope="session")
def daemons() -> Iterator[Daemons]:
    """One pair of daemons for all tests that leave it as it was; those that kill or fill it start their own."""
    with running_daemons() as pair:
        yield pair


@pytest.fixture(scope="session")
def busybox(daemons: Daemons) -> str:
    """An image in the shared pair."""
    return daemons.import_busybox()
