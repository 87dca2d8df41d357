"""One change of policy with many endpoints, from the API call to the kernel; a full recompile; memory.

Endpoints are rows in the store of a pair of daemons (nothing runs in them): what is measured is casemated, hostd and
the kernel's maps. Beside each change somebody asks for the version: how late that is answered tells how long the loop
stood. ``python bench/policy_change.py [ENDPOINTS [IDENTITIES [RULES [RULES OF ONE DOCUMENT]]]]``; root. The last: 0, or
up to 100,000.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

# What follows is imported from this checkout, which need not be installed: hence below this line (E402).
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "src")]

from tests.integration.daemons import Daemons, running_daemons  # noqa: E402
from tests.integration.policy.world import World  # noqa: E402

from casemate.node.rows import ContainerRow, PodRow, encode, insert  # noqa: E402
from casemate.spec.workload import ContainerSpec, NetworkSpec, PodSpec, Process  # noqa: E402

CHANGES = 60


def fill(path: str, count: int, identities: int) -> None:
    """*count* pods that were made, of *identities* different label sets."""
    db = sqlite3.connect(path)
    for number in range(count):
        id_, pod = f"{number:064x}", f"{number:063x}e"
        address = 0x0AD10000 + number + 1
        text = ".".join(str(address >> shift & 255) for shift in (24, 16, 8, 0))
        spec = PodSpec(id=pod, name=f"pod-{number}", hostname="h", network=NetworkSpec(address=text))
        labels = {"app": f"a{number % identities}", "tier": f"t{number % 10}"}
        insert(db, PodRow(pod, "default", f"pod-{number}", 1.0, b"{}", encode(spec), 1, address, 0, 1))
        container = ContainerSpec(id=id_, pod=pod, name=f"c{number}", layers=(), process=Process(args=("x",)))
        insert(db, ContainerRow(
            id=id_, project="default", name=f"c{number}", pod=pod, created_at=1.0,
            request=encode({"image": "i", "labels": labels}), spec=encode(container), image="i", image_digest="d",
            command="x", labels=b"{}", restart_name="no", restart_maximum=0, auto_remove=0, stop_signal=15,
            stop_timeout=10, admission=encode({"answer": "admit", "reason": ""}), warnings=b"[]", desired="stopped",
            status="exited", made=1,
        ))  # fmt: skip
    db.commit()
    db.close()


def rules(count: int, identities: int) -> str:
    """A document for each rule: what a fleet of small teams has."""
    return "\n---\n".join(
        "apiVersion: casemate/v1\nkind: Policy\n"
        f"metadata: {{name: r{number}}}\nspec:\n  rules:\n"
        f"    - {{from: [{{select: {{matchLabels: {{app: a{number % identities}}}}}}}], "
        f"to: [{{select: {{matchLabels: {{app: a{(number * 7 + 1) % identities}}}}}}}], "
        f"ports: [tcp/{1000 + number % 5000}], action: allow}}"
        for number in range(count)
    )


def change(world: World, number: int) -> float:
    """Seconds of one apply of a document with one rule."""
    text = (
        "apiVersion: casemate/v1\nkind: Policy\nmetadata: {name: changing}\nspec:\n  rules:\n"
        "    - {from: [{select: {matchLabels: {app: a1}}}], to: [{select: {matchLabels: {app: a2}}}], "
        f"ports: [tcp/{20000 + number}], action: deny}}"
    )
    began = time.perf_counter()
    applied = world.apply(text)
    took = time.perf_counter() - began
    assert applied.enforced, applied.why_not
    return took


def one_document(count: int, identities: int) -> str:
    rules = "".join(
        f"    - {{from: [{{select: {{matchLabels: {{app: a{number % identities}}}}}}}], "
        f"to: [{{select: {{matchLabels: {{app: a{(number * 7 + 1) % identities}}}}}}}], "
        f"ports: [tcp/{1000 + number % 50_000}], action: allow}}\n"
        for number in range(count)
    )
    return f"apiVersion: casemate/v1\nkind: Policy\nmetadata: {{name: large}}\nspec:\n  rules:\n{rules}"


@contextlib.contextmanager
def asked_beside(path: str, found: list[float]) -> Iterator[None]:
    """Milliseconds that the API takes to answer a question, again and again."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.01):
            began = time.perf_counter()
            with socket.socket(socket.AF_UNIX) as one:
                one.connect(path)
                one.sendall(b"GET /v1/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                while one.recv(4096):
                    pass
            found.append((time.perf_counter() - began) * 1e3)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def memory_mib(daemons: Daemons) -> dict[str, float]:
    found = {}
    for name, process in daemons.processes.items():
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        found[name] = int(text.split("Pss:")[1].split()[0]) / 1024
    return found


def apply_large(world: World, daemons: Daemons, text: str) -> None:
    """One document with many rules, in force; then gone."""
    beside: list[float] = []
    began = time.perf_counter()
    with asked_beside(str(daemons.socket), beside):
        applied = world.apply(text)
    took = time.perf_counter() - began
    beside.sort()
    print(json.dumps({
        "one document of MiB": round(len(text) / (1 << 20), 1), "enforced": applied.enforced, "s": round(took, 1),
        "others' answers meanwhile, p99 and last, ms": [round(beside[int(len(beside) * 0.99) - 1]), round(beside[-1])],
        "memory MiB": memory_mib(daemons), "load": os.getloadavg()[0],
    }))  # fmt: skip


def main(argv: list[str]) -> None:
    count, identities, amount, large = [int(word) for word in argv] + [50_000, 1_000, 5_000, 0][len(argv) :]
    settings = {"CASEMATE_NETWORK_POOL": "10.209.0.0/16", "CASEMATE_FLOWS_RECORDS": "0"}
    with running_daemons(**settings) as daemons:
        world = World(daemons)
        daemons.kill("casemated")
        fill(f"{daemons.scope.folder}/state/casemate.db", count, identities)
        daemons.start()
        daemons.client.transport.timeout_s = 600
        text = rules(amount, identities)
        beside: list[float] = []
        began = time.perf_counter()
        with asked_beside(str(daemons.socket), beside):
            world.apply(text)
        whole_s = time.perf_counter() - began
        beside.sort()
        began = time.perf_counter()
        world.apply(text.replace("action: allow", "action: deny"))
        replaced_s = time.perf_counter() - began
        change(world, 0)
        times = sorted(change(world, number) for number in range(1, CHANGES + 1))
        state = world.documents().state
        kernel = daemons.journal("casemated").count("kernel")
        print(json.dumps({
            "endpoints": state.endpoints, "identities": state.identities, "rules": state.rules,
            "apply all, ms": round(whole_s * 1000), "replace all, ms": round(replaced_s * 1000),
            "one change, median ms": round(statistics.median(times) * 1000, 1),
            "one change, p99 ms": round(times[int(len(times) * 0.99) - 1] * 1000, 1), "notes": kernel,
            "memory MiB": memory_mib(daemons), "load": os.getloadavg()[0],
            "others' answers meanwhile, ms": {
                "median": round(statistics.median(beside), 1), "p99": round(beside[int(len(beside) * 0.99) - 1], 1),
                "last": round(beside[-1], 1),
            },
        }))  # fmt: skip
        if large:
            apply_large(world, daemons, one_document(large, identities))
        db = sqlite3.connect(f"{daemons.scope.folder}/state/casemate.db")
        daemons.kill("casemated")
        with db:
            db.execute("DELETE FROM containers")
            db.execute("DELETE FROM pods")
            db.execute("DELETE FROM policy_documents")
        db.close()


if __name__ == "__main__":
    main(sys.argv[1:])
