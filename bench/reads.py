"""Reads from the image at level microvm against level namespace: one file of 200 MB, and 10,000 small ones.

sudo make start && sudo /opt/casemate/venv/bin/python bench/reads.py [rounds] [MB] [files]

Each round has a fresh container of each level and reads twice in it: from the image (the host's page cache is warm, the
guest's is empty), then again from the page cache. Where the time goes: what ``time`` says in the container (user, sys),
the processor time of QEMU's guest thread and of its others, and what is left when nothing has to be read and unpacked.
"""

from __future__ import annotations

import random
import re
import shutil
import sys
from pathlib import Path

from measure import CASEMATE, busybox_root, machine, median, run, scratch
from memory import processes

IMAGE = "casemate-bench-reads:latest"
NAME = "casemate-bench-reads"
READS = {"one file": "cat /large", "small files": "cat /many/*/*"}
LEVELS = ("namespace", "microvm")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    size_mb = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    files = int(sys.argv[3]) if len(sys.argv) > 3 else 10_000
    with scratch() as folder:
        make_image(folder, size_mb, files)
    found: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    try:
        for _ in range(rounds):
            for level in LEVELS:
                for key, row in one(level).items():
                    found.setdefault((level, *key), []).append(row)
    finally:
        run([CASEMATE, "image", "rm", "-f", IMAGE])
    print(machine())
    print(f"{size_mb} MB in one file, {files} files of 1 KiB; median of {rounds}")
    for what in READS:
        for state in ("from the image", "again"):
            shown = {level: summary(found[level, what, state]) for level in LEVELS}
            for level, row in shown.items():
                parts = ", ".join(f"{name} {value:.3f}" for name, value in row.items() if name != "real")
                print(f"{what}, {state}: {level} {row['real']:.3f} s ({parts})")
            print(f"  ratio microvm/namespace {shown['microvm']['real'] / max(shown['namespace']['real'], 1e-3):.1f}")


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: median([row[name] for row in rows]) for name in rows[0]}


def make_image(folder: Path, size_mb: int, files: int) -> None:
    """Half of each block is noise, so that it is compressed as programs are."""
    archive = busybox_root(folder)
    root, noise = folder / "root", random.Random(1)
    with (root / "large").open("wb") as out:
        for _ in range(size_mb):
            out.write(b"".join(noise.randbytes(2048) + bytes(2048) for _ in range(256)))
    for number in range(files):
        path = root / f"many/{number // 100}/{number % 100}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise.randbytes(512) + bytes(512))
    run(["tar", "-C", str(root), "--owner=0", "--group=0", "-cf", str(archive), "."])
    shutil.rmtree(root)
    run([CASEMATE, "image", "import", "--format", "rootfs", str(archive), IMAGE])


def one(level: str) -> dict[tuple[str, str], dict[str, float]]:
    """A container of *level*: each read, twice."""
    run([CASEMATE, "run", "-d", "--name", NAME, "--isolation", level, "-m", "512m", IMAGE, "sleep", "1000"])
    try:
        pod = run([CASEMATE, "inspect", "-f", "{{.Casemate.Pod.Id}}", NAME]).stdout.decode().strip()
        # The monitor's command line holds QEMU's.
        found_pids = [pid for pid in processes("qemu-system", "-incoming") if pod in read_of(pid, "cgroup")]
        qemu = next((pid for pid in found_pids if read_of(pid, "comm").startswith("qemu")), "")
        found = {}
        for what, words in READS.items():
            for state in ("from the image", "again"):
                found[what, state] = read(words, qemu)
        return found
    finally:
        run([CASEMATE, "rm", "-f", NAME])


def read(words: str, qemu: str) -> dict[str, float]:
    """Seconds: what ``time`` says in the container, and QEMU's threads meanwhile."""
    earlier = threads(qemu)
    done = run([CASEMATE, "exec", NAME, "/bin/busybox", "time", "sh", "-c", f"{words} > /dev/null"])
    later = threads(qemu)
    row = {}
    for name, minutes, seconds in re.findall(r"(real|user|sys)\s+(\d+)m ([\d.]+)s", done.stderr.decode()):
        row[name] = int(minutes) * 60 + float(seconds)
    if qemu:
        spent = {thread: later[thread] - earlier.get(thread, 0.0) for thread in later}
        main_loop = spent.pop(qemu, 0.0)
        # Of the rest, the guest's processor is the one that works; others read files when they are asked to.
        guest = max(spent.values(), default=0.0)
        row |= {"QEMU's guest thread": guest, "main loop": main_loop, "its others": sum(spent.values()) - guest}
    return row


def read_of(pid: str, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


def threads(qemu: str) -> dict[str, float]:
    """Processor seconds of each thread of the process *qemu*; none where there is no process."""
    tasks = Path(f"/proc/{qemu}/task").iterdir() if qemu else ()
    return {one_task.name: int((one_task / "schedstat").read_text().split()[0]) / 1e9 for one_task in tasks}


if __name__ == "__main__":
    main()
