"""One lab for a module of tests: each makes the table anew."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.integration.firewall.lab import Lab, new_lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("missing: root")
    made = new_lab()
    try:
        yield made
    finally:
        made.close()
