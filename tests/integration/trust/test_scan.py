"""``image scan`` and ``feed`` from the command line to the files and back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.integration.trust.conftest import Casemate, debian_tar, imported, tracker

pytestmark = pytest.mark.root
pytest.importorskip("cvss", reason="missing: cvss")
TODAY = datetime.now(UTC).date().isoformat()


@pytest.fixture(scope="module")
def image(casemate: Casemate) -> str:
    return imported(casemate, "debian-like", debian_tar())


def test_from_nothing_to_a_judged_image(casemate: Casemate, image: str, tmp_path: Path) -> None:
    # No feed: an error, not a clean image; a bill of materials needs none.
    done = casemate.ended("image", "scan", image)
    assert done.returncode == 125, done.stdout
    assert b"no feed was imported" in done.stderr
    assert casemate.json("feed", "ls")["feeds"] == []  # type: ignore[index]
    assert casemate.ended("feed", "verify").returncode == 2
    bill = json.loads(casemate.run("image", "scan", "--sbom", "cyclonedx", image))
    assert {row["name"] for row in bill["components"]} >= {"openssl", "libssl3", "zlib1g"}

    told = casemate.run("feed", "import", "debian-tracker", str(tracker(tmp_path)), "--date", TODAY, "--name", "debian")
    assert "debian: 3 rows" in told
    assert "Debian:12" in casemate.run("feed", "ls")
    casemate.run("feed", "verify")

    found = casemate.json("image", "scan", image)
    assert isinstance(found, dict)
    assert found["whole"], found["gaps"]
    # Both binaries of the source are found; zlib is repaired.
    assert {(row["id"], row["package"]) for row in found["findings"]} == {
        (ident, name) for ident in ("CVE-2026-1000", "CVE-2026-1001") for name in ("openssl", "libssl3")
    }
    (upgrade,) = found["upgrades"]
    assert (upgrade["package"], upgrade["to"], upgrade["repaired"], upgrade["open"]) == (
        "openssl", "3.0.13-1~deb12u1", 1, 1,
    )  # fmt: skip
    assert [(row["path"], row["rule"]) for row in found["secrets"]] == [("root/.env", "private-key")]
    assert [(row["path"], row["mode"]) for row in found["setuid"]] == [("bin/su", "4755")]
    assert found["end_of_life"] == "2028-06-30"

    table = casemate.run("image", "scan", image)
    for text in ("3.0.13-1~deb12u1", "private-key", "root/.env", "Repaired by its maker until 2028-06-30", "bin/su"):
        assert text in table
    assert casemate.ended("image", "scan", "--fail-on", "high", image).returncode == 1
    assert casemate.ended("image", "scan", "--fail-on", "critical", image).returncode == 0

    page = tmp_path / "scan.html"
    casemate.run("image", "scan", "--html", str(page), image)
    html = page.read_text()
    assert "3.0.13-1~deb12u1" in html
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    sarif = json.loads(casemate.run("image", "scan", "--sarif", image))
    assert sarif["version"] == "2.1.0"
    assert len(sarif["runs"][0]["results"]) == 4
    assert json.loads(casemate.run("image", "scan", "--sbom", "spdx", image))["spdxVersion"] == "SPDX-2.3"


def test_a_layer_of_an_older_casemate_is_listed_when_it_is_asked_for(
    casemate: Casemate, image: str, tmp_path: Path
) -> None:
    casemate.run("feed", "import", "debian-tracker", str(tracker(tmp_path)), "--date", TODAY, "--name", "debian")
    before = casemate.json("image", "scan", image)
    for damage in ("gone", "junk"):
        (path,) = (casemate.state / "contents").rglob("*.json")
        path.unlink()
        if damage == "junk":
            path.write_text("{")
        assert casemate.json("image", "scan", image) == before
    assert casemate.run("run", "--rm", image, "echo", "still runs") == "still runs\n"


def test_what_no_feed_speaks_of_is_never_clean(casemate: Casemate, tmp_path: Path) -> None:
    casemate.run("feed", "import", "debian-tracker", str(tracker(tmp_path)), "--date", TODAY, "--name", "debian")
    other = imported(casemate, "plan9", debian_tar(**{"etc/os-release": b"ID=debian\nVERSION_ID=7\n"}))
    done = casemate.ended("image", "scan", other)
    assert done.returncode == 2
    assert b"Not judged: no feed speaks of Debian:7" in done.stdout
    broken = imported(casemate, "broken", debian_tar(**{"var/lib/dpkg/status": b"Package: x\nVersion: \x00\n\n"}))
    done = casemate.ended("image", "scan", broken)
    assert done.returncode == 2
    assert b"cannot be read" in done.stdout


def test_a_stale_feed_and_one_of_the_future(casemate: Casemate, image: str, tmp_path: Path) -> None:
    path = str(tracker(tmp_path))
    casemate.run("feed", "import", "debian-tracker", path, "--date", "2024-01-01", "--name", "debian")
    done = casemate.ended("image", "scan", image)
    assert done.returncode == 2
    assert b"days old" in done.stdout
    assert casemate.ended("feed", "verify").returncode == 2
    done = casemate.ended("feed", "import", "debian-tracker", path, "--date", "2999-01-01", "--name", "debian")
    assert done.returncode == 125
    assert b"clock" in done.stderr


def test_what_goes_when_the_image_goes(casemate: Casemate) -> None:
    name = imported(casemate, "short-lived", debian_tar(**{"etc/motd": b"only here"}))
    lists = set((casemate.state / "contents").rglob("*.json"))
    casemate.run("image", "rm", name)
    assert len(lists - set((casemate.state / "contents").rglob("*.json"))) == 1
    assert not list((casemate.state / "uploads").iterdir())
