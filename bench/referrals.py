"""What a referred connection takes through both daemons, by a condition, beside one that the map decides.

sudo PYTHONPATH=src:. python bench/referrals.py [connections]      (in a checkout, with cc; daemons of its own)
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

# What follows is imported from this checkout, which need not be installed: hence below this line (E402).
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "src")]

from measure import cpu_s, machine, median  # noqa: E402
from tests.integration.daemons import running_daemons  # noqa: E402
from tests.integration.policy.world import World, import_image, world_of  # noqa: E402

#: The answer to a referral holds for its port: each connection asks for another.
DECIDED_PORT, FIRST_PORT, MOST = 7000, 20_000, 2000
DOCUMENT = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: bench}
spec:
  segments: {asker: {select: {matchLabels: {app: asker}}, default: {egress: refer}}}
  rules:
  - {name: decided, from: [{segment: asker}], to: any, ports: [tcp/7000], action: allow}
  - name: asked
    from: [{segment: asker}]
    to: any
    ports: [tcp/20000-21999]
    action: allow
    when: 'destination.labels.app == "db"'
"""


def times_of(world: World, address: str, ports: Iterable[int]) -> list[float]:
    """Seconds of each connection, one after the other."""

    def work() -> list[float]:
        found: list[float] = []
        for port in ports:
            one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            one.settimeout(5.0)
            at = time.perf_counter()
            one.connect((address, port))
            found.append(time.perf_counter() - at)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
            one.close()
        return found

    return world.inside("asker", work)


def main() -> None:
    count = min(MOST, int(sys.argv[1]) if len(sys.argv) > 1 else 500)
    print(machine(), f"load {os.getloadavg()[0]:.1f}")
    with running_daemons() as daemons:
        import_image(daemons)
        with world_of(daemons) as world:
            address = world.serve("db", DECIDED_PORT, app="db")
            world.run("asker", app="asker")
            world.apply(DOCUMENT)
            measure(world, address, count)


def measure(world: World, address: str, count: int) -> None:
    pid = world.pids["db"]
    server = subprocess.Popen(["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-c", SERVER])
    try:
        world.until(lambda: world.dial("db", address, FIRST_PORT) == "open", "the second server serves")
        decided: list[float] = []
        referred: list[float] = []
        processes = world.daemons.processes
        before = {name: cpu_s(one.pid) for name, one in processes.items()}
        for first in range(FIRST_PORT, FIRST_PORT + count, count // 10):
            decided += times_of(world, address, [DECIDED_PORT] * (count // 10))
            referred += times_of(world, address, range(first, first + count // 10))
        used = {name: cpu_s(one.pid) - before[name] for name, one in processes.items()}
    finally:
        server.terminate()
        server.wait()
    for name, values in (("decided by the map", decided), ("referred and answered by a condition", referred)):
        values.sort()
        print(f"{name}: median {median(values) * 1e6:.0f} us, p99 {values[int(len(values) * 0.99)] * 1e6:.0f} us")
    for name, one in used.items():
        print(f"processor time of {name}: {one / count * 1e6:.0f} us a referral, flow records included")
    added = [referred[len(referred) * at // 100] - decided[len(decided) * at // 100] for at in (50, 99)]
    print(f"added: median {added[0] * 1e3:.3f} ms, p99 {added[1] * 1e3:.3f} ms   (budget 0.4, 2)")


SERVER = f"""
import resource, selectors, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
ready = selectors.DefaultSelector()
for port in range({FIRST_PORT}, {FIRST_PORT + MOST}):
    ready.register(socket.create_server(("0.0.0.0", port)), selectors.EVENT_READ)
while True:
    for key, _ in ready.select():
        key.fileobj.accept()[0].close()
"""

if __name__ == "__main__":
    main()
