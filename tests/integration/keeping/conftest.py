"""A pair of daemons whose image serves lines; a world on it for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.daemons import Daemons, running_daemons
from tests.integration.keeping.kept import Kept
from tests.integration.keeping.service import import_service


@pytest.fixture(scope="module")
def pair() -> Iterator[Daemons]:
    with running_daemons() as daemons:
        import_service(daemons, "busybox")
        yield daemons


@pytest.fixture
def kept(pair: Daemons) -> Iterator[Kept]:
    one = Kept(pair)
    try:
        yield one
    finally:
        one.close()
