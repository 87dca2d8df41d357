"""Micro-VMs by ``casemate-vm`` alone: create, start, wait, delete, under emulation or KVM as the host has it.

``python bench/microvm.py [runs]``: the median and the least of each step in ms, and beside it, in the same run, what
``docker run --rm`` of a plain container takes where a docker daemon answers. Memory: what 8 idle clones take
(proportional set size, and the fall of MemAvailable).
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests/integration/microvm")]

import harness  # noqa: E402

CACHE = Path("/var/cache/casemate-tests/kernel")
CLONES = 8


def one(host: harness.Host, name: str, bundle: Path) -> dict[str, float]:
    """One container from nothing to nothing; ms since the start at each step."""
    marks: dict[str, float] = {}
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        done = host.vm(
            *("create", "--bundle", str(bundle), "--pid-file", str(bundle / "pid"), name),
            capture_output=False,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    assert done.returncode == 0
    marks["create"] = time.perf_counter() - begun
    assert host.vm("start", name).returncode == 0
    marks["start"] = time.perf_counter() - begun
    while host.state_of(name)["status"] != "stopped":
        time.sleep(0.002)
    marks["exit"] = time.perf_counter() - begun
    assert host.vm("delete", name).returncode == 0
    marks["delete"] = time.perf_counter() - begun
    return {step: value * 1000 for step, value in marks.items()}


def starts(host: harness.Host, layer: Path, runs: int) -> None:
    bundle = host.bundle("bench", harness.configuration([layer], "true"))
    one(host, "warm", bundle)
    found = [one(host, f"b{index}", bundle) for index in range(runs)]
    for step in found[0]:
        values = [each[step] for each in found]
        print(f"casemate-vm until {step:7} median {statistics.median(values):6.1f} ms, least {min(values):6.1f} ms")


def docker(runs: int) -> None:
    if shutil.which("docker") is None:
        return
    images = subprocess.run(["docker", "image", "ls", "-q"], capture_output=True, text=True, check=False)
    if images.returncode != 0 or not images.stdout.split():
        print("docker: no daemon or no image here: no peer's figure")
        return
    values = []
    for _ in range(runs):
        begun = time.perf_counter()
        subprocess.run(["docker", "run", "--rm", images.stdout.split()[0], "true"], check=False, capture_output=True)
        values.append((time.perf_counter() - begun) * 1000)
    print(f"docker run --rm           median {statistics.median(values):6.1f} ms, least {min(values):6.1f} ms")


def available_kib() -> int:
    return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0])


def rollup(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def memory(host: harness.Host, layer: Path) -> None:
    bundle = host.bundle("idle", harness.configuration([layer], "sleep", "1000"))
    before = available_kib()
    pids = []
    for index in range(CLONES):
        name = f"m{index}"
        one_idle(host, name, bundle)
        assert host.machines is not None
        machine = host.machines.get(name)
        assert machine is not None
        assert machine.monitor.child is not None
        monitor = machine.monitor.child.pid
        pids += [monitor, int(Path(f"/proc/{monitor}/task/{monitor}/children").read_text())]
    time.sleep(1)
    fall = (before - available_kib()) / CLONES / 1024
    pss = sum(rollup(pid)["Pss"] for pid in pids) / CLONES / 1024
    print(f"one idle clone            MemAvailable {fall:6.1f} MiB, PSS {pss:6.1f} MiB (128 MiB guest)")


def one_idle(host: harness.Host, name: str, bundle: Path) -> None:
    done = host.vm(
        *("create", "--bundle", str(bundle), name),
        capture_output=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert done.returncode == 0
    assert host.vm("start", name).returncode == 0


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory(prefix="cm-b-") as text:
        folder = Path(text)
        agent, shim = harness.build(folder / "build")
        (folder / "state").mkdir()
        (folder / "run").mkdir()
        with harness.guest_kernel(folder / "state", agent, CACHE) as missing:
            if missing:
                raise SystemExit(f"missing: {missing}")
            layer = harness.layer(folder, "base")
            host = harness.Host(folder / "state", folder / "run", shim)
            host.start()
            try:
                starts(host, layer, runs)
                docker(runs)
                memory(host, layer)
            finally:
                host.end_all()
                host.stop()


if __name__ == "__main__":
    main()
