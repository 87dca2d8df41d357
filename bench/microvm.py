"""Micro-VMs by ``casemate-vm`` alone: create, start, delete, under emulation or KVM as the host has it.

``python bench/microvm.py [runs] [clones]``, as root: the median and the least of each step in ms, with no machine that
waits and with one; beside it, in the same run, what ``docker run --rm`` of a plain container takes where a docker
daemon answers. Then what one more idle clone of 128 MiB takes, of so many: the fall of MemAvailable, the proportional
set size of QEMU and monitor, and its parts: pages of the guest's that it has written, translated code, the rest. Twice:
without a rehearsal, and with one in each of them (``microvm.rehearsal``), for which they are started 1.1 s apart.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What follows is imported from this checkout, which need not be installed: hence below this line (E402).
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests/integration/microvm")]

import harness  # noqa: E402

from casemate.isolation.microvm import rehearsals  # noqa: E402

CACHE = Path("/var/cache/casemate-tests/kernel")
CLONES = 20
POOL_WAIT_S, SETTLE_S = 60.0, 0.5
#: A start rehearses where no other began in the last second.
APART_S, TEMPLATE_WAIT_S = 1.1, 120.0


def one(host: harness.Host, name: str, bundle: Path) -> dict[str, float]:
    """One container from nothing to nothing: ms of each command, and of what lies between start and exit."""
    steps: dict[str, float] = {}
    begun = time.perf_counter()
    words = ("create", "--bundle", str(bundle), "--pid-file", str(bundle / "pid"), name)
    with tempfile.TemporaryFile() as out:
        # Not subprocess.run with a timeout: without pipes to read that looks every 50 ms whether the program has ended.
        argv = [str(host.shim), "--socket", str(host.socket), *words]
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        assert child.wait() == 0
    steps["create"] = time.perf_counter() - begun
    begun = time.perf_counter()
    assert host.vm("start", name).returncode == 0
    steps["start"] = time.perf_counter() - begun
    begun = time.perf_counter()
    while lives(int((bundle / "pid").read_text())):
        time.sleep(0.001)
    steps["exit"] = time.perf_counter() - begun
    begun = time.perf_counter()
    assert host.vm("delete", name).returncode == 0
    steps["delete"] = time.perf_counter() - begun
    return {step: value * 1000 for step, value in steps.items()}


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def starts(host: harness.Host, layer: Path, runs: int, budget_ms: float) -> None:
    config = harness.configuration([layer], "true")
    # As of a pod of ours without a network: what an engine starts has a network namespace of the engine's.
    config["linux"]["namespaces"] = [  # type: ignore[index]
        one
        for one in config["linux"]["namespaces"]
        if one["type"] != "network"  # type: ignore[index]
    ]
    found, waited = [], 0
    for index in range(runs + 1):
        name = f"b{index}"
        config["annotations"] |= {"org.casemate.pod": name}  # type: ignore[operator]
        bundle = host.bundle("bench", config)
        assert host.machines is not None
        if host.pool and index:
            end = time.monotonic() + POOL_WAIT_S
            while not host.machines.pool.count() and time.monotonic() < end:
                time.sleep(0.05)
            # The last one's making is over, and the host is quiet again.
            time.sleep(SETTLE_S)
        before = host.machines.pool.count()
        row = one(host, name, bundle)
        if index:
            found.append(row)
            waited += before > 0
    how = f"a machine waited ({waited} of {runs})" if host.pool else "no machine waits"
    how += ", rehearsal" if host.rehearsal else ""
    for step in found[0]:
        values = [each[step] for each in found]
        print(f"{how}: {step:7} median {statistics.median(values):6.1f} ms, least {min(values):6.1f} ms")
    sums = [each["create"] + each["start"] + each["delete"] for each in found]
    whole = statistics.median(sums)
    print(f"{how}: create + start + delete, median {whole:.1f} ms, least {min(sums):.1f} ms")
    print(f"  ratio to the budget {whole / budget_ms:.2f}   (budget {budget_ms:.0f} ms)")


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


def parts_kib(qemu: int) -> tuple[int, int]:
    """Of QEMU: pages of the guest's memory that this clone has written, and translated code."""
    guest = code = 0
    kind = ""
    for line in Path(f"/proc/{qemu}/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            kind = "guest" if "memfd:casemate" in line else "code" if line.split()[1] == "rwxp" else ""
        elif kind == "guest" and line.startswith("Anonymous:"):
            guest += int(line.split()[1])
        elif kind == "code" and line.startswith("Rss:"):
            code += int(line.split()[1])
    return guest, code


def memory(host: harness.Host, layer: Path, clones: int) -> None:
    bundle = host.bundle("idle", harness.configuration([layer], "sleep", "1000"))
    before = available_kib()
    monitors, qemus, rehearsed = [], [], 0
    for index in range(clones):
        name = f"m{index}"
        time.sleep(APART_S if host.rehearsal else 0.0)
        one_idle(host, name, bundle)
        assert host.machines is not None
        machine = host.machines.get(name)
        assert machine is not None
        monitors.append(machine.record.pid)
        qemus.append(machine.record.qemu_pid)
        rehearsed += processors(machine.record.qemu_pid) > 1
    time.sleep(2)
    fall = (before - available_kib()) / clones / 1024
    pss = sum(rollup(pid)["Pss"] for pid in (*monitors, *qemus)) / clones / 1024
    found = [parts_kib(pid) for pid in qemus]
    guest, code = (sum(each[index] for each in found) / clones / 1024 for index in (0, 1))
    how = f"with a rehearsal ({rehearsed} of {clones})" if host.rehearsal else "without a rehearsal"
    print(f"one more idle clone of {clones}, {how}: MemAvailable fell by {fall:.1f} MiB   (budget 60 MiB)")
    print(
        f"  PSS {pss:.1f} MiB: of the guest's memory {guest:.1f} MiB (budget 12 MiB), translated code {code:.1f} MiB,"
    )
    print(f"  the rest {pss - guest - code:.1f} MiB; with KVM, without translated code, about {pss - code:.1f} MiB")


def with_template(host: harness.Host, layer: Path) -> None:
    """Until the template with a rehearsal is there, which the first start has made in the background."""
    assert host.machines is not None
    one_idle(host, "first", host.bundle("first", harness.configuration([layer], "true")))
    wanted = dataclasses.replace(host.machines._recipe(None), cpus=rehearsals.CPUS)
    end = time.monotonic() + TEMPLATE_WAIT_S
    while host.machines.templates.ready(wanted) is None:
        if time.monotonic() > end:
            raise SystemExit(f"no template with a rehearsal within {TEMPLATE_WAIT_S:g} s (one processor?)")
        time.sleep(0.1)


def processors(qemu: int) -> int:
    """How many QEMU was told to give its guest."""
    words = Path(f"/proc/{qemu}/cmdline").read_bytes().split(b"\0")
    return int(words[words.index(b"-smp") + 1].split(b",")[0])


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
    clones = int(sys.argv[2]) if len(sys.argv) > 2 else CLONES
    with tempfile.TemporaryDirectory(prefix="cm-b-") as text:
        folder = Path(text)
        agent, shim = harness.build(folder / "build")
        (folder / "state").mkdir()
        with harness.guest_kernel(folder / "state", agent, CACHE) as missing:
            if missing:
                raise SystemExit(f"missing: {missing}")
            layer = harness.layer(folder, "base")
            for pool, rehearsal, budget_ms in ((0, False, 250.0), (0, True, 250.0), (1, True, 100.0)):
                run = folder / f"run{pool}{rehearsal:d}"
                run.mkdir()
                host = harness.Host(folder / "state", run, shim, pool=pool, rehearsal=rehearsal)
                host.start()
                try:
                    if rehearsal:
                        with_template(host, layer)
                    starts(host, layer, runs, budget_ms)
                    if not pool:
                        docker(runs)
                        memory(host, layer, clones)
                finally:
                    host.end_all()
                    host.stop()


if __name__ == "__main__":
    main()
