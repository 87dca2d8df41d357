"""Memory of one idle container with its supervisor, at 500 of them, and of both daemons when idle.

    sudo make start && sudo /opt/casemate/venv/bin/python bench/memory.py [count]

Two figures for a container, because neither alone is honest: the proportional set size (PSS) of the container's
processes and its conmon, which leaves out what the kernel holds for it; and the fall of MemAvailable divided by
the number of containers, which has everything (cgroups, namespaces, interface, mounts).
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from measure import CASEMATE, IMAGE, busybox_root, import_ours, machine, run, scratch


def available_kib() -> int:
    return next(
        int(r.split()[1]) for r in Path("/proc/meminfo").read_text().splitlines() if r.startswith("MemAvailable")
    )


def pss_kib(pid: str) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(row.split()[1]) for row in rollup.splitlines() if row.startswith("Pss:")), 0)


def command(pid: str) -> str:
    """The command line of *pid*, its words separated by spaces; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def processes(*words: str) -> list[str]:
    """Pids whose command line holds all *words*."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            line = command(folder.name)
            if all(word in line for word in words):
                found.append(folder.name)
    return found


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    daemons = {
        name: [p for p in processes("python", f"/bin/{name}") if "supervise" not in command(p)]
        for name in ("casemated", "casemate-hostd")
    }
    with scratch() as folder:
        import_ours(busybox_root(folder))
    print(machine())
    idle = {name: sum(map(pss_kib, pids)) for name, pids in daemons.items()}
    print(f"daemons idle, PSS: {idle} KiB, together {sum(idle.values()) / 1024:.1f} MiB   (budget 60 MiB)")
    names = [f"casemate-bench-{n}" for n in range(count)]
    start = lambda name: run([CASEMATE, "run", "-d", "--name", name, IMAGE, "sleep", "100000"])  # noqa: E731
    start(names[0])
    time.sleep(1)
    before = available_kib()
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(start, names[1:]))
        time.sleep(5)
        fell = (before - available_kib()) / (count - 1)
        conmon = [pss_kib(p) for p in processes("conmon", "casemate")]
        sleepers = [pss_kib(p) for p in processes("sleep 100000") if p not in processes("conmon")]
        print(
            f"{count} idle containers: PSS of conmon {sum(conmon) / count:.0f} KiB + container "
            f"{sum(sleepers) / count:.0f} KiB = {(sum(conmon) + sum(sleepers)) / count / 1024:.2f} MiB each; "
            f"MemAvailable fell by {fell / 1024:.2f} MiB each   (budget 2 MiB)"
        )
        print(f"daemons with {count} containers, PSS: "
              f"{ {name: sum(map(pss_kib, pids)) for name, pids in daemons.items()} } KiB")  # fmt: skip
    finally:
        for at in range(0, count, 50):
            subprocess.run([CASEMATE, "rm", "-f", *names[at : at + 50]], capture_output=True, timeout=300, check=False)


if __name__ == "__main__":
    main()
