"""One installation for each module, with a container in it that must not notice any of the module's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.system.site import Canary, Site, installed, settle, traces


@pytest.fixture(scope="module")
def settings(request: pytest.FixtureRequest) -> dict[str, str]:
    """The module's SETTINGS as environment variables of the daemons."""
    return dict(getattr(request.module, "SETTINGS", {}))


@pytest.fixture(scope="module")
def site(settings: dict[str, str]) -> Iterator[Site]:
    with installed(**settings) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def canary(site: Site) -> Iterator[Canary]:
    """Runs beside every test of the module; at the end it must have noticed none of them."""
    made = Canary(site)
    yield made
    made.check()


@pytest.fixture
def nothing_made(site: Site) -> Iterator[None]:
    """Whatever the test does, afterwards there is neither more nor less than before, and both daemons live."""
    before = traces(site)
    pids = {name: process.pid for name, process in site.daemons.processes.items()}
    yield
    settle(lambda: traces(site) == before)
    after = traces(site)
    assert after == before, f"more: {sorted(after - before)}; less: {sorted(before - after)}"
    assert {name: process.pid for name, process in site.daemons.processes.items()} == pids
    assert all(process.poll() is None for process in site.daemons.processes.values())
