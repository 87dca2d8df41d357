"""An installation, and for each module a container in it that must not notice any of the module's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.system.site import Canary, Site, installed, settle, traces


@pytest.fixture(scope="session")
def shared() -> Iterator[Site]:
    with installed() as made:
        yield made


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """The shared installation, or one of the module's own where it names SETTINGS (or is hard on the daemons)."""
    settings = getattr(request.module, "SETTINGS", None)
    if settings is None:
        yield request.getfixturevalue("shared")
        return
    with installed(**settings) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def canary(site: Site) -> Iterator[Canary]:
    """Runs beside every test of the module; at the end it must have noticed none of them."""
    made = Canary(site)
    yield made
    made.check()
    assert site("rm", "-f", made.id).returncode == 0


@pytest.fixture
def nothing_made(site: Site) -> Iterator[None]:
    """Whatever the test does, afterwards there is neither more nor less than before, and both daemons live."""
    before = traces(site)
    pids = {name: process.pid for name, process in site.daemons.processes.items()}
    yield
    settle(lambda: traces(site) <= before)
    after = traces(site)
    assert not after - before, f"left behind: {sorted(after - before)}"
    # The kernel takes interfaces of the test before away in its own time; nothing else may go.
    lost = {line for line in before - after if not line.startswith(("interface ", "cgroup ", "mount "))}
    assert not lost, f"gone: {sorted(lost)}"
    assert {name: process.pid for name, process in site.daemons.processes.items()} == pids
    assert all(process.poll() is None for process in site.daemons.processes.values())
