"""cosign key verification over a registry on the loopback, as casemated does it: the child asked, warm; and offline.

    python3 bench/trust_verify.py [--runs 60]

Debian's docker-registry holds a manifest and its signatures in both layouts. A run is one question to the child that
fetches and checks: the tag, the attestations' tag, the referrers API (which that registry lacks), the
fallback tag, the referrer and its blobs, then the signatures. The first run starts the child.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.integration.registry import running_registry

from casemate.image.artifacts import fetch
from casemate.image.attach import Attachment, attach, put_blob, put_manifest
from casemate.image.http import Client
from casemate.image.jobs import Endpoints
from casemate.image.manifest import Descriptor
from casemate.image.referring import Referring, keep
from casemate.image.registry import Repositories, Repository
from casemate.image.store import Store
from casemate.node.evidence import ask
from casemate.node.evidence_jobs import WANTED, Checked, CheckJob
from casemate.node.warm import MAX_MESSAGE_BYTES, Warm
from casemate.spec.reference import parse_reference
from casemate.trust.keys.private import new_key
from casemate.trust.signature.produce import sign_image
from casemate.trust.signature.verify import KeySigner

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=60)
    runs = options.parse_args().runs
    with tempfile.TemporaryDirectory() as folder, running_registry(Path(folder)) as host:
        endpoints = Endpoints(insecure=(host,))
        state = Path(folder) / "state"
        Store(state).create()
        key = new_key()
        digest = signed(host, endpoints, state, key)
        signers = (KeySigner("ada", key.public_pem),)
        common = {"state": str(state), "reference": f"{host}/a/b", "subjects": (digest,), "signers": signers}
        asyncio.run(measured(runs, {
            "registry on the loopback, the first look is enough (budget 10 ms)": CheckJob(
                **common, endpoints=endpoints, now_s=time.time(), enough=1, counting=("ada",)),  # type: ignore[arg-type]
            "registry on the loopback, everything that refers to the image": CheckJob(
                **common, endpoints=endpoints, now_s=time.time()),  # type: ignore[arg-type]
            "offline, from the store": CheckJob(**common, now_s=time.time()),  # type: ignore[arg-type]
        }))  # fmt: skip


def signed(host: str, endpoints: Endpoints, state: Path, key: object) -> str:
    """An empty image at the registry, signed in both layouts and kept in the store; its digest."""
    client = Client()
    reference = parse_reference(f"{host}/a/b")
    place = Repository(client, host, "a/b", "pull,push", endpoints)
    config = b'{"rootfs":{"type":"layers","diff_ids":[]}}'
    put_blob(place, config)
    row = {"mediaType": CONFIG, "digest": f"sha256:{hashlib.sha256(config).hexdigest()}", "size": len(config)}
    data = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": row, "layers": []}).encode()
    digest, _ = put_manifest(place, "1", data)
    for made in sign_image(key, f"{host}/a/b", digest, ("simple", "bundle")):  # type: ignore[arg-type]
        attach(place, Descriptor(digest, len(data), MANIFEST), Attachment(
            made.kind, made.data, made.annotations, made.suffix, made.type, made.on_manifest))  # fmt: skip
    found = fetch(Repositories(client, reference, endpoints), digest, WANTED)
    keep(Store(state), Referring(digest, f"{host}/a/b", 0.0, found))
    client.close()
    return digest


def cpu_ms(child: Warm) -> float:
    """Processor time that the child has used (proc(5), fields 14 and 15): it does not depend on who else is at work."""
    process = child._process
    assert process is not None
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


async def measured(runs: int, jobs: dict[str, CheckJob]) -> None:
    child = Warm("casemate.node.evidence_child", MAX_MESSAGE_BYTES)
    for what, job in jobs.items():
        times_ms = []
        before_ms = 0.0
        for number in range(runs + 1):
            if number == 1:
                before_ms = cpu_ms(child)
            start = time.perf_counter()
            answer = await ask(child, job, 60.0)
            times_ms.append((time.perf_counter() - start) * 1000)
            assert isinstance(answer, Checked)
            assert answer.evidence.signers == {"ada"}
        rest = sorted(times_ms[1:])
        used_ms = (cpu_ms(child) - before_ms) / runs
        print(f"{what}: first {times_ms[0]:.0f} ms, then median {statistics.median(rest):.2f} ms, "
              f"p90 {rest[len(rest) * 9 // 10]:.2f} ms; processor time of the child {used_ms:.1f} ms")  # fmt: skip
    await child.close()


if __name__ == "__main__":
    main()
