"""The firewall in the kernel: new connections against connection tracking alone, and what a change takes.

sudo PYTHONPATH=src:. python bench/firewall.py [rounds]    (in a checkout, with gcc and nftables; needs no daemon)

Namespaces of its own stand for pods; the load is bench/connections.c. What open connections' packets take is
bench/established.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import cpu_s, machine, median
from tests.integration.firewall.lab import MAC_A, ROUTER_MAC, Lab, endpoint, inside, new_lab, world

from casemate.host import rtnetlink
from casemate.network.firewall.kernel import Change
from casemate.network.firewall.sets import ALLOW, Row, address_row, verdict_row

SERVER, CLIENT, PORT = "192.168.0.2", "192.168.0.1", 7000
IDENTITIES, ENDPOINTS = 10_000, 50_000
LOAD_S = 1.0
#: The kernel takes 60,000 elements away after the answer, and makes its tables of hashes larger.
SETTLE_S = 0.4
#: Both ends on one processor: waking another one takes longer than any rule, and now so long and now so.
PINNED = ["taskset", "-c", str((os.cpu_count() or 1) - 1)]
ALONE = "table inet alone { chain f { type filter hook forward priority 0; ct state established,related accept; }; }"


def build(folder: Path) -> str:
    target = folder / "connections"
    source = Path(__file__).with_name("connections.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(target), str(source)], check=True)
    return str(target)


def pod(lab: Lab, end: int, address: str, interface: str, mac: str) -> None:
    """An address inside, and the way to it."""

    def body() -> None:
        with rtnetlink.RouteSocket() as own:
            link = own.link("eth0")
            assert link is not None
            own.set_up(1)
            own.add_address(link.index, address)
            own.add_neighbour(link.index, "169.254.1.1", ROUTER_MAC)
            own.add_route("0.0.0.0/0", link.index, gateway="169.254.1.1")

    inside(end, body)
    lab.route([address], interface, mac)


def within(end: int, argv: list[str], **more: object) -> subprocess.Popen[bytes]:
    """A program in a namespace."""
    net = f"--net=/proc/{os.getpid()}/fd/{end}"
    # Popen's overloads cannot be told from what is passed on.
    return subprocess.Popen(["nsenter", net, *argv], stdout=subprocess.PIPE, **more)  # type: ignore[call-overload, no-any-return]


def load(end: int, program: str, server: int) -> tuple[float, float]:
    """Per second, and per second of processor time of both ends: that says more on a machine that does other work."""
    before = cpu_s(server)
    done = within(end, [*PINNED, program, "open", SERVER, str(PORT), str(LOAD_S)])
    out, _ = done.communicate(timeout=60)
    if done.returncode:
        raise SystemExit(f"the load ended with {done.returncode}")
    count, used_s = out.split()
    return int(count) / LOAD_S, int(count) / (float(used_s) + cpu_s(server) - before)


def nft(lab: Lab, script: str) -> None:
    done = within(lab.router, ["nft", script])
    if done.wait(20):
        raise SystemExit(f"nft {script[:60]} failed")


def state() -> Iterator[Row]:
    """10,000 identities: two pods that talk, 50,000 endpoints, a rule for each identity."""
    yield from (endpoint(CLIENT, 256), endpoint(SERVER, 257), world(255))
    first = int(ipaddress.IPv4Address("192.168.4.0"))
    for n in range(ENDPOINTS - 2):
        packed = (first + n).to_bytes(4, "big")
        yield address_row(True, packed, packed, viewer=b"", number=258 + n % (IDENTITIES - 2))
    yield verdict_row(0, 256, 257, 6, PORT, PORT, ALLOW)
    for n in range(IDENTITIES):
        yield verdict_row(0, 256 + n, 256 + n * 7 % IDENTITIES, 6, 443, 443, ALLOW)


def compare(lab: Lab, program: str, rounds: int) -> None:
    def ours() -> None:
        nft(lab, "add table inet alone; delete table inet alone")
        rows = [*lab.hardware([CLIENT, SERVER]), *state()]
        asyncio.run(lab.kernel.make(rows, 1, len(rows)))

    def alone() -> None:
        lab.kernel.remove()
        nft(lab, ALONE)

    ends = lab.fds[1], lab.fds[2]
    serve = [*PINNED, program, "serve", str(PORT)]
    sides = [("firewall", ours), ("conntrack alone", alone)]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in sides}
    with contextlib.closing(_Process(within(ends[1], serve))) as server:
        time.sleep(0.2)
        for _ in range(rounds):
            sides.reverse()
            for name, prepare in sides:
                prepare()
                time.sleep(SETTLE_S)
                found[name].append(load(ends[0], program, server.process.pid))
    for at, unit in enumerate(("second", "second of processor time")):
        ours_all, alone_all = ([figure[at] for figure in found[name]] for name in found)
        pairs = [a / b for a, b in zip(ours_all, alone_all, strict=True)]
        print(
            f"new connections a {unit}: {median(ours_all):,.0f} against {median(alone_all):,.0f}; ratio of pairs "
            f"{median(pairs):.3f} ({min(pairs):.3f} to {max(pairs):.3f})   (budget 0.97)"
        )


class _Process:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def changes(lab: Lab, rounds: int) -> None:
    """One element, and one that makes open connections be looked up anew, with 50,000 endpoints in the table."""
    rows = [*lab.hardware([CLIENT, SERVER]), *state()]
    asyncio.run(lab.kernel.make(rows, 1, len(rows)))
    for words, generation in (("one element added", False), ("the same, and a new generation", True)):
        times: list[float] = []
        for n in range(rounds * 100):
            row = verdict_row(0, 9_000_000 + generation, n, 6, 80, 80, ALLOW)
            at = time.perf_counter()
            lab.change(Change(adds=[row], generation=n + 2 if generation else None))
            times.append(time.perf_counter() - at)
        times.sort()
        print(f"{words}: median {median(times) * 1e3:.3f} ms, p99 {times[int(len(times) * 0.99)] * 1e3:.3f} ms")
    times = []
    for n in range(3):
        at = time.perf_counter()
        names = ("exact4", "world4", "port")
        made = [*state()]
        asyncio.run(lab.kernel.change(Change(adds=made, generation=n + 2, flush=names, size=len(made))))
        times.append(time.perf_counter() - at)
    print(f"all {len(made):,} elements replaced in one transaction: {median(times):.2f} s")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print(machine(), f"load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        lab = new_lab()
        try:
            pod(lab, lab.fds[1], CLIENT, "cm-a", MAC_A)
            pod(lab, lab.fds[2], SERVER, "cm-b", "0e:01:00:00:00:0b")
            steps: tuple[Callable[[], None], ...] = (
                lambda: compare(lab, program, rounds), lambda: changes(lab, rounds),
            )  # fmt: skip
            for step in steps:
                step()
        finally:
            lab.close()


if __name__ == "__main__":
    main()
