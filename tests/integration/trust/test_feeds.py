"""Feeds over a mirror, by two importers, through kills; and what a member of the group may not do."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.integration.daemons import SOURCE, USER
from tests.integration.trust.conftest import Casemate, tracker
from tests.integration.trust.mirror import Mirror, serving

pytestmark = pytest.mark.root
pytest.importorskip("cvss", reason="missing: cvss")
TODAY = datetime.now(UTC).date().isoformat()


@pytest.fixture
def mirror() -> Iterator[str]:
    with serving() as url:
        yield url


def offer(folder: Path, **changes: object) -> str:
    """Put a tracker on the mirror; the manifest's digest."""
    data = tracker(folder).read_bytes()
    row = {"name": "debian", "kind": "debian-tracker", "file": "debian.json",
           "sha256": hashlib.sha256(data).hexdigest(), "date": TODAY, **changes}  # fmt: skip
    manifest = json.dumps({"feeds": [row]}).encode()
    Mirror.files = {"manifest.json": manifest, "debian.json": data}
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


def names(casemate: Casemate) -> list[str]:
    return [row["name"] for row in casemate.json("feed", "ls")["feeds"]]  # type: ignore[index,call-overload]


@pytest.fixture(autouse=True)
def no_feeds(casemate: Casemate) -> None:
    for name in names(casemate):
        casemate.run("feed", "rm", name)
    casemate.run("feed", "rm", "nothing", code=125)


def test_an_update_by_digest(casemate: Casemate, tmp_path: Path, mirror: str) -> None:
    digest = offer(tmp_path)
    assert "no mirror of feeds is named" in casemate.ended("feed", "update").stderr.decode()
    assert "plain HTTP" in casemate.ended("feed", "update", "--url", mirror).stderr.decode()
    assert "debian: imported 3 rows" in casemate.run("feed", "update", "--url", mirror, "--digest", digest)
    assert "debian: unchanged" in casemate.run("feed", "update", "--url", mirror, "--digest", digest)
    assert [name for name, _ in Mirror.seen].count("debian.json") == 1
    assert names(casemate) == ["debian"]


def test_a_transfer_that_was_cut_goes_on(casemate: Casemate, tmp_path: Path, mirror: str) -> None:
    digest = offer(tmp_path)
    Mirror.cut = {"debian.json": 100}
    done = casemate.ended("feed", "update", "--url", mirror, "--digest", digest)
    assert done.returncode == 125
    assert b"broke off after 100" in done.stderr
    assert names(casemate) == []
    casemate.run("feed", "update", "--url", mirror, "--digest", digest)
    assert ("debian.json", "bytes=100-") in Mirror.seen
    assert not list((casemate.state / "trust/ingest").iterdir())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sha256": "00" * 32}, "the manifest says"),
        ({"file": "../../etc/passwd"}, "no file below"),
        ({"file": "gone.json"}, "answers 404"),
        ({"kind": "unheard-of"}, "the mirror's manifest"),
        ({"date": "2999-01-01"}, "clock"),
    ],
)
def test_what_a_mirror_gets_wrong(
    casemate: Casemate, tmp_path: Path, mirror: str, changes: dict[str, object], told: str
) -> None:
    digest = offer(tmp_path, **changes)
    done = casemate.ended("feed", "update", "--url", mirror, "--digest", digest, "--json")
    assert done.returncode == 125
    assert told in done.stderr.decode()
    if told.startswith("answers"):
        assert json.loads(done.stderr)["code"] == "trust.feed_mirror"
    assert names(casemate) == []


def test_a_manifest_of_another_digest(casemate: Casemate, tmp_path: Path, mirror: str) -> None:
    offer(tmp_path)
    done = casemate.ended("feed", "update", "--url", mirror, "--digest", "sha256:" + "00" * 32)
    assert b"is not sha256:0000" in done.stderr


def test_the_child_is_killed_in_the_middle(casemate: Casemate, tmp_path: Path) -> None:
    casemate.run("feed", "import", "debian-tracker", str(tracker(tmp_path)), "--date", TODAY, "--name", "kept")
    repaired = {"releases": {"bookworm": {"status": "resolved", "fixed_version": "1.0-1", "urgency": "low"}}}
    path = tracker(tmp_path, {f"package{number}": {f"CVE-2026-{number}": repaired} for number in range(60_000)})
    command = ["feed", "import", "debian-tracker", str(path), "--date", TODAY, "--name", "big", "--json"]
    ended: list[subprocess.CompletedProcess[bytes]] = []
    thread = threading.Thread(target=lambda: ended.append(casemate.ended(*command)))
    thread.start()
    pid = child_of(casemate)
    # A second importer meanwhile is refused, not interleaved.
    second = casemate.ended("feed", "import", "debian-tracker", str(path), "--date", TODAY, "--name", "second")
    os.kill(pid, signal.SIGKILL)
    thread.join()
    assert ended[0].returncode == 125
    assert json.loads(ended[0].stderr)["code"] == "trust.child_failed"
    assert second.returncode == 125
    assert b"another process imports" in second.stderr
    assert names(casemate) == ["kept"]
    casemate.run("feed", "verify")
    # What the killed one left goes with the next import.
    casemate.run("feed", "import", "debian-tracker", str(path), "--date", TODAY, "--name", "big")
    assert names(casemate) == ["big", "kept"]
    assert not list((casemate.state / "trust").glob(".*.tmp"))
    assert not list((casemate.state / "uploads").iterdir())


def child_of(casemate: Casemate) -> int:
    """The pid of the trust child that works for these daemons."""
    parent = str(casemate.daemons.processes["casemated"].pid)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    words = (folder / "cmdline").read_bytes().split(b"\0")
                    status = (folder / "status").read_text()
                except OSError:
                    continue
                ours = b"casemate.node.trust.worker" in words and f"PPid:\t{parent}\n" in status
                if ours and list((casemate.state / "trust").glob(".*.tmp")):
                    return int(folder.name)
        time.sleep(0.01)
    raise AssertionError("no trust child was seen at work")


def test_a_damaged_feed_is_an_error_everywhere(casemate: Casemate, tmp_path: Path) -> None:
    casemate.run("feed", "import", "debian-tracker", str(tracker(tmp_path)), "--date", TODAY, "--name", "debian")
    path = casemate.state / "trust/feed.sqlite"
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"junk" * 100):
        path.chmod(0o600)
        path.write_bytes(damaged)
        for command in (["feed", "ls"], ["feed", "verify"]):
            done = casemate.ended(*command, "--json")
            assert done.returncode == 125, command
            assert json.loads(done.stderr)["code"] == "trust.feed_invalid"
    path.unlink()


def test_who_may_not(casemate: Casemate) -> None:
    """The grant ``trust`` is asked of a member of the group: they could make everything look clean."""
    program = (
        "import sys; from casemate.sdk import Client, Transport\n"
        "from casemate.spec.errors import RemoteError\n"
        f"client = Client(Transport({str(casemate.daemons.socket)!r}))\n"
        "asked = (('POST', '/v1/trust/policy', b'{\"text\": \"x\"}'), ('DELETE', '/v1/feeds?name=x', None),\n"
        "    ('DELETE', '/v1/trust/policy?name=x', None), ('POST', '/v1/feeds/update', b'{\"url\": \"https://x\"}'))\n"
        "for method, path, body in asked:\n"
        "    try:\n        client.transport.ask(method, path, (), body)\n"
        "    except RemoteError as error:\n        print(error.problem['code'])\n"
    )
    command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(SOURCE)}, check=False)
    assert done.stdout.split() == ["access.grant_missing"] * 4, done
    assert casemate.ended("trust", "policy", "show", "none", "--json").stderr.count(b'"trust.policy_not_found"') == 1


RECORD = {
    "id": "GHSA-1",
    "modified": f"{TODAY}T00:00:00Z",
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "requests"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.31.0"}]}],
        }
    ],
}


def test_what_an_export_may_come_as(casemate: Casemate, tmp_path: Path) -> None:
    folder = tmp_path / "osv/PyPI"
    folder.mkdir(parents=True)
    (folder / "GHSA-1.json").write_text(json.dumps(RECORD))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(folder / "GHSA-1.json", "GHSA-1.json")
    with tarfile.open(tmp_path / "all.tar.xz", "w:xz") as packed:
        packed.add(folder, "PyPI")
    (tmp_path / "one.json.gz").write_bytes(gzip.compress(json.dumps(RECORD).encode()))
    for number, origin in enumerate((tmp_path / "osv", tmp_path / "all.zip", tmp_path / "all.tar.xz",
                                     tmp_path / "one.json.gz")):  # fmt: skip
        told = casemate.run("feed", "import", "osv", str(origin), "--name", f"osv-{number}")
        assert told == f"osv-{number}: 1 rows of {TODAY}\n"
    data = (tmp_path / "all.zip").read_bytes()
    casemate.run("feed", "import", "osv", "-", "--name", "piped", stdin=data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    casemate.run("feed", "import", "osv", "-", "--name", "piped", "--digest", digest, stdin=data)
    done = casemate.ended("feed", "import", "osv", "-", "--digest", digest, stdin=data + b"x")
    assert b"hashes to" in done.stderr
    for junk in (b"", b"{", b"[]", data[:-30], b"\x1f\x8b" + b"x" * 50, b"\xfd7zXZ\x00" + b"x" * 50):
        assert casemate.ended("feed", "import", "osv", "-", stdin=junk).returncode == 125, junk
    assert names(casemate) == ["osv-0", "osv-1", "osv-2", "osv-3", "piped"]
