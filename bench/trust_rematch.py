"""Everything in use judged anew: 5,000 images of 400 packages against 300,000 advisory rows, as casemated does it.

    python3 bench/trust_rematch.py [--images 5000] [--bases 20]

Each image has one of a few base layers (this host's dpkg status, each base with other versions) and a layer of its own
with a few Python packages. The child that judges is started, asked in messages of 500, and ended; what casemated does
for each image before (names, records) is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from trust_feeds import image, made

from casemate.node.trust.documents import combine, parse_policies
from casemate.node.trust.jobs import FEED_FILE
from casemate.node.trust.judge_jobs import ANSWERS, MAX_SUBJECTS, JudgeJob, Judgements, Subject
from casemate.node.trust.state import MAX_MESSAGE_BYTES
from casemate.node.warm import Warm
from casemate.spec.ids import digest_hex
from casemate.trust.admission import Candidate
from casemate.trust.feed.apply import import_feed
from casemate.trust.packages.apply import CONTENTS_FOLDER, ContentsStore
from casemate.trust.packages.merge import ImageContents
from casemate.trust.packages.model import Distribution, LayerContents, Package

TODAY = date(2026, 11, 22)
POLICY = """
apiVersion: casemate/v1
kind: TrustPolicy
metadata: {name: bench}
spec:
  rules:
    - name: all
      prefix: ""
      max_feed_age_days: 30
      grades:
        - {name: critical, when: "findings.exists(f, f.severity == 'critical' && f.fixable)", then: refuse}
        - {name: unfixed, when: "findings.exists(f, f.severity == 'high' && !f.fixable)", then: raise, level: microvm}
        - {name: old, when: end_of_life, then: warn}
"""


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--images", type=int, default=5000)
    options.add_argument("--bases", type=int, default=20)
    options.add_argument("--rows", type=int, default=300_000)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        state = Path(name)
        contents = image()
        tracker = state / "tracker.json"
        tracker.write_text(json.dumps(made(contents, arguments.rows)))
        import_feed(state / FEED_FILE, "debian-tracker", tracker, name="debian", today=TODAY, made="2026-11-20")
        (state / "osv.json").write_text(json.dumps(_advisory()))
        import_feed(state / FEED_FILE, "osv", state / "osv.json", name="pypi", today=TODAY)
        layers = stored(state, contents, arguments.bases, arguments.images)
        asyncio.run(judged(state, layers))


def _advisory() -> dict[str, object]:
    events = [{"introduced": "0"}, {"fixed": "2.31.0"}]
    affected = [
        {"package": {"ecosystem": "PyPI", "name": "requests"}, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
    ]
    return {"id": "GHSA-1", "modified": "2026-11-20T00:00:00Z", "affected": affected}


def stored(state: Path, contents: ImageContents, bases: int, images: int) -> list[tuple[str, str]]:
    """Package lists in the store; the layers of each image."""
    store = ContentsStore(state / CONTENTS_FOLDER)
    packages = [found.package for found in contents.packages]
    below = []
    for number in range(bases):
        other = [
            msgspec.structs.replace(row, version=f"{row.version}+b{number}", source_version="") for row in packages
        ]
        listed = tuple(other if number else packages)
        system = {"etc/os-release": Distribution("debian", "12")}
        below.append(_put(store, "base", number, LayerContents({"var/lib/dpkg/status": listed}, system)))
    found = []
    for number in range(images):
        own = {
            f"app/lib/p{place}.dist-info/METADATA": (Package("pypi", f"p{place}", f"1.{number % 50}"),)
            for place in range(20)
        }
        own["app/lib/requests.dist-info/METADATA"] = (Package("pypi", "requests", f"2.{number % 40}.0"),)
        found.append((below[number % bases], _put(store, "own", number, LayerContents(own))))
    return found


def _put(store: ContentsStore, kind: str, number: int, contents: LayerContents) -> str:
    diff_id = f"sha256:{('a' if kind == 'base' else 'b') + f'{number:063x}'}"
    path = store.root / f"v{contents.scanner_version}" / f"{digest_hex(diff_id)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(contents))
    return diff_id


async def judged(state: Path, layers: list[tuple[str, str]]) -> None:
    policy = combine(parse_policies(POLICY, "bench"), TODAY)
    child = Warm("casemate.node.trust.judge_child", MAX_MESSAGE_BYTES)
    subjects = [
        Subject(str(number), Candidate(f"sha256:{number:064x}", f"r.example/a{number}:1", "default", "namespace"), rows)
        for number, rows in enumerate(layers)
    ]
    start = time.perf_counter()
    answers: dict[str, int] = {}
    for place in range(0, len(subjects), MAX_SUBJECTS):
        part = tuple(subjects[place : place + MAX_SUBJECTS])
        job = JudgeJob(state=str(state), policy=policy, subjects=part, today=TODAY.isoformat())
        found = ANSWERS.decode(await child.ask(msgspec.json.encode(job), 600))
        assert isinstance(found, Judgements), found
        for row in found.rows:
            word = f"{row.decision.answer} at {row.decision.level}"
            answers[word] = answers.get(word, 0) + 1
        if not place:
            first_s = time.perf_counter() - start
    took_s = time.perf_counter() - start
    resident = await asyncio.to_thread(largest, child)
    await child.close()
    print(
        f"{len(subjects)} images judged anew in {took_s:.1f} s ({took_s / len(subjects) * 1000:.2f} ms each; the first "
        f"{min(MAX_SUBJECTS, len(subjects))}: {first_s:.1f} s), child {resident}; budget 5,000 in 30 s: {answers}"
    )


def largest(child: Warm) -> str:
    """The most that the child ever had in memory."""
    process = child._process
    status = Path(f"/proc/{process.pid}/status").read_text() if process is not None else ""
    return next((line.split(":")[1].strip() for line in status.splitlines() if line.startswith("VmHWM")), "?")


if __name__ == "__main__":
    main()
