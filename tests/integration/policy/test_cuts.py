"""What was open and may not be any more ends: nothing sent after the answer to the change gets through.

How long it takes is measured in ``bench/cuts.py``; here it is the order of events that counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from tests.integration.policy.streams import Streams
from tests.integration.policy.world import World

from casemate.spec.api import policy as schema

PORT = 7300
CLOSED = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: closed}
spec: {segments: {b: {select: {matchLabels: {app: b}}, default: {ingress: deny}}}}
"""
OPEN = CLOSED.replace("ingress: deny", "ingress: allow")


def _quarantine(world: World) -> None:
    world.ask("POST", "/v1/quarantines", schema.QuarantineRequest("a", reason="test"), schema.QuarantineRow)


def _policy(world: World) -> None:
    assert world.apply(CLOSED).enforced


@pytest.mark.parametrize("before", ["", OPEN], ids=["without-policy", "with-policy"])
@pytest.mark.parametrize("change", [_quarantine, _policy])
def test_nothing_passes_after_the_answer(world: World, change: Callable[[World], None], before: str) -> None:
    world.run("a", app="a")
    world.run("b", app="b")
    world.run("c", app="c")
    world.run("d", app="d")
    if before:
        world.apply(before)
    cut, kept = Streams(world, "a", "b", PORT), Streams(world, "c", "d", PORT)
    try:
        for one in (cut, kept):
            one.until_all_pass(world)
        change(world)
        answered = time.monotonic()
        world.until(cut.reset.is_set, "who opened the TCP connection is told by a reset")
        world.until(lambda: all(kept.last(name) > answered + 0.3 for name in kept.seen), "others' flows go on")
        for name in ("tcp", "udp", "icmp"):
            assert cut.last(name) < answered, f"{name} got through {cut.last(name) - answered:.3f} s after the answer"
    finally:
        cut.close()
        kept.close()
