"""What a trust policy adds to `create` and to `run`: the same image with and without one, in turn. Needs root.

python3 bench/trust_admission.py [--runs 20]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.integration.daemons import Daemons, running_daemons
from tests.integration.trust.conftest import debian_tar, tracker

TODAY = datetime.now(UTC).date().isoformat()
POLICY = {
    "apiVersion": "casemate/v1", "kind": "TrustPolicy", "metadata": {"name": "bench"},
    "spec": {"rules": [{"name": "here", "prefix": "local", "max_feed_age_days": 3, "grades": [
        {"name": "critical", "when": "findings.exists(f, f.severity == 'critical' && f.fixable)", "then": "refuse"}]}]},
}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=20)
    runs = options.parse_args().runs
    with running_daemons() as daemons, tempfile.TemporaryDirectory() as folder:
        client = daemons.client
        client.follow(client.import_image(iter([debian_tar()]), tag="bench", format_="rootfs"))
        data = tracker(Path(folder)).read_bytes()
        query = [("kind", "debian-tracker"), ("name", "debian"), ("date", TODAY)]
        with client.transport.send("POST", "/v1/feeds/import", query, iter([data])) as answer:
            operation = json.loads(answer.read())["id"]
        while json.loads(client.transport.ask("GET", f"/v1/operations/{operation}", ()))["status"] == "running":
            time.sleep(0.05)
        times = {False: [], True: []}
        whole = {False: [], True: []}
        for _ in range(runs):
            for with_policy in (False, True):
                set_policy(daemons, with_policy)
                client.remove(client.create("bench", ["true"]).id)  # the first one of each finds the child asleep
                times[with_policy].append(timed(lambda: client.remove(client.create("bench", ["true"]).id)))
                whole[with_policy].append(timed(lambda: client.run("bench", ["true"])))
        for name, found in (("create and remove", times), ("run --rm true", whole)):
            without, added = statistics.median(found[False]), statistics.median(found[True])
            print(f"{name}: {without:.1f} ms without, {added:.1f} ms with a policy: +{added - without:.1f} ms")


def set_policy(daemons: Daemons, wanted: bool) -> None:
    if wanted:
        body = json.dumps({"text": json.dumps(POLICY)}).encode()
        daemons.client.transport.ask("POST", "/v1/trust/policy", (), body)
    elif json.loads(daemons.client.transport.ask("GET", "/v1/trust/policies", ()))["policies"]:
        daemons.client.transport.ask("DELETE", "/v1/trust/policy", [("name", "bench")])


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    main()
