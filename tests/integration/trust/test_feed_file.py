"""The feed's file: built whole or not at all, by one process at a time, and matched with what an image holds."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from datetime import date
from pathlib import Path

import pytest

from casemate.trust.feed.apply import import_feed, open_feed, remove_source
from casemate.trust.feed.fresh import age_days, check_fresh
from casemate.trust.feed.ignores import Ignore, IgnoreInvalid, check_ignore, judge
from casemate.trust.feed.match import Match, match, require_whole
from casemate.trust.feed.model import (
    FeedBusy,
    FeedDigestMismatch,
    FeedEmpty,
    FeedInvalid,
    FeedMissing,
    FeedStale,
)
from casemate.trust.packages.merge import Found, ImageContents
from casemate.trust.packages.model import Distribution, Package

pytest.importorskip("cvss", reason="missing: cvss")

TODAY = date(2026, 11, 22)
DATA = Path(__file__).resolve().parents[4] / "shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="missing: ../shared/data")

RECORD = {
    "id": "GHSA-1",
    "modified": "2026-11-20T00:00:00Z",
    "aliases": ["CVE-2026-1111"],
    "severity": [{"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"}],
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "requests"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.31.0"}]}],
        },
        {
            "package": {"ecosystem": "Debian:12", "name": "requests"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}],
        },
    ],
}  # fmt: skip


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    return tmp_path / "state" / "feed.sqlite"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "osv"
    found.mkdir()
    (found / "GHSA-1.json").write_text(json.dumps(RECORD))
    return found


def image(*packages: Package, ident: str = "debian", version: str = "12") -> ImageContents:
    return ImageContents(tuple(Found(package, "p", 0) for package in packages), Distribution(ident, version))


def matched(feed: Path, contents: ImageContents) -> Match:
    database, _ = open_feed(feed)
    try:
        return match(database, contents)
    finally:
        database.close()


def test_folder_zip_and_tar_give_the_same(feed: Path, folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(folder / "GHSA-1.json", "GHSA-1.json")
    with tarfile.open(tmp_path / "all.tar.xz", "w:xz") as packed:
        packed.add(folder / "GHSA-1.json", "osv/GHSA-1.json")
    for number, origin in enumerate((folder, tmp_path / "all.zip", tmp_path / "all.tar.xz", folder / "GHSA-1.json")):
        found = import_feed(feed, "osv", origin, name=f"s{number}", today=TODAY)
        assert (found.rows, found.advisories, found.date, found.ecosystems) == (
            2,
            1,
            "2026-11-20",
            ("Debian:12", "PyPI"),
        )
    database, sources = open_feed(feed, thorough=True)
    database.close()
    assert [source.name for source in sources] == ["s0", "s1", "s2", "s3"]
    assert matched(feed, image(Package("pypi", "requests", "2.30.0"))).findings[0].severity == "critical"


def test_a_file_of_the_distribution_is_judged_by_its_feed_alone(feed: Path, folder: Path) -> None:
    import_feed(feed, "osv", folder, name="osv", today=TODAY)
    owned = Package("pypi", "requests", "2.28.1", owned=True)
    deb = Package("deb", "python3-requests", "2.28.1+dfsg-1", source="requests")
    found = matched(feed, image(owned, deb))
    assert [(row.found.package.type, row.fixed) for row in found.findings] == [("deb", "")]
    assert matched(feed, image(Package("pypi", "requests", "2.31.0"), deb, version="11")).uncovered == ("Debian:11",)


def test_no_feed_for_the_image_is_an_error_never_clean(feed: Path, folder: Path) -> None:
    import_feed(feed, "osv", folder, name="osv", today=TODAY)
    for contents in (
        image(Package("rpm", "bash", "1-1"), ident="rhel", version="9"),
        image(Package("deb", "x", "1"), ident="plan9"),
    ):
        with pytest.raises(FeedMissing):
            require_whole(matched(feed, contents))
    with pytest.raises(FeedMissing):
        open_feed(feed.with_name("none"))


def test_epss_and_known_exploited(feed: Path, folder: Path, tmp_path: Path) -> None:
    import_feed(feed, "osv", folder, name="osv", today=TODAY)
    (tmp_path / "epss.csv").write_bytes(b"cve,epss,percentile\nCVE-2026-1111,0.75,0.9\n")
    import_feed(feed, "epss", tmp_path / "epss.csv", name="epss", today=TODAY, made="2026-11-21")
    kev = {"count": 1, "vulnerabilities": [{"cveID": "CVE-2026-1111", "dateAdded": "2026-11-19"}]}
    (tmp_path / "kev.json").write_text(json.dumps(kev))
    import_feed(feed, "kev", tmp_path / "kev.json", name="kev", today=TODAY)
    (found,) = matched(feed, image(Package("pypi", "requests", "2"))).findings
    assert (found.probability, found.exploited) == (0.75, True)
    remove_source(feed, "kev")
    remove_source(feed, "epss")
    (found,) = matched(feed, image(Package("pypi", "requests", "2"))).findings
    assert (found.probability, found.exploited) == (-1, False)
    remove_source(feed, "osv")
    assert not feed.exists()


def test_a_source_is_replaced_and_others_stay(feed: Path, folder: Path, tmp_path: Path) -> None:
    import_feed(feed, "osv", folder, name="a", today=TODAY)
    import_feed(feed, "osv", folder, name="b", today=TODAY)
    (folder / "GHSA-1.json").write_text(json.dumps(RECORD | {"id": "GHSA-2"}))
    import_feed(feed, "osv", folder, name="a", today=TODAY)
    found = matched(feed, image(Package("pypi", "requests", "2")))
    assert sorted(row.ident for row in found.findings) == ["GHSA-1", "GHSA-2"]


@pytest.mark.parametrize(
    "case",
    ["empty", "withdrawn", "truncated zip", "truncated tar", "wrong digest", "future", "no date", "junk", "gone"],
)
def test_what_is_not_whole_changes_nothing(feed: Path, folder: Path, tmp_path: Path, case: str) -> None:
    import_feed(feed, "osv", folder, name="osv", today=TODAY)
    before = feed.read_bytes()
    kind, origin, more = "osv", tmp_path / "new", {}
    wanted: type[FeedInvalid] = FeedInvalid
    match case:
        case "empty":
            origin.mkdir()
            wanted = FeedEmpty
        case "withdrawn":
            origin.mkdir()
            (origin / "a.json").write_text(json.dumps(RECORD | {"withdrawn": "2026-01-01T00:00:00Z"}))
            wanted = FeedEmpty
        case "truncated zip":
            origin = tmp_path / "a.zip"
            with zipfile.ZipFile(origin, "w") as archive:
                for number in range(50):
                    archive.writestr(f"{number}.json", json.dumps(RECORD))
            origin.write_bytes(origin.read_bytes()[:-200])
        case "truncated tar":
            origin = tmp_path / "a.tar.xz"
            with tarfile.open(origin, "w:xz") as packed:
                for number in range(50):
                    packed.add(folder / "GHSA-1.json", f"{number}.json")
            origin.write_bytes(origin.read_bytes()[:-40])
        case "wrong digest":
            origin, wanted, more = folder, FeedDigestMismatch, {"digest": "sha256:" + "0" * 64}
        case "future":
            origin, more = folder, {"made": "2027-11-22"}
        case "no date":
            origin.mkdir()
            (origin / "a.json").write_text(json.dumps(RECORD | {"modified": ""}))
        case "junk":
            origin.write_bytes(os.urandom(10_000))
        case "gone":
            pass
    with pytest.raises(wanted):
        import_feed(feed, kind, origin, name="osv", today=TODAY, **more)  # type: ignore[arg-type]
    assert feed.read_bytes() == before
    assert {path.name for path in feed.parent.iterdir()} == {"feed.sqlite", ".feed.sqlite.lock"}


def test_age_and_a_clock_that_is_wrong(feed: Path, folder: Path) -> None:
    source = import_feed(feed, "osv", folder, name="osv", today=TODAY)
    assert age_days(source, TODAY) == 2
    check_fresh([source], TODAY, 2)
    with pytest.raises(FeedStale, match="2 days old; 1 are allowed"):
        check_fresh([source], TODAY, 1)
    with pytest.raises(FeedStale, match="clock"):
        check_fresh([source], date(1970, 1, 2), 10_000)


@pytest.mark.parametrize("damage", ["not complete", "rows", "junk", "cut off", "empty file"])
def test_a_damaged_feed_is_refused(feed: Path, folder: Path, damage: str) -> None:
    import_feed(feed, "osv", folder, name="osv", today=TODAY)
    feed.chmod(0o600)
    match damage:
        case "not complete" | "rows":
            database = sqlite3.connect(feed)
            database.execute(
                "DELETE FROM meta WHERE key = 'complete'" if damage == "not complete" else "DELETE FROM affected"
            )
            database.commit()
            database.close()
        case "junk":
            feed.write_bytes(os.urandom(8192))
        case "cut off":
            feed.write_bytes(feed.read_bytes()[:5000])
        case "empty file":
            feed.write_bytes(b"")
    with pytest.raises(FeedInvalid):
        open_feed(feed, thorough=True)


def test_two_imports_at_once(feed: Path, folder: Path) -> None:
    import_feed(feed, "osv", folder, name="osv", today=TODAY)
    with (feed.parent / ".feed.sqlite.lock").open("r") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FeedBusy):
            import_feed(feed, "osv", folder, name="osv", today=TODAY)


KILLED = """
import os, signal, sys
from datetime import date
from pathlib import Path
from casemate.trust.feed.apply import import_feed
calls = 0
def trace(frame, event, argument):
    global calls
    if event == "call" and "casemate/trust/feed" in frame.f_code.co_filename:
        calls += 1
        if calls == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(trace)
import_feed(Path(sys.argv[1]), "osv", Path(sys.argv[2]), name="osv", today=date(2026, 11, 22))
print(calls)
"""


def test_a_kill_at_each_step_leaves_the_old_or_the_new_feed(feed: Path, folder: Path) -> None:
    import_feed(feed, "osv", folder, name="osv", today=TODAY)
    (folder / "GHSA-2.json").write_text(json.dumps(RECORD | {"id": "GHSA-2"}))

    def attempt(step: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, str(feed), str(folder), str(step)]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": ":".join(sys.path)}
        )

    backup = feed.with_name("backup")
    shutil.copy(feed, backup)
    whole = attempt(0)
    assert whole.returncode == 0, whole.stderr
    steps = int(whole.stdout)
    assert steps > 20
    for step in range(1, steps, max(1, steps // 12)):
        shutil.copy(backup, feed.with_name("again"))
        feed.with_name("again").replace(feed)
        assert attempt(step).returncode == -signal.SIGKILL
        database, sources = open_feed(feed, thorough=True)
        database.close()
        assert sources[0].advisories in (1, 2)
    import_feed(feed, "osv", folder, name="osv", today=TODAY)
    assert not list(feed.parent.glob("*.tmp"))


def test_ignores(feed: Path, folder: Path) -> None:
    import_feed(feed, "osv", folder, name="osv", today=TODAY)
    findings = matched(feed, image(Package("pypi", "requests", "2"))).findings
    fine = Ignore("CVE-2026-1111", "not reachable", "ada", "2026-12-31", "requests")
    judged = judge(findings, [fine, Ignore("CVE-1", "r", "bob", "2026-12-01")], TODAY)
    assert (judged.findings, len(judged.ignored)) == ((), 1)
    assert judged.warnings == ("the ignore of CVE-1 (bob) matches nothing any more",)
    ended = judge(findings, [Ignore("GHSA-1", "r", "ada", "2026-11-21")], TODAY)
    assert len(ended.findings) == 1
    assert "ended on 2026-11-21" in ended.warnings[0]
    assert check_ignore(fine, TODAY) is fine
    for bad in (
        Ignore("x", "", "a", "2026-12-01"),
        Ignore("x", "r", "", "2026-12-01"),
        Ignore("x", "r", "a", "2099-01-01"),
    ):
        with pytest.raises(IgnoreInvalid):
            check_ignore(bad, TODAY)


#: Lines that say that a release was never affected.
NOT_AFFECTED = 55


@needs_data
def test_debian_s_real_advisories(feed: Path) -> None:
    found = import_feed(
        feed, "debian-advisories", DATA / "debian_dsa_dla.tsv.gz", name="dsa", today=TODAY, made="2023-03-30"
    )
    assert found.rows == 10_523 - NOT_AFFECTED
    xorg = Package("deb", "xserver-xorg-core", "2:1.20.11-1+deb11u5", source="xorg-server")
    result = matched(feed, image(xorg, version="11"))
    assert "DSA-5380-1" in {row.ident for row in result.findings}
    repaired = Package("deb", "xserver-xorg-core", "2:1.20.11-1+deb11u6", source="xorg-server")
    assert matched(feed, image(repaired, version="11")).findings == ()


@needs_data
def test_almalinux_s_real_records(feed: Path) -> None:
    found = import_feed(feed, "osv", DATA / "almalinux8-osv.tar.xz", name="alma", today=TODAY)
    assert (found.rows, found.doubtful) == (40_838, 0)
    old, new = (
        Package("rpm", "NetworkManager-libnm-devel", version) for version in ("1:1.26.0-13.el8", "1:1.26.0-14.el8_3")
    )
    assert "ALBA-2021:1099" in {
        row.ident for row in matched(feed, image(old, ident="almalinux", version="8.5")).findings
    }
    assert "ALBA-2021:1099" not in {
        row.ident for row in matched(feed, image(new, ident="almalinux", version="8.5")).findings
    }
