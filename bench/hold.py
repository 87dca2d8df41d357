"""Restarts with hold under full load from two clients: new connections, and kept ones; what the relay costs.

sudo PYTHONPATH=src:. python bench/hold.py [restarts]      (in a checkout, with cc; daemons of its own)
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

# What follows is imported from this checkout, which need not be installed: hence below this line (E402).
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "src")]

from measure import machine, median  # noqa: E402
from tests.integration.daemons import running_daemons  # noqa: E402
from tests.integration.keeping.kept import PORT, Kept, Lines  # noqa: E402
from tests.integration.keeping.service import import_service  # noqa: E402

from casemate.spec.api import RestartRequest  # noqa: E402

CLIENTS = ("one", "two")
#: Kept connections of each client.
CONNECTIONS = 4
PAIRS, TRIPS, STREAM_BYTES = 10, 2000, 200_000_000


class Load:
    """Threads of both clients that ask as fast as they are answered; *step* is one question."""

    def __init__(self, world: Kept, address: str, *, kept: bool) -> None:
        self.over = threading.Event()
        self.done = 0
        self.longest_s = 0.0
        self.failed: list[str] = []
        work = self._kept if kept else self._new
        self.threads = [
            threading.Thread(target=work, args=(world, name, address))
            for name in CLIENTS
            for _ in range(CONNECTIONS if kept else 1)
        ]
        for thread in self.threads:
            thread.start()

    def _kept(self, world: Kept, name: str, address: str) -> None:
        with world.lines(name, address) as one:
            one.socket.settimeout(30.0)
            self._ask(lambda number: one.ask(f"q{number}").line == f"q{number}")

    def _new(self, world: Kept, name: str, address: str) -> None:
        def question(number: int) -> bool:
            with socket.create_connection((address, PORT), 30.0) as one:
                return Lines(one).ask(f"q{number}").line == f"q{number}"

        world.inside(name, lambda: self._ask(question))

    def _ask(self, question: Callable[[int], bool]) -> None:
        number = 0
        while not self.over.is_set():
            number += 1
            began = time.perf_counter()
            try:
                if not question(number):
                    self.failed.append("another answer")
            except (OSError, EOFError) as error:
                self.failed.append(repr(error))
                if len(self.failed) > 1000:
                    return
            self.longest_s = max(self.longest_s, time.perf_counter() - began)
            self.done += 1

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


def restarts(world: Kept, words: str, name: str, count: int, request: RestartRequest, *, kept: bool) -> None:
    load = Load(world, world.addresses[name], kept=kept)
    took = []
    try:
        for _ in range(count):
            before = load.done
            world.until(lambda before=before: load.done > before + 50, "the load goes on", 30.0)  # type: ignore[misc]
            at = time.perf_counter()
            world.ask("POST", f"/v1/containers/{name}/restart", request, project="default")
            took.append(time.perf_counter() - at)
    finally:
        load.end()
    print(
        f"{words}: {len(load.failed)} of {load.done:,} failed over {count} restarts"
        f" (median {median(took) * 1e3:.0f} ms, longest question {load.longest_s * 1e3:.0f} ms) {load.failed[:3] or ''}"
    )


def trips(one: Lines) -> float:
    at = time.perf_counter()
    for _ in range(TRIPS):
        one.socket.sendall(b"q\n")
        one.socket.recv(100)
    return (time.perf_counter() - at) / TRIPS


def stream(one: Lines) -> float:
    """Bytes in a second."""
    one.send(f"get {STREAM_BYTES}")
    left, at = STREAM_BYTES, time.perf_counter()
    while left:
        left -= len(one.socket.recv(1 << 20))
    return STREAM_BYTES / (time.perf_counter() - at)


def costs(world: Kept) -> None:
    """What a kept port costs, in pairs that are taken in turn."""
    found: dict[str, list[tuple[float, float]]] = {"straight": [], "kept": []}
    lines = {}
    for name, service in (("straight", "plain"), ("kept", "web")):
        lines[name] = Lines(world.connect("one", world.addresses[service], PORT, 30.0))
        lines[name].ask("ready")
    for _ in range(PAIRS):
        for name, one in lines.items():
            found[name].append((trips(one), stream(one)))
    for one in lines.values():
        one.close()
    for at, (words, unit, scale) in enumerate((("a round trip", "us", 1e6), ("one stream", "MB/s", 1e-6))):
        plain, kept = (median([row[at] for row in found[name]]) for name in ("straight", "kept"))
        ratio = median([kept[at] / straight[at] for straight, kept in zip(*found.values(), strict=True)])
        print(f"{words}: straight {plain * scale:.0f} {unit}, kept {kept * scale:.0f} {unit}, ratio {ratio:.2f}")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    print(machine(), f"load {os.getloadavg()[0]:.1f}")
    with running_daemons() as daemons:
        import_service(daemons, "busybox")
        world = Kept(daemons)
        try:
            world.client.create("busybox", ("/data/lines", str(PORT)), name="plain")
            world.client.start("plain")
            world.seen("plain")
            world.keep("web")
            world.keep("safe", replay=True)
            for name in CLIENTS:
                world.run(name)
            for name in ("plain", "web", "safe"):
                world.ready("one", world.addresses[name])
            costs(world)
            held = RestartRequest(timeout=5, hold=True)
            restarts(world, "--hold, new connections", "plain", count, held, kept=False)
            both = RestartRequest(timeout=5, hold=True, hold_open=True)
            restarts(world, "--hold connections, kept connections", "web", count, both, kept=True)
            restarts(world, "--hold connections, new connections", "web", count, both, kept=False)
            killed = RestartRequest(timeout=0, signal="SIGKILL", hold=True, hold_open=True, hold_drain_s=0)
            restarts(world, "the same, killed at once, with replay", "safe", count, killed, kept=True)
            counters = world.holds().counters
            print(f"the relay: {counters}")
        finally:
            world.close()


if __name__ == "__main__":
    main()
