"""Pull of a 280 MB image from a registry on loopback: ours against skopeo and, where a daemon can be had, Docker.

    python bench/pull.py [--size-mb 280] [--rounds 3] [--docker]

Makes four layers out of this host's own files, starts Debian's docker-registry on a free port, and prints for each
round: our transfer alone (blobs verified and stored) against `skopeo copy docker:// -> oci:`, and our whole pull
(squashfs ready to mount) against `docker pull` (unpacked). Everything lives in a temporary folder and is removed.
With --docker a dockerd of its own is started as root (no bridge, no iptables) unless DOCKER_HOST names one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
FOLDERS = ("/usr/lib", "/usr/bin", "/usr/share", "/usr/libexec")
LAYERS = 4


def pick(size_mb: int) -> list[list[str]]:
    """Real files of about 2.8 times *size_mb* (what gzip makes of such files), dealt out to four layers."""
    wanted = int(size_mb * 2.8) << 20
    groups: list[list[str]] = [[] for _ in range(LAYERS)]
    sizes = [0] * LAYERS
    for folder in FOLDERS:
        for place, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(place, name)
                if not os.path.isfile(path) or os.path.islink(path):
                    continue
                smallest = sizes.index(min(sizes))
                groups[smallest].append(path.lstrip("/"))
                sizes[smallest] += os.path.getsize(path)
                if sum(sizes) > wanted:
                    return groups
    return groups


def make_image(layout: Path, size_mb: int) -> tuple[int, int]:
    """An OCI layout of four gzip layers; packed and unpacked bytes."""
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes) -> dict[str, object]:
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    layers, diff_ids, unpacked = [], [], 0
    for group in pick(size_mb):
        raw = subprocess.run(
            ["tar", "-C", "/", "-cf", "-", "-T", "-"], input="\n".join(group).encode(), capture_output=True, check=True
        ).stdout
        unpacked += len(raw)
        diff_ids.append(f"sha256:{hashlib.sha256(raw).hexdigest()}")
        packed = subprocess.run(["gzip", "-6nc"], input=raw, capture_output=True, check=True).stdout
        layers.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **put(packed)})
    config = put(
        json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["sh"]},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }
        ).encode()
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config},
        "layers": layers,
    }
    entry = {
        "mediaType": MANIFEST,
        **put(json.dumps(manifest).encode()),
        "annotations": {"org.opencontainers.image.ref.name": "latest"},
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return sum(layer["size"] for layer in layers), unpacked


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_registry(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    port = free_port()
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/registry}}}}\n"
        f"http: {{addr: 127.0.0.1:{port}}}\n"
    )
    program = subprocess.Popen(
        ["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1).close())
    return program, f"127.0.0.1:{port}"


def wait_for(attempt, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            attempt()
            return
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def start_docker(folder: Path) -> tuple[subprocess.Popen[bytes] | None, str]:
    if os.environ.get("DOCKER_HOST"):
        return None, os.environ["DOCKER_HOST"]
    host = f"unix://{folder}/docker.sock"
    log = (folder / "dockerd.log").open("wb")
    program = subprocess.Popen(
        ["dockerd", "--host", host, "--data-root", f"{folder}/docker", "--exec-root", f"{folder}/docker-exec",
         "--pidfile", f"{folder}/docker.pid",
         "--iptables=false", "--ip6tables=false", "--bridge=none", "--log-level=error"],
        stdout=log, stderr=log,
    )  # fmt: skip
    wait_for(lambda: subprocess.run(["docker", "--host", host, "info"], check=True, capture_output=True), 60)
    return program, host


def stop(program: subprocess.Popen[bytes] | None) -> None:
    if program is not None:
        program.send_signal(signal.SIGTERM)
        try:
            program.wait(20)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()


def timed(command: list[str], data: bytes | None = None) -> float:
    start = time.monotonic()
    done = subprocess.run(
        command, input=data, capture_output=True, env={**os.environ, "PYTHONPATH": str(SOURCE)}, check=False
    )
    took = time.monotonic() - start
    if done.returncode != 0:
        raise SystemExit(f"{command[0]}: {done.stderr.decode()[-800:]}{done.stdout.decode()[-800:]}")
    return took


def ours(folder: Path, host: str, *, convert: bool) -> float:
    state = folder / "state"
    shutil.rmtree(state, ignore_errors=True)
    job = {
        "type": "pull",
        "state": str(state),
        "reference": f"{host}/bench/image",
        "endpoints": {"insecure": [host]},
        "convert": convert,
    }
    return timed([sys.executable, "-m", "casemate.image.worker"], json.dumps(job).encode())


def skopeo(folder: Path, host: str) -> float:
    shutil.rmtree(folder / "skopeo", ignore_errors=True)
    return timed(
        ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{host}/bench/image", f"oci:{folder}/skopeo:x"]
    )


def docker(host: str, docker_host: str) -> float:
    timed(["docker", "--host", docker_host, "image", "prune", "-af"])
    return timed(["docker", "--host", docker_host, "pull", "-q", f"{host}/bench/image"])


def report(what: str, ours_s: float, peer: str, peer_s: float, budget: float) -> None:
    print(f"{what}: casemate {ours_s:.2f} s, {peer} {peer_s:.2f} s, ratio {ours_s / peer_s:.2f} (budget {budget})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=280)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--docker", action="store_true")
    options = parser.parse_args()
    registry = daemon = None
    with tempfile.TemporaryDirectory(prefix="casemate-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        try:
            packed, unpacked = make_image(folder / "layout", options.size_mb)
            registry, host = start_registry(folder)
            timed(
                [
                    "skopeo",
                    "copy",
                    "-q",
                    "--dest-tls-verify=false",
                    f"oci:{folder}/layout:latest",
                    f"docker://{host}/bench/image:latest",
                ]
            )
            docker_host = ""
            if options.docker or os.environ.get("DOCKER_HOST"):
                daemon, docker_host = start_docker(folder)
            figures: dict[str, list[float]] = {"transfer": [], "skopeo": [], "pull": [], "docker": []}
            for _ in range(options.rounds):
                os.sync()
                figures["transfer"].append(ours(folder, host, convert=False))
                os.sync()
                figures["skopeo"].append(skopeo(folder, host))
                os.sync()
                figures["pull"].append(ours(folder, host, convert=True))
                if docker_host:
                    os.sync()
                    figures["docker"].append(docker(host, docker_host))
            middle = {key: statistics.median(values) for key, values in figures.items() if values}
            sizes = f"{packed / 1e6:.0f} MB packed, {unpacked / 1e6:.0f} MB unpacked"
            print(f"image: {LAYERS} layers, {sizes}; medians of {options.rounds}")
            report("transfer", middle["transfer"], "skopeo", middle["skopeo"], 1.0)
            if "docker" in middle:
                report("pull with unpacking", middle["pull"], "docker", middle["docker"], 0.6)
            else:
                print(f"pull with unpacking: casemate {middle['pull']:.2f} s; docker: not asked for (--docker)")
        finally:
            stop(daemon)
            stop(registry)


if __name__ == "__main__":
    main()
