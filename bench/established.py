"""What the firewall takes of open connections and new ones: against connection tracking alone, pair by pair.

sudo PYTHONPATH=src:. python bench/established.py [seconds]    (in a checkout, with gcc and nftables; needs no daemon)

One connection, its ends pinned to one processor with a real-time priority and fixed buffers (bench/established.c).
Tables are not made and taken away between the turns, which leaves memory and the processor's caches as nobody finds
them twice: all are there, and a flag of each (dormant) says whether its hooks are. Turns are some milliseconds, in the
order A B C D E E D C B A, another in each round; a ratio is that of one such round, so that what drifts falls on all
alike. Printed are the median of the rounds' ratios and where it lies with 95 % (by drawing rounds anew), and the same
for conntrack alone against itself, which tells what the measure is worth.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from firewall import ALONE, CLIENT, PORT, SERVER, nft, pod, state
from measure import machine
from tests.integration.firewall.lab import MAC_A, MAC_B, POOL, Lab, inside, new_lab

from casemate.host import bpf
from casemate.host.nft_expressions import text, u32
from casemate.host.nft_netlink import INET, IPV4, NEW_TABLE, Batch, NftSocket
from casemate.network import nat, resolver
from casemate.network.firewall import sparing

LOADS = {
    "ask 500": ("requests on a kept connection", 0.98),
    "send 16777216": ("one stream, 16 MiB", 0.98),
    "open 200": ("connections opened and reset", 0.97),
}
#: Packets of a request: there and back, acknowledged with the next one.
PACKETS = 2
WARM = "ask 50"
BASE, AGAIN = "conntrack alone", "conntrack alone, again"
#: Tables by family and name, and which of them are awake for each side.
ALONE_TABLE, FIREWALL = (INET, "alone"), (INET, "casemate")
OTHERS = ((IPV4, "casemate"), (IPV4, resolver.table_name("casemate")))
TABLES = (ALONE_TABLE, FIREWALL, *OTHERS)
SIDES = {
    BASE: {ALONE_TABLE},
    "firewall": {FIREWALL},
    "firewall, the guard looks at every packet": {FIREWALL},
    "firewall and translation": {FIREWALL, OTHERS[0]},
    "all tables": {FIREWALL, *OTHERS},
    AGAIN: {ALONE_TABLE},
}
#: Sides without programs at the interfaces (decision 0168).
WITHOUT = {BASE, AGAIN, "firewall, the guard looks at every packet"}
RESOLVER_PORT = 5353
_DORMANT = 1
_DRAWS = 2000


def wake(connection: NftSocket, awake: set[tuple[int, str]]) -> None:
    """Have the hooks of these tables alone."""
    for one in TABLES:
        batch = Batch(one[1], one[0])
        batch.add(NEW_TABLE, 0, text(1, one[1]) + u32(2, 0 if one in awake else _DORMANT), one[1])
        connection.commit(batch)


@dataclass(slots=True)
class Programs:
    """Those at the two pods' interfaces, which spare plain packets the guard. A third interface keeps one, so that the
    kernel's own code is not changed with the first and the last of them."""

    lab: Lab
    found: list[tuple[int, int]] = field(default_factory=list)
    are_there: bool = False

    def load(self) -> None:
        for interface, one in (("cm-a", CLIENT), ("cm-b", SERVER)):
            code = sparing.program(socket.inet_aton(one))
            self.found.append((self.lab.indexes[interface], bpf.load_ingress("bench", code)))
        inside(self.lab.router, lambda: bpf.attach_ingress(self.lab.indexes["out0"], self.found[0][1]))

    def have(self, there: bool) -> None:
        if there == self.are_there or not self.found:
            return
        change = bpf.attach_ingress if there else bpf.detach_ingress

        def body() -> None:
            for index, descriptor in self.found:
                change(index, descriptor)

        inside(self.lab.router, body)
        self.are_there = there

    def close(self) -> None:
        for _, descriptor in self.found:
            os.close(descriptor)


def middle(ratios: list[float]) -> tuple[float, float, float]:
    """The median, and the interval in which it lies with 95 %."""
    draw = random.Random(1)
    found = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(_DRAWS))
    return statistics.median(ratios), found[int(_DRAWS * 0.025)], found[int(_DRAWS * 0.975)]


class Ends:
    """The program with both ends."""

    def __init__(self, lab: Lab, program: str) -> None:
        client, server = lab.fds[1], lab.fds[2]
        argv = [program, str(client), str(server), SERVER, str(PORT), str((os.cpu_count() or 1) - 1)]
        self._process = subprocess.Popen(
            argv, pass_fds=(client, server), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def run(self, command: str) -> tuple[int, int]:
        """ns on the clock, and of both ends' processor time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command.encode() + b"\n")
        words = self._process.stdout.readline().split()
        if len(words) != 2:
            raise SystemExit(f"{command}: the ends said nothing")
        return int(words[0]), int(words[1])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


def rounds(lab: Lab, program: str, programs: Programs, seconds: float) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """For each load and side, the time of each round's two turns."""
    connection = inside(lab.router, NftSocket)
    found: dict[tuple[str, str], list[tuple[int, int]]] = {(load, side): [] for load in LOADS for side in SIDES}
    wake(connection, set(TABLES))
    ends = Ends(lab, program)
    try:
        ends.run(WARM)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            sums = dict.fromkeys(found, (0, 0))
            order = list(SIDES)
            random.shuffle(order)
            for side in [*order, *reversed(order)]:
                programs.have(side not in WITHOUT)
                wake(connection, SIDES[side])
                ends.run(WARM)
                for load in LOADS:
                    wall, used = ends.run(load)
                    before = sums[load, side]
                    sums[load, side] = before[0] + wall, before[1] + used
            for key, pair in sums.items():
                found[key].append(pair)
    finally:
        ends.close()
        connection.close()
    return found


def report(found: dict[tuple[str, str], list[tuple[int, int]]]) -> None:
    for load, (words, budget) in LOADS.items():
        base = found[load, BASE]
        each = statistics.median(wall for wall, _ in base) / 2
        print(f"{words}: {BASE} {each / 1e3:,.0f} us a turn, {len(base)} rounds")
        for side in SIDES:
            if side == BASE:
                continue
            for at, unit in enumerate(("by the clock", "by processor time")):
                ratios = [b[at] / a[at] for a, b in zip(found[load, side], base, strict=True)]
                centre, low, high = middle(ratios)
                print(f"  {side}, {unit}: {centre:.4f} ({low:.4f} to {high:.4f})   (budget {budget})")
            if load.startswith("ask"):
                packets = 2 * PACKETS * int(load.split()[1])
                more = [(a[0] - b[0]) / packets for a, b in zip(found[load, side], base, strict=True)]
                centre, low, high = middle(more)
                print(f"  {side}: {centre:.0f} ns more for each packet ({low:.0f} to {high:.0f})")


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    print(machine(), f"load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "established")
        source = Path(__file__).with_name("established.c")
        subprocess.run(["gcc", "-O2", "-Wall", "-o", program, str(source)], check=True)
        lab = new_lab(only_published=True)
        try:
            pod(lab, lab.fds[1], CLIENT, "cm-a", MAC_A)
            pod(lab, lab.fds[2], SERVER, "cm-b", MAC_B)
            nft(lab, ALONE)
            nft(lab, nat.base_script("casemate", "cm-", str(POOL)))
            nft(lab, resolver.script("casemate", "cm-", RESOLVER_PORT))
            rows = [*lab.hardware([CLIENT, SERVER]), *state()]
            asyncio.run(lab.kernel.make(rows, 1, len(rows)))
            with contextlib.closing(Programs(lab)) as programs:
                if lab.kernel.spec.spares:
                    programs.load()
                else:
                    print("the kernel has no programs at interfaces: the guard looks at every packet")
                report(rounds(lab, program, programs, seconds))
        finally:
            lab.close()


if __name__ == "__main__":
    main()
