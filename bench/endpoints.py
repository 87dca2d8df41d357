"""How fast one host gains endpoints, and what a crash leaves: whole pods by hostd's own operation, without containers.

    sudo PYTHONPATH=src:. python bench/endpoints.py [COUNT [AT A TIME]]

Each is a pod's user, network, ipc and uts namespaces, cgroup, veth pair with addresses, routes and neighbours, its
element of the firewall, and its record. Printed for each quarter, so that a cost that grows with their number shows.
Then hostd is killed with as many in the making, and started again: what had been answered is there, nothing else is.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

# What follows is imported from this checkout, which need not be installed: hence below this line (E402).
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "src")]

from measure import cpu_s, machine  # noqa: E402
from tests.integration.hostd.driver import Client, Hostd  # noqa: E402
from tests.integration.leaks import clean, left, new_scope  # noqa: E402

from casemate.hostd import protocol  # noqa: E402
from casemate.spec.workload import NetworkSpec, PodSpec  # noqa: E402

POOL = "10.213.0.0/16"


def pod(hostd: Hostd, number: int) -> PodSpec:
    return hostd.pod(network=NetworkSpec(address=f"10.213.{number // 250}.{number % 250 + 2}"))


def add(client: Client, pods: list[PodSpec], at_a_time: int) -> None:
    waiting: deque[int] = deque()
    for one in pods:
        if len(waiting) == at_a_time:
            client.answer(waiting.popleft())
        waiting.append(client.send(protocol.PodCreate(one)))
    while waiting:
        client.answer(waiting.popleft())


def seen(client: Client) -> set[str]:
    found: set[str] = set()
    after = ""
    while True:
        page = client.call(protocol.Observe(after_pod=after))
        found.update(one.id for one in page.pods)
        after = page.next_after
        if not after:
            return found


def crash(hostd: Hostd, client: Client, pods: list[PodSpec], known: set[str], at_a_time: int) -> Client:
    """Kill hostd with *at_a_time* of *pods* in the making, again and again; what does not fit is said."""
    for start in range(0, len(pods), at_a_time):
        numbers = [client.send(protocol.PodCreate(one)) for one in pods[start : start + at_a_time]]
        client.answer(numbers[0])
        known.add(pods[start].id)
        hostd.kill()
        client.close()
        hostd.start()
        client = hostd.wait_ready()
        there = seen(client)
        made = {one.id for one in pods[start : start + at_a_time]}
        if not known <= there or there - known - made:
            raise SystemExit(f"{len(known - there)} pods are lost, {len(there - known - made)} are nobody's")
        known |= there
        interfaces = {line for line in left(hostd.scope) if line.startswith("interface")}
        pinned = {one.name for one in (hostd.run / "netns").iterdir()}
        print(
            f"killed with {at_a_time} in the making: {len(there)} pods, {len(interfaces)} interfaces, "
            f"{len(pinned)} namespaces; {len(pinned - there)} of nobody"
        )
        if len(interfaces) != len(there) or pinned != there:
            raise SystemExit("something is left over")
    return client


def main() -> None:
    words = [int(one) for one in sys.argv[1:]]
    count, at_a_time = [*words, *(3000, 16)[len(words) :]]
    print(machine(), f"load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="cm-hostd-") as folder:
        scope = replace(new_scope(Path(folder)), pool=POOL)
        hostd = Hostd(scope, CASEMATE_USERNS_RANGES=str(count + 200))
        client = hostd.up()
        try:
            pods = [pod(hostd, number) for number in range(count + 4 * at_a_time)]
            assert hostd.process is not None
            for quarter in range(4):
                part = pods[count * quarter // 4 : count * (quarter + 1) // 4]
                before, began = cpu_s(hostd.process.pid), time.perf_counter()
                add(client, part, at_a_time)
                took = time.perf_counter() - began
                print(
                    f"{len(part)} endpoints more: {len(part) / took:.0f} a second, hostd's processor "
                    f"{(cpu_s(hostd.process.pid) - before) / len(part) * 1e3:.1f} ms each, load "
                    f"{os.getloadavg()[0]:.1f}   (budget 100)", flush=True,
                )  # fmt: skip
            client = crash(hostd, client, pods[count:], {one.id for one in pods[:count]}, at_a_time)
        finally:
            client.close()
            began = time.perf_counter()
            try:
                forced = hostd.clean()
            except OSError:
                # A kill in the middle of a level's probe leaves the probe's cgroup.
                forced = []
                clean(scope)
            print(f"all removed in {time.perf_counter() - began:.1f} s; forced: {forced or 'nothing'}; "
                  f"left: {sorted(hostd.leaks()) or 'nothing'}")  # fmt: skip


if __name__ == "__main__":
    main()
