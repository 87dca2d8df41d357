"""Feeds from a mirror whose manifest is signed: made with the command line, served, believed or not."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.integration.trust.conftest import Casemate, tracker
from tests.integration.trust.mirror import Mirror, serving

pytestmark = pytest.mark.root
pytest.importorskip("cvss", reason="missing: cvss")
TODAY = datetime.now(UTC).date().isoformat()


class Maker:
    """Who signs feeds: a folder, a key, and what the mirror shows of it."""

    def __init__(self, casemate: Casemate, folder: Path) -> None:
        self.casemate, self.folder, self.site = casemate, folder, folder / "site"
        self.site.mkdir()
        for name in ("a", "b"):
            casemate.run("trust", "key", "new", "--no-passphrase", str(folder / name))
        tracker(self.site).rename(self.site / "debian.json")
        row = {"name": "debian", "kind": "debian-tracker", "file": "debian.json", "date": TODAY}
        (self.site / "feeds.json").write_text(json.dumps({"feeds": [row]}))

    def sign(self, *flags: str, key: str = "a") -> str:
        told = self.casemate.run("feed", "sign", "--key", str(self.folder / f"{key}.key"), *flags, str(self.site))
        self.show()
        return told

    def show(self) -> None:
        Mirror.files = {path.name: path.read_bytes() for path in self.site.iterdir()}

    def update(self, url: str, *more: str, key: str = "a") -> tuple[int, str]:
        trusted = ("--trusted-key", str(self.folder / f"{key}.pub"))
        done = self.casemate.ended("feed", "update", "-q", "--url", url, *trusted, *more)
        return done.returncode, (done.stdout + done.stderr).decode()


@pytest.fixture
def maker(casemate: Casemate, tmp_path: Path) -> Maker:
    for row in casemate.json("feed", "ls")["feeds"]:  # type: ignore[index,call-overload]
        casemate.run("feed", "rm", row["name"])
    (casemate.state / "trust/mirror.json").unlink(missing_ok=True)
    return Maker(casemate, tmp_path)


def test_what_its_maker_signed_is_taken_and_never_something_older(maker: Maker) -> None:
    with serving() as url:
        assert "version 1, 1 feeds, until" in maker.sign()
        first = Mirror.files["manifest.json"]
        assert maker.update(url) == (0, f"debian: imported 3 rows of {TODAY}\n")
        assert "version 2" in maker.sign()
        assert maker.update(url) == (0, "debian: unchanged\n")
        Mirror.files["manifest.json"] = first
        code, told = maker.update(url)
        assert code == 125
        assert "version 1; 2 was seen" in told
        # Whose word nobody asked for, and whose is not signed at all.
        maker.show()
        assert "signatures of 0 of the 1 keys" in maker.update(url, key="b")[1]
        rows = [{"name": "debian", "kind": "debian-tracker", "file": "debian.json", "sha256": "ab" * 32}]
        Mirror.files["manifest.json"] = json.dumps({"feeds": rows}).encode()
        assert "is not signed" in maker.update(url)[1]
    assert [row["name"] for row in maker.casemate.json("feed", "ls")["feeds"]] == ["debian"]  # type: ignore[index,call-overload]


def test_two_keys_at_two_places(maker: Maker) -> None:
    both = ("--trusted-key", str(maker.folder / "b.pub"), "--threshold", "2")
    with serving() as url:
        maker.sign()
        assert "2 are wanted" in maker.update(url, *both)[1]
        assert "version 1" in maker.sign("--add", key="b")
        assert maker.update(url, *both)[0] == 0
        assert maker.update(url, *both, "--threshold", "3")[0] == 125


def test_what_a_key_was_seen_with_is_kept_before_anything_is_fetched(maker: Maker) -> None:
    with serving() as url:
        maker.sign("--version", "9")
        del Mirror.files["debian.json"]
        assert "answers 404" in maker.update(url)[1]
        assert b'"version":9' in (maker.casemate.state / "trust/mirror.json").read_bytes()
        (maker.casemate.state / "trust/mirror.json").write_bytes(b"{")
        code, told = maker.update(url)
        assert code == 125
        assert "cannot be read" in told


def test_a_manifest_of_yesterday_and_a_list_that_is_none(maker: Maker) -> None:
    with serving() as url:
        maker.sign("--days", "0")
        assert maker.update(url)[0] == 0
    for text in ("", "{}", '{"feeds": [1]}', '{"feeds": [{"name": "a", "kind": "magic", "file": "x"}]}'):
        (maker.site / "feeds.json").write_text(text)
        done = maker.casemate.ended("feed", "sign", "--key", str(maker.folder / "a.key"), str(maker.site))
        assert done.returncode == 125, text
    assert maker.casemate.ended("feed", "sign", str(maker.site)).returncode == 125
