"""Feeds: rows imported in a second, and the time to match one Debian image against 300,000 advisory rows.

    python3 bench/trust_feeds.py [--data ../shared/data] [--rows 300000]

The image is this host, should it be Debian (400 packages of its dpkg status), else 400 invented ones. The rows
are those of a tracker's JSON for 3,000 source packages and three releases; every range of a package is another one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from casemate.trust.feed.apply import import_feed, open_feed
from casemate.trust.feed.match import match
from casemate.trust.packages.content import Content
from casemate.trust.packages.debian import parse_status
from casemate.trust.packages.merge import Found, ImageContents
from casemate.trust.packages.model import Distribution, Package

TODAY = date(2026, 11, 22)
RUNS = 9


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--data", type=Path, default=Path("../shared/data"))
    options.add_argument("--rows", type=int, default=300_000)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        feed = Path(folder) / "feed.sqlite"
        if (arguments.data / "almalinux8-osv.tar.xz").exists():
            imported(feed, "osv", arguments.data / "almalinux8-osv.tar.xz", "almalinux")
        contents = image()
        tracker = Path(folder) / "tracker.json"
        tracker.write_text(json.dumps(made(contents, arguments.rows)))
        imported(Path(folder) / "one.sqlite", "debian-tracker", tracker, "debian")
        matched(Path(folder) / "one.sqlite", contents)


def imported(feed: Path, kind: str, origin: Path, name: str) -> None:
    start = time.perf_counter()
    source = import_feed(feed, kind, origin, name=name, today=TODAY, made="2026-11-20")  # type: ignore[arg-type]
    took_s = time.perf_counter() - start
    rate = f"{source.rows / took_s:,.0f} rows/s (budget 50,000)"
    print(f"import {kind} {name}: {source.rows} rows in {took_s:.2f} s = {rate}")


def matched(feed: Path, contents: ImageContents) -> None:
    start = time.perf_counter()
    database, sources = open_feed(feed)
    opened_ms = (time.perf_counter() - start) * 1000
    times_ms = []
    for _ in range(RUNS):
        start = time.perf_counter()
        result = match(database, contents)
        times_ms.append((time.perf_counter() - start) * 1000)
    print(
        f"match of {len(contents.packages)} packages with {sources[0].rows} rows: first {times_ms[0]:.1f} ms, "
        f"median {statistics.median(times_ms):.1f} ms, {len(result.findings)} findings (budget 20 ms); "
        f"opening {opened_ms:.1f} ms"
    )


def image() -> ImageContents:
    status = Path("/var/lib/dpkg/status")
    if status.exists():
        packages = list(parse_status("status", Content(status.read_bytes())))[:400]
    else:
        packages = [Package("deb", f"package{number}", f"1.{number}-1") for number in range(400)]
    found = tuple(Found(package, "var/lib/dpkg/status", 0) for package in packages)
    return ImageContents(found, Distribution("debian", "12"))


def made(contents: ImageContents, rows: int) -> dict[str, dict[str, object]]:
    """As in the tracker: 2,900 source packages, most rows of the image's release repaired in what it holds."""
    names = list(dict.fromkeys(found.package.advisory_name for found in contents.packages))
    names += [f"other{number}" for number in range(3000 - len(names))]
    versions = {found.package.advisory_name: found.package.advisory_version for found in contents.packages}
    found: dict[str, dict[str, object]] = {name: {} for name in names}
    for number in range(rows // 3):
        name = names[number % len(names)]
        # "~" and a number: before the version that is there, so that most are repaired, and each range is another.
        repaired = {"status": "resolved", "fixed_version": f"{versions.get(name, '1.2-1')}~{number // len(names)}"}
        here = repaired if number % 20 else {"status": "open", "urgency": "medium"}
        states = {"bookworm": here, "bullseye": repaired, "trixie": repaired}
        found[name][f"CVE-2024-{number + 10_000}"] = {"releases": states, "description": "d" * 200}
    return found


if __name__ == "__main__":
    main()
