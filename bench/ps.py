"""``ps`` with 5,000 containers in the store: the whole answer of ``GET /v1/containers?all=true`` at the API.

Starts a casemated of its own, without hostd, in a temporary folder; needs root only to become another user.
Budget: 50 ms. ``python bench/ps.py [CONTAINERS]``
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from casemate.node.database import connect
from casemate.node.rows import ContainerRow, PodRow, encode, insert
from casemate.sdk import ApiAway, Client, Transport
from casemate.spec.api import ContainerRequest, NetworkRequest, PodRequest, PortRequest
from casemate.spec.workload import ContainerSpec, NetworkSpec, PodSpec, Process, PublishedPort

BUDGET_MS = 50.0
RUNS = 15
ENVIRONMENT = tuple(f"VARIABLE_{n}=some value of a usual length" for n in range(20))


def fill(path: str, count: int) -> None:
    """Rows as large as real ones: twenty variables, labels, a published port for each fourth."""
    db = connect(path)
    db.execute("BEGIN")
    for number in range(count):
        id_, pod = os.urandom(32).hex(), os.urandom(32).hex()
        ports = (PublishedPort(80, 20_000 + number),) if number % 4 == 0 else ()
        asked = tuple(PortRequest(p.container_port, p.host_port) for p in ports)
        spec = PodSpec(id=pod, name=f"pod-{id_[:12]}", hostname=id_[:12],
                       network=NetworkSpec(address=f"10.209.{number >> 8}.{number & 255}", ports=ports))  # fmt: skip
        insert(db, PodRow(pod, "default", spec.name, 1e9, encode(PodRequest(network=NetworkRequest(ports=asked))),
                          encode(spec), 1, 0x0AD10001 + number, made=1))  # fmt: skip
        request = ContainerRequest(image="debian:12", command=("sleep", "1000"), env=ENVIRONMENT)
        container = ContainerSpec(id=id_, pod=pod, name=f"c{number}", layers=("0" * 64,) * 5,
                                  process=Process(args=("sleep", "1000"), env=ENVIRONMENT))  # fmt: skip
        insert(db, ContainerRow(
            id_, "default", f"c{number}", pod, 1e9 + number, encode(request), encode(container), "debian:12",
            "sha256:" + "1" * 64, "sleep 1000", encode({"team": "blue", "tier": "front"}), "no", 0, 0, 15, 10,
            encode({"answer": "admit", "reason": "no policy"}), b"[]", "stopped", "exited", made=1,
            started_at=1e9 + number, finished_at=1e9 + number + 5, exit_code=0,
        ))  # fmt: skip
    db.execute("COMMIT")
    db.close()


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    with tempfile.TemporaryDirectory(prefix="casemate-bench-") as folder:
        for name in ("state", "run", "host-state", "host-run"):
            Path(folder, name).mkdir()
        fill(f"{folder}/state/casemate.db", count)
        subprocess.run(["chown", "-R", "65534:65534", f"{folder}/state", f"{folder}/run"], check=True)
        Path(folder).chmod(0o755)
        environment = {
            **os.environ,
            "PYTHONPATH": sys.path[0],
            "CASEMATE_PATHS_STATE": f"{folder}/state",
            "CASEMATE_PATHS_RUN": f"{folder}/run",
            "CASEMATE_PATHS_HOST_RUN": f"{folder}/host-run",
        }
        daemon = subprocess.Popen(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", sys.executable, "-m",
             "casemate.api.daemon"], env=environment,
        )  # fmt: skip
        try:
            return measure(Client(Transport(f"{folder}/run/api.sock")), count, daemon.pid)
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(20)


def measure(client: Client, count: int, pid: int) -> int:
    for _ in range(200):
        try:
            client.version()
            break
        except ApiAway:
            time.sleep(0.05)
    times: list[float] = []
    size = 0
    for _ in range(RUNS):
        begun = time.perf_counter()
        size = len(client.transport.ask("GET", "/v1/containers", [("all", "true")]))
        times.append((time.perf_counter() - begun) * 1000)
    middle = statistics.median(times)
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    pss_kib = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    print(
        f"ps with {count} containers: {middle:.1f} ms median of {RUNS} ({min(times):.1f} to {max(times):.1f}), "
        f"{size} bytes; budget {BUDGET_MS:g} ms; ratio {middle / BUDGET_MS:.2f}; daemon {pss_kib / 1024:.1f} MiB"
    )
    return 0 if middle <= BUDGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())
