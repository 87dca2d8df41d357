"""A publisher's folder from the command line, followed by the daemon from a folder and over HTTP: what a tag means."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.registry import running_registry
from tests.integration.trust.conftest import Casemate, debian_tar, imported

from casemate.trust.freshness.apply import locked

pytestmark = pytest.mark.root
pytest.importorskip("tuf", reason="missing: tuf")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


class Site:
    """A publisher's folder with its keys."""

    def __init__(self, casemate: Casemate, folder: Path) -> None:
        self.casemate = casemate
        self.folder = folder
        self.keys = folder.parent / "keys"
        self.keys.mkdir()
        for name in ("root", "targets", "online", "team", "other"):
            casemate.run("trust", "key", "new", "--no-passphrase", str(self.keys / name))
        self("init", "root", "targets", "online", more=(
            "--root", self.pub("root"), "--targets", self.pub("targets"), "--online", self.pub("online"),
        ))  # fmt: skip
        shutil.copy(folder / "1.root.json", folder.parent / "first-root.json")

    def pub(self, name: str) -> str:
        return str(self.keys / f"{name}.pub")

    def __call__(self, command: str, *keys: str, more: tuple[str, ...] = (), code: int = 0) -> dict[str, Any]:
        flags = [word for name in keys for word in ("--key", str(self.keys / f"{name}.key"))]
        if command == "init":
            words = ["init", *flags, *more, str(self.folder)]
        else:
            words = [*command.split(), *flags, str(self.folder), *more]
        found = self.casemate.json("trust", *words, code=code)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def site(casemate: Casemate) -> Site:
    """In the daemons' own folder: pytest's are root's alone, and casemated is not root."""
    folder = Path(tempfile.mkdtemp(dir=casemate.daemons.scope.folder))
    folder.chmod(0o755)
    return Site(casemate, folder / "site")


def push(casemate: Casemate, name: str, word: str) -> str:
    """An image with *word* in it at the registry; its digest."""
    imported(casemate, name, debian_tar(**{"etc/word": word.encode()}))
    pushed = casemate.json("push", "--plain-http", name)
    casemate.run("rmi", "-f", name)
    assert isinstance(pushed, dict)
    return str(pushed["result"]["digest"])


def refused(casemate: Casemate, *argv: str) -> str:
    done = casemate.ended("--json", *argv)
    assert done.returncode == 125, done.stdout
    return str(json.loads(done.stderr.splitlines()[-1])["code"])


def test_a_tag_means_what_its_publisher_signed(casemate: Casemate, registry: str, site: Site) -> None:
    name = f"{registry}/web/shop:1"
    good = push(casemate, name, "good")
    casemate.run("trust", "tag", name)
    source = ("trust", "source", "add", "shop", str(site.folder), "--repository", f"{registry}/web")
    casemate.run(*source, "--root", str(site.folder.parent / "first-root.json"))
    try:
        assert refused(casemate, "pull", "--plain-http", name) == "trust.tag_unknown"
        told = casemate.run("trust", "publish", "--plain-http", "--key", str(site.keys / "targets.key"),
                            "--key", str(site.keys / "online.key"), str(site.folder), name)  # fmt: skip
        assert good in told
        casemate.run("trust", "source", "refresh", "shop")
        casemate.run("pull", "--quiet", "--plain-http", name)
        assert good in casemate.run("trust", "tag", name)
        assert casemate.run("run", "--rm", name, "cat", "/etc/word") == "good"

        assert f"is {good}" in casemate.run("trust", "why", name)
        # Somebody moves the tag at the registry: neither pulled, nor run under that name.
        push(casemate, name, "evil")
        assert refused(casemate, "pull", "--plain-http", name) == "image.digest_unpublished"
        imported(casemate, name, debian_tar(**{"etc/word": b"evil"}))
        assert refused(casemate, "run", "--rm", name, "cat", "/etc/word") == "image.digest_unpublished"
        assert "publisher shop signed" in casemate.run("trust", "why", name, code=None)
        key = ("--key", site.pub("team"), name)
        assert refused(casemate, "trust", "verify", "--plain-http", *key) == "image.digest_unpublished"
        assert refused(casemate, "trust", "verify", "--offline", *key) == "image.digest_unpublished"
        # By digest nobody resolves a tag, and elsewhere nobody is followed.
        casemate.run("pull", "--quiet", "--plain-http", f"{name.rpartition(':')[0]}@{good}")

        # The publisher takes it back.
        site("revoke", "targets", "online", more=(name,))
        casemate.run("trust", "source", "refresh", "shop")
        assert refused(casemate, "run", "--rm", name, "true") == "trust.tag_unknown"
    finally:
        casemate.run("trust", "source", "rm", "shop")
        casemate.ended("rmi", "-f", name)
    assert casemate.json("trust", "source", "ls") == []


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_publisher_over_http_that_shows_the_past(
    casemate: Casemate, registry: str, site: Site, tmp_path: Path
) -> None:
    name = f"{registry}/net/app:1"
    digest = "sha256:" + "ab" * 32
    site("publish", "targets", "online", more=(name, "--digest", digest))
    old = tmp_path / "old"
    shutil.copytree(site.folder, old)
    handler = functools.partial(_Quiet, directory=str(site.folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        casemate.run("trust", "source", "add", "net", url, "--repository", f"{registry}/net",
                     "--root", str(site.folder.parent / "first-root.json"))  # fmt: skip
        site("publish", "online")
        site("rotate", "root", "other", "online", "targets", more=("root", site.pub("root"), site.pub("other")))
        (row,) = casemate.json("trust", "source", "refresh", "net")  # type: ignore[misc]
        assert row["versions"]["root"] == 2
        # The mirror shows yesterday's files.
        for path in old.glob("*.json"):
            shutil.copy(path, site.folder / path.name)
        assert refused(casemate, "trust", "source", "refresh", "net") == "trust.tuf_rollback"
        (row,) = casemate.json("trust", "source", "ls")  # type: ignore[misc]
        assert row["error"].startswith("trust.tuf_rollback")
        # What was believed before stands.
        assert digest in casemate.run("trust", "tag", name)
        (site.folder / "timestamp.json").write_text("junk")
        assert refused(casemate, "trust", "source", "refresh", "net") == "trust.tuf_invalid"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    # Away is no fault while what is kept has not ended; the next pull asks the registry as before.
    assert refused(casemate, "pull", "--plain-http", name) in ("image.not_found", "trust.tuf_invalid")
    casemate.run("trust", "source", "rm", "net")
    assert refused(casemate, "trust", "source", "refresh", "net") == "trust.publisher_not_found"


def test_teams_thresholds_and_signatures_that_wait(casemate: Casemate, site: Site, tmp_path: Path) -> None:
    prefix = "registry.example/team"
    more = ("team", site.pub("team"), "--repository", prefix)
    found = site("delegate", "targets", "online", more=more)
    assert set(found["waiting"]) == {"team"}
    found = site("publish", "team", "online", more=(f"{prefix}/app:1", "--digest", "sha256:" + "cd" * 32))
    assert "team.json" in found["published"]
    found = site("key add", "root", more=("targets", site.pub("other"), "--threshold", "2"))
    assert not found["published"]
    assert "targets" in found["waiting"]
    found = site("countersign", "targets", "online")
    assert "targets" in found["waiting"]
    found = site("countersign", "other", "online")
    assert {"2.root.json", "targets.json", "timestamp.json"} <= set(found["published"])
    shown = casemate.run("trust", "show", str(site.folder))
    assert "2 of" in shown
    assert f"{prefix}/app:1" in shown
    found = site("revoke", "targets", "other", "online", more=(
        "--role", "targets", "--public-key", site.pub("other"), "--threshold", "1"))  # fmt: skip
    assert "root" in found["waiting"]  # root says who signs for targets


def test_two_commands_at_one_folder(casemate: Casemate, site: Site) -> None:
    with locked(str(site.folder)):
        assert refused(casemate, "trust", "show", str(site.folder)) == "trust.repository_busy"
