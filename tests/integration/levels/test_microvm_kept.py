"""Kept connections of a micro-VM: it ends without a word to anybody, and the next one is another machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.daemons import Daemons
from tests.integration.keeping.kept import Kept
from tests.integration.keeping.service import import_service
from tests.integration.levels.conftest import Run
from tests.integration.levels.test_microvm import machines, monitor_of

pytestmark = pytest.mark.root
PATIENCE_S = 60.0


@pytest.fixture
def kept(pair: Daemons, vm: Run) -> Iterator[Kept]:
    assert vm("version").returncode == 0
    import_service(pair, "lines")
    one = Kept(pair)
    one.image = "lines"
    try:
        yield one
    finally:
        one.close()


def test_open_connections_go_on_in_the_next_machine(pair: Daemons, kept: Kept) -> None:
    """Those that were answered, and one that was not: its port says that it may be asked again."""
    address = kept.keep("web", level="microvm", replay=True)
    kept.run("one")
    kept.ready("one", address)
    with kept.lines("one", address) as one, kept.lines("one", address) as other:
        for line in (one, other):
            line.socket.settimeout(PATIENCE_S)
        (machine,) = machines(pair)
        monitor = monitor_of(pair, machine)
        before = one.ask("a")
        assert before.peer == one.name, "the service sees the client's own address and port"
        other.send("slow 10000")
        kept.until(lambda: bool(kept.holds().ports[0].kept_bytes), "it is asked", PATIENCE_S)
        kept.restart("web", hold_for_s=120, hold_drain_s=0, timeout=0)
        assert monitor_of(pair, machine) != monitor, "another machine runs, under the pod's name"
        after, again = one.ask("b"), other.receive()
        assert (after.peer, again.peer, again.line) == (one.name, other.name, "slow 10000")
        assert after.start == again.start > before.start
