"""``run --rm IMAGE true`` at the levels microvm and gvisor, against Docker on runc and on runsc, in turn.

sudo make start && sudo /opt/casemate/venv/bin/python bench/levels.py [rounds] [pause in seconds] [machines] [level]

With ``microvm.pool = 0`` (or a pause of 0) a machine is cloned for each start; with a pool and a pause of 2 s one
waits. *machines* (0: none) at the end, 4 at a time, against as many of Docker's plain containers, five times. *level*:
``microvm`` or ``gvisor`` alone. Docker's runsc has no network here: on a kernel since 6.13 Debian's takes every
network namespace for the host's (decision 0062).
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from measure import CASEMATE, IMAGE, busybox_root, docker, import_ours, machine, median, report, run, scratch, seconds

#: Of machines together, against Docker's.
TURNS = 5


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    pause_s = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    machines = int(sys.argv[3]) if len(sys.argv) > 3 else 50
    levels = sys.argv[4:5] or ["microvm", "gvisor"]
    with scratch() as folder:
        archive = busybox_root(folder)
        import_ours(archive)
        (folder / "docker").mkdir()
        runsc = shutil.which("runsc")
        config = folder / "daemon.json"
        runtimes = {"runsc": {"path": runsc, "runtimeArgs": ["--network=none"]}} if runsc else {}
        config.write_text(json.dumps({"runtimes": runtimes}))
        more = ("--config-file", str(config))
        with docker(folder / "docker", archive, *more) as dock:
            subjects: dict[str, Callable[[], object]] = {}
            if "microvm" in levels:
                subjects["docker"] = lambda: run([*dock, "run", "--rm", "bench:1", "true"])
                subjects["microvm"] = lambda: ours("microvm")
            if runsc and "gvisor" in levels:
                subjects["gvisor"] = lambda: ours("gvisor", "--network", "none")
                words = [*dock, "run", "--rm", "--runtime", "runsc", "--network", "none", "bench:1", "true"]
                subjects["docker runsc"] = lambda: run(words)
            times: dict[str, list[float]] = {name: [] for name in subjects}
            for index in range(rounds + 1):
                for name, work in subjects.items():
                    time.sleep(pause_s if name == "microvm" else 0.0)
                    spent = seconds(work)
                    if index:
                        times[name].append(spent)
            print(machine())
            figures = {name: median(found) for name, found in times.items()}
            budget = "0.5 of docker, a machine waits" if pause_s else "1.0 of docker, no machine waits"
            if "microvm" in figures:
                report(f"microvm, median of {rounds}", figures["microvm"], {"docker": figures["docker"]}, "s", budget)
            if "gvisor" in figures:
                runsc_s = {"docker runsc": figures["docker runsc"]}
                report(f"gvisor, median of {rounds}", figures["gvisor"], runsc_s, "s", "0.5")
            if machines:
                together(machines, lambda: ours("microvm"), lambda: run([*dock, "run", "--rm", "bench:1", "true"]))


def ours(level: str, *options: str) -> object:
    return run([CASEMATE, "run", "--rm", "--isolation", level, *options, IMAGE, "true"])


def together(machines: int, mine: Callable[[], object], peer: Callable[[], object]) -> None:
    """As many of each, 4 at a time, in turn: one turn says little, since Docker's rate goes up and down by 10 %."""
    ratios, rates = [], []
    for _ in range(TURNS):
        theirs, own = many(machines, peer), many(machines, mine)
        ratios.append(theirs / own)
        rates.append((machines / own, machines / theirs))
    print(
        f"{machines} machines, 4 at a time, {TURNS} turns, a second: "
        + ", ".join(f"{a:.2f} ({b:.2f})" for a, b in rates)
    )
    print(
        f"  ratio casemate/docker {median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}   (budget at least 1.0)"
    )


def many(count: int, work: Callable[[], object]) -> float:
    """Seconds for *count* runs, 4 at a time."""
    start = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: work(), range(count)))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
