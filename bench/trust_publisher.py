"""A publisher with many tags: signing one more, verifying all that it shows, and asking what one tag means.

    PYTHONPATH=src python3 bench/trust_publisher.py [--tags 5000] [--teams 20] [--runs 5]

Half of the tags stand in ``targets``, the others in as many teams as are asked for. Processor time of this process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from casemate.trust.freshness.publisher import Publisher
from casemate.trust.freshness.resolve import Standing, Trusted, refresh, resolve
from casemate.trust.freshness.roles import RoleKeys
from casemate.trust.keys.private import new_key

NOW = datetime.now(UTC)
DIGEST = "sha256:" + "ab" * 32


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--tags", type=int, default=5000)
    options.add_argument("--teams", type=int, default=20)
    options.add_argument("--runs", type=int, default=5)
    arguments = options.parse_args()
    files = site(arguments.tags, arguments.teams)
    print(f"{arguments.tags} tags, {arguments.teams} teams: {sum(map(len, files.values())) / 1e6:.2f} MB of metadata")
    key = KEY
    last = f"registry.example/app-{arguments.tags // 2 - 1}:1"

    def publish() -> object:
        return Publisher(files, [key], NOW).publish("registry.example/new:1", DIGEST, 1)

    trusted = Trusted(files["1.root.json"])
    shown = refresh(trusted, files, NOW)
    told("publish one more", publish, arguments.runs)
    told("verify all of it", lambda: refresh(trusted, files, NOW), arguments.runs)
    team = f"registry.example/team-{arguments.teams - 1}/app-0:1"
    for name, target in (("a tag of targets", last), ("a tag of the last team", team)):
        assert resolve(shown.trusted, shown.files, target, NOW).digest == DIGEST
        told(f"ask for {name}", lambda t=target: resolve(shown.trusted, shown.files, t, NOW), arguments.runs)  # type: ignore[misc]
        standing = Standing(shown.trusted, shown.files, "", NOW)
        standing.resolve(target, NOW)
        told("  and again, of what stands", lambda t=target, s=standing: s.resolve(t, NOW), arguments.runs)  # type: ignore[misc]


KEY = new_key()


def site(tags: int, teams: int) -> dict[str, bytes]:
    """The files of a publisher. Tags are put in by hand: each publication would sign all of it anew."""
    from tuf.api.metadata import Metadata, TargetFile  # noqa: PLC0415

    pem = (KEY.public_pem,)
    files: dict[str, bytes] = {}

    def do(change: object) -> None:
        for name, data in change.files.items():  # type: ignore[attr-defined]
            files.pop(name, None)
            if data is not None:
                files[name] = data

    def fill(role: str, names: list[str]) -> None:
        metadata = Metadata.from_bytes(files[f"{role}.json"])
        for name in names[1:]:
            metadata.signed.targets[name] = TargetFile(1, {"sha256": DIGEST[7:]}, name)
        files[f"{role}.json"] = metadata.to_bytes()
        do(Publisher(files, [KEY], NOW).publish(names[0], DIGEST, 1, role))

    do(Publisher({}, [KEY], NOW).create(dict.fromkeys(("root", "targets", "snapshot", "timestamp"), RoleKeys(pem))))
    for number in range(teams):
        team = f"team-{number}"
        do(Publisher(files, [KEY], NOW).delegate(team, [f"registry.example/{team}"], RoleKeys(pem)))
        fill(team, [f"registry.example/{team}/app-{one}:1" for one in range(max(1, tags // 2 // teams))])
    fill("targets", [f"registry.example/app-{one}:1" for one in range(tags // 2)])
    return files


def told(what: str, work: Callable[[], object], runs: int) -> None:
    times = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    print(f"{what}: {1000 * statistics.median(times):.2f} ms (up to {1000 * max(times):.2f})")


if __name__ == "__main__":
    main()
