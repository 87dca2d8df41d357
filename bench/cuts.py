"""How long what was open, and may not be any more, still gets through: TCP, UDP and ICMP, by quarantine and by policy.

sudo PYTHONPATH=src:. python bench/cuts.py [rounds]      (in a checkout, with cc; daemons of its own)

Counted from the request to the API to the sending of the last packet that got through, one sent each 4 ms; and for
TCP until its opener has the reset.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

# What follows is imported from this checkout, which need not be installed: hence below this line (E402).
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "src")]

from measure import machine, median  # noqa: E402
from tests.integration.daemons import running_daemons  # noqa: E402
from tests.integration.policy.streams import Streams  # noqa: E402
from tests.integration.policy.test_cuts import CLOSED, OPEN, PORT  # noqa: E402
from tests.integration.policy.world import World, import_image, world_of  # noqa: E402

from casemate.spec.api import policy as schema  # noqa: E402

BUDGET_S = 1.0


def quarantine(world: World) -> None:
    world.ask("POST", "/v1/quarantines", schema.QuarantineRequest("a", reason="bench"), schema.QuarantineRow)


def policy(world: World) -> None:
    world.apply(CLOSED)


def one(world: World, change: Callable[[World], None]) -> dict[str, float]:
    """Seconds until the last packet of each protocol, until the reset, and until the API's answer."""
    world.apply(OPEN)
    streams = Streams(world, "a", "b", PORT)
    try:
        streams.until_all_pass(world)
        began = time.monotonic()
        change(world)
        found = {"answer": time.monotonic() - began}
        streams.reset.wait(5)
        found["reset"] = time.monotonic() - began
        time.sleep(0.3)
        found |= {name: max(0.0, streams.last(name) - began) for name in streams.seen}
        return found
    finally:
        streams.close()


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    print(machine())
    with running_daemons() as daemons:
        import_image(daemons)
        with world_of(daemons) as world:
            world.run("a", app="a")
            world.run("b", app="b")
            for change in (quarantine, policy):
                found: list[dict[str, float]] = []
                for _ in range(rounds):
                    found.append(one(world, change))
                    if change is quarantine:
                        world.ask("POST", "/v1/quarantines/release", schema.ReleaseRequest("a", "bench"))
                for name in ("tcp", "udp", "icmp", "reset", "answer"):
                    values = sorted(row[name] for row in found)
                    missed = "  MISSED" if values[-1] > BUDGET_S else ""
                    print(f"{change.__name__}, {name}: median {median(values) * 1e3:.0f} ms, longest "
                          f"{values[-1] * 1e3:.0f} ms   (budget {BUDGET_S * 1e3:.0f}){missed}")  # fmt: skip


if __name__ == "__main__":
    main()
