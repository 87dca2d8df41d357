"""One digest from the registry to the container: resolved, verified, scanned, admitted, run, recorded."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.integration.registry import running_registry
from tests.integration.trust.conftest import TRACKER, Casemate, debian_tar, imported, tracker

pytestmark = pytest.mark.root
pytest.importorskip("cel", reason="missing: common-expression-language")
pytest.importorskip("cvss", reason="missing: cvss")
TODAY = datetime.now(UTC).date().isoformat()
WAIT_S = 60.0


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(autouse=True)
def emptied(casemate: Casemate) -> Iterator[None]:
    yield
    for row in casemate.json("trust", "policy", "ls")["policies"]:  # type: ignore[index,call-overload]
        casemate.run("trust", "policy", "rm", row["name"])
    for row in casemate.json("ps", "-a"):  # type: ignore[attr-defined]
        casemate.run("rm", "-f", row["id"])


def pushed(casemate: Casemate, name: str, word: str) -> str:
    """An image of its own content at the registry, and no more here; its digest."""
    imported(casemate, name, debian_tar(**{"etc/word": word.encode()}))
    ended = casemate.json("push", "--plain-http", name)
    casemate.run("rmi", name)
    assert isinstance(ended, dict)
    return str(ended["result"]["digest"])


def applied(casemate: Casemate, folder: Path, **spec: Any) -> None:
    document = {"apiVersion": "casemate/v1", "kind": "TrustPolicy", "metadata": {"name": "test"}, "spec": spec}
    path = folder / "policy.json"
    path.write_text(json.dumps(document))
    casemate.run("trust", "policy", "apply", str(path))


def admission(casemate: Casemate, name: str) -> dict[str, Any]:
    found = casemate.json("inspect", name)
    assert isinstance(found, list)
    return dict(found[0]["admission"])


def test_one_digest_from_the_registry_to_the_container(casemate: Casemate, registry: str, tmp_path: Path) -> None:
    casemate.run("trust", "key", "new", "--no-passphrase", str(tmp_path / "ada"))
    name = f"{registry}/team/app:1"
    digest = pushed(casemate, name, "signed")
    signer = {"type": "key", "name": "ada", "key": (tmp_path / "ada.pub").read_text()}
    grade = {"name": "high", "when": "findings.exists(f, f.severity == 'high')", "then": "raise", "level": "namespace",
             "segment": "quarantine-egress"}  # fmt: skip
    rule = {"name": "team", "prefix": f"{registry}/team", "signers": ["ada"], "max_feed_age_days": 3, "grades": [grade]}
    applied(casemate, tmp_path, signers=[signer], rules=[rule])
    casemate.run("feed", "import", "debian-tracker", str(tracker(tmp_path)), "--date", TODAY, "--name", "debian")

    casemate.run("pull", "--quiet", "--plain-http", name)
    done = casemate.ended("create", "--name", "unsigned", name, "true")
    assert done.returncode == 125
    assert b"bears no signature" in done.stderr
    casemate.run("trust", "sign", "--plain-http", "--key", str(tmp_path / "ada.key"), name)
    casemate.run("pull", "--quiet", "--plain-http", name)
    casemate.run("create", "--name", "signed", name, "true")
    casemate.run("start", "signed")
    kept = admission(casemate, "signed")
    assert (kept["answer"], kept["policy"], kept["repository"], kept["digest"], kept["signers"]) == (
        "admit", "team", f"{registry}/team/app", digest, ["ada"],
    )  # fmt: skip
    assert kept["segment"] == "quarantine-egress"
    assert kept["counts"] == {"high": 2, "medium": 2}
    assert [text.partition(" ")[0] for text in kept["feeds"]] == ["debian"]
    found = casemate.json("inspect", "signed")
    assert found[0]["summary"]["labels"]["casemate/segment"] == "quarantine-egress"  # type: ignore[index]
    told = casemate.run("trust", "why", "signed")
    for text in ("signed by ada", digest, "quarantine-egress", "judged by: debian of"):
        assert text in told

    # The tag moves to something that nobody signed: what runs keeps its digest, what is new is refused.
    other = pushed(casemate, f"{registry}/other/app:1", "unsigned")
    casemate.run("pull", "--quiet", "--plain-http", f"{registry}/other/app:1")
    casemate.run("tag", f"{registry}/other/app:1", name)
    done = casemate.ended("create", name, "true")
    assert done.returncode == 125
    assert b"no rule covers" in done.stderr, done.stderr
    casemate.run("push", "--quiet", "--plain-http", name)
    casemate.run("pull", "--quiet", "--plain-http", name)
    done = casemate.ended("create", name, "true")
    assert b"bears no signature" in done.stderr
    assert other.encode() in done.stderr
    assert admission(casemate, "signed")["digest"] == digest
    casemate.run("start", "signed")
    casemate.run("wait", "signed")

    # The key is taken back: its signatures are nobody's any more.
    casemate.run("trust", "key", "new", "--no-passphrase", str(tmp_path / "bob"))
    applied(casemate, tmp_path, signers=[signer | {"key": (tmp_path / "bob.pub").read_text()}], rules=[rule])
    done = casemate.ended("start", "signed")
    assert done.returncode != 0
    assert b"none by ada" in done.stderr


def test_restarted_at_a_stronger_level(casemate: Casemate, tmp_path: Path) -> None:
    levels = casemate.daemons.client.info().levels
    stronger = next((level for level in ("gvisor",) if not levels.get(level, "unavailable").startswith("unav")), None)
    if stronger is None:
        pytest.skip("missing: isolation level gvisor")
    image = imported(casemate, "restarted", debian_tar())
    repaired = {"openssl": {"CVE-2026-1001": TRACKER["openssl"]["CVE-2026-1001"]}}
    casemate.run(
        "feed", "import", "debian-tracker", str(tracker(tmp_path, repaired)), "--date", TODAY, "--name", "debian"
    )
    grade = {"name": "high", "when": "findings.exists(f, f.severity == 'high')", "then": "raise", "level": stronger,
             "running": "restart"}  # fmt: skip
    applied(casemate, tmp_path, rules=[{"name": "here", "prefix": "local", "grades": [grade]}])
    casemate.run("run", "-d", "--name", "one", "--stop-timeout", "1", "-v", "kept:/data", image, "sleep", "600")
    casemate.run("exec", "one", "sh", "-c", "echo kept > /data/file; echo lost > /tmp/file")
    casemate.run("feed", "import", "debian-tracker", str(tracker(tmp_path)), "--date", TODAY, "--name", "debian")
    deadline = time.monotonic() + WAIT_S
    while True:
        row = casemate.json("inspect", "one")[0]["summary"]  # type: ignore[index,call-overload]
        if (row["level"], row["status"]) == (stronger, "running"):
            break
        assert time.monotonic() < deadline, casemate.daemons.journal("casemated")[-3000:]
        time.sleep(0.2)
    assert casemate.run("exec", "one", "cat", "/data/file") == "kept\n"
    assert casemate.ended("exec", "one", "cat", "/tmp/file").returncode != 0
    events = [row.facts for row in casemate.daemons.client.events(follow=False) if row.action == "policy"]
    assert events[-1]["done"] == f"restarted at {stronger}: feed debian changed"
    # Made anew now, at the level that is asked for.
    created = casemate.run("run", "-d", "--name", "two", image, "sleep", "600")
    assert created
    assert casemate.json("inspect", "two")[0]["summary"]["level"] == stronger  # type: ignore[index,call-overload]
