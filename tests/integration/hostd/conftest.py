"""One hostd for all tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.hostd.driver import Client, Hostd, running


@pytest.fixture(scope="package")
def hostd() -> Iterator[Hostd]:
    with running() as one:
        yield one


@pytest.fixture
def client(hostd: Hostd) -> Iterator[Client]:
    """A connection; what a test leaves in it is removed."""
    one = Client(hostd.run / "hostd.sock")
    yield one
    one.close()
