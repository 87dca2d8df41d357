"""What the benchmarks share: alternated runs, medians, the machine's description, and a line that can be quoted.

Run them as root with both daemons started (``sudo make start``). Peers are started in temporary folders by the
benchmark itself and ended by their pid.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

CASEMATE = os.environ.get("CASEMATE", "casemate")
IMAGE = "casemate-bench:latest"


def machine() -> str:
    """One line: processors, memory, kernel, cgroup flavour."""
    memory_kib = next(
        int(row.split()[1]) for row in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in row
    )
    v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    model = next(
        (r.split(":")[1].strip() for r in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in r), ""
    )
    return (
        f"{os.cpu_count()} x {model}, {memory_kib / (1 << 20):.0f} GiB, kernel {platform.release()}, "
        f"cgroup {'v2' if v2 else 'v1/hybrid'}, Python {platform.python_version()}"
    )


def cpu_s(pid: int) -> float:
    """Processor time of the process *pid* so far, its threads included."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def run(argv: Sequence[str], **more: object) -> subprocess.CompletedProcess[bytes]:
    """A checked run that shows what the program said when it fails."""
    done = subprocess.run(list(argv), capture_output=True, timeout=600, check=False, **more)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise SystemExit(
            f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}"
        )
    return done


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(subjects: dict[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Times of each subject over *rounds*, taken in turn, so that a drift of the machine meets all alike."""
    for _ in range(warm_up):
        for work in subjects.values():
            work()
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, work in subjects.items():
            times[name].append(seconds(work))
    return times


def report(what: str, ours: float, peers: dict[str, float], unit: str, budget: str) -> None:
    """One table row for each peer: our figure, the peer's, the ratio, the budget."""
    print(f"{what}: casemate {ours:.3f} {unit}")
    for name, figure in peers.items():
        print(f"  {name}: {figure:.3f} {unit}; ratio casemate/{name} {ours / figure:.3f}   (budget {budget})")


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def busybox_root(folder: Path) -> Path:
    """A root file system of Debian's static busybox (package busybox-static) as a tar archive."""
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "tmp").mkdir()
    shutil.copy2("/bin/busybox", root / "bin/busybox")
    for name in ("sh", "true", "sleep", "echo", "cat", "ls", "id"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    archive = folder / "root.tar"
    run(["tar", "-C", str(root), "--owner=0", "--group=0", "-cf", str(archive), "."])
    return archive


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="casemate-bench-") as folder:
        yield Path(folder)


def import_ours(archive: Path) -> None:
    """Our image, made of the same archive as the peers'."""
    run([CASEMATE, "image", "import", "--format", "rootfs", str(archive), IMAGE])


@contextlib.contextmanager
def docker(folder: Path, archive: Path, *more: str) -> Iterator[list[str]]:
    """A Docker engine of its own in *folder*; yields the client's argument list. The image is ``bench:1``. *more*:
    further arguments of dockerd."""
    socket = folder / "docker.sock"
    log = (folder / "dockerd.log").open("wb")
    daemon = subprocess.Popen(
        ["dockerd", "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"),
         "--host", f"unix://{socket}", "--pidfile", str(folder / "dockerd.pid"), *more],
        stdout=log, stderr=log,
    )  # fmt: skip
    client = ["docker", "--host", f"unix://{socket}"]
    try:
        for _ in range(150):
            if subprocess.run([*client, "version"], capture_output=True, timeout=20, check=False).returncode == 0:
                break
            time.sleep(0.2)
        else:
            raise SystemExit(f"dockerd did not come up; see {folder}/dockerd.log")
        run([*client, "import", str(archive), "bench:1"])
        yield client
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(30)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        log.close()


@contextlib.contextmanager
def podman(folder: Path, archive: Path) -> Iterator[list[str]]:
    """Podman with storage of its own; yields the argument list before ``run``. The image is ``bench:1``.

    On a v1/v2 hybrid Podman's crun refuses to run, so the v2 mount is hidden from it; without CAP_SYS_RESOURCE
    its default limits cannot be set, so they are taken down to the caller's.
    """
    conf = folder / "containers.conf"
    conf.write_text(
        '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
        '[engine]\ncgroup_manager="cgroupfs"\nevents_logger="file"\n'
    )
    hide = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
    argv = [
        "unshare", "--mount", "--propagation", "slave", "sh", "-c", hide, "sh",
        "env", f"CONTAINERS_CONF={conf}",
        "podman", "--root", str(folder / "root-store"), "--runroot", str(folder / "run-store"),
    ]  # fmt: skip
    run([*argv, "import", str(archive), "bench:1"])
    try:
        yield argv
    finally:
        subprocess.run([*argv, "rm", "-fa"], capture_output=True, timeout=120, check=False)
        subprocess.run([*argv, "rmi", "-fa"], capture_output=True, timeout=120, check=False)
        for row in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            target = row.split()[1]
            if target.startswith(str(folder)):
                subprocess.run(["umount", "-l", target], capture_output=True, check=False)
