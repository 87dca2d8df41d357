"""What runs already, when the policy, a feed or the day changes."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.integration.trust.conftest import TRACKER, Casemate, debian_tar, imported, tracker

pytestmark = pytest.mark.root
pytest.importorskip("cel", reason="missing: common-expression-language")
pytest.importorskip("cvss", reason="missing: cvss")
TODAY = datetime.now(UTC).date().isoformat()
REPAIRED = {**TRACKER, "openssl": {"CVE-2026-1001": TRACKER["openssl"]["CVE-2026-1001"]}}
WAIT_S = 30.0

POLICY = """
apiVersion: casemate/v1
kind: TrustPolicy
metadata: {name: test}
spec:
  rules:
    - name: here
      prefix: local
      running: RUNNING
      grades:
        - name: high-and-fixable
          when: "findings.exists(f, f.severity == 'high' && f.fixable)"
          then: THEN
"""


@pytest.fixture(scope="module")
def image(casemate: Casemate) -> str:
    return imported(casemate, "debian-like", debian_tar())


@pytest.fixture(autouse=True)
def emptied(casemate: Casemate) -> None:
    for row in casemate.json("ps", "-a"):  # type: ignore[attr-defined]
        casemate.run("rm", "-f", row["id"])
    for row in casemate.json("trust", "policy", "ls")["policies"]:  # type: ignore[index,call-overload]
        casemate.run("trust", "policy", "rm", row["name"])


def policy(casemate: Casemate, folder: Path, running: str, then: str = "refuse") -> str:
    path = folder / "policy.yaml"
    path.write_text(POLICY.replace("RUNNING", running).replace("THEN", then))
    return str(path)


def feed(casemate: Casemate, folder: Path, found: object = TRACKER) -> None:
    path = str(tracker(folder, found))
    casemate.run("feed", "import", "debian-tracker", path, "--date", TODAY, "--name", "debian")


def running(casemate: Casemate, image: str, *flags: str) -> str:
    return casemate.run("run", "-d", "--stop-timeout", "1", *flags, "--name", "one", image, "sleep", "600").strip()


def state(casemate: Casemate) -> dict[str, object]:
    found = casemate.json("inspect", "one")
    assert isinstance(found, list)
    return dict(found[0])


def until(casemate: Casemate, status: str) -> dict[str, object]:
    deadline = time.monotonic() + WAIT_S
    while True:
        found = state(casemate)
        if found["summary"]["status"] == status:  # type: ignore[index]
            return found
        assert time.monotonic() < deadline, casemate.daemons.journal("casemated")[-3000:]
        time.sleep(0.1)


def told(casemate: Casemate, action: str, id_: str) -> list[dict[str, object]]:
    """Events of the container, once there is one of *action*."""
    deadline = time.monotonic() + WAIT_S
    while True:
        rows = [
            row for row in casemate.daemons.client.events(follow=False) if row.action == action and row.subject == id_
        ]
        if rows:
            return [row.facts for row in rows]
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(("does", "status"), [("stop", "exited"), ("quarantine", "paused"), ("report", "running")])
def test_an_advisory_appears(casemate: Casemate, image: str, tmp_path: Path, does: str, status: str) -> None:
    feed(casemate, tmp_path, REPAIRED)
    casemate.run("trust", "policy", "apply", policy(casemate, tmp_path, does))
    # Without a network of its own there is nothing to cut off: it is frozen.
    id_ = running(casemate, image, "--network", "none")
    feed(casemate, tmp_path)
    found = until(casemate, status)
    facts = [
        row.facts
        for row in casemate.daemons.client.events(follow=False)
        if row.action == "judged" and row.subject == id_
    ]
    if does == "report":
        facts = told(casemate, "judged", id_)
        found = state(casemate)
        assert found["summary"]["status"] == "running"  # type: ignore[index]
    assert facts[-1]["answer"] == "refuse"
    assert facts[-1]["rule"] == "here"
    assert facts[-1]["does"] == does
    assert facts[-1]["because"] == "feed debian changed"
    assert found["admission"]["answer"] == "refuse"  # type: ignore[index]
    if does == "quarantine":
        assert found["summary"]["labels"]["casemate/quarantine"] == "quarantine"  # type: ignore[index]
        assert told(casemate, "policy", id_)[-1]["done"] == "frozen: feed debian changed"
        casemate.run("unpause", "one")  # root holds the grant
        assert "casemate/quarantine" not in str(state(casemate)["summary"])
    if does == "stop":
        assert casemate.ended("start", "one").returncode != 0


def test_a_quarantine_cuts_off_and_is_released_by_a_person(casemate: Casemate, image: str, tmp_path: Path) -> None:
    feed(casemate, tmp_path, REPAIRED)
    casemate.run("trust", "policy", "apply", policy(casemate, tmp_path, "quarantine"))
    id_ = running(casemate, image)
    feed(casemate, tmp_path)
    assert told(casemate, "policy", id_)[-1]["done"] == "cut off in the network: feed debian changed"
    assert state(casemate)["summary"]["status"] == "running"  # type: ignore[index]
    assert "default/one" in casemate.run("quarantine", "ls")
    casemate.run("quarantine", "release", "one", "--reason", "looked into")
    assert "default/one" not in casemate.run("quarantine", "ls")


def test_a_restart_policy_does_not_bring_back_what_is_refused(casemate: Casemate, image: str, tmp_path: Path) -> None:
    feed(casemate, tmp_path, REPAIRED)
    casemate.run("trust", "policy", "apply", policy(casemate, tmp_path, "report"))
    loop = "while [ ! -e /tmp/end ]; do sleep 0.1; done"
    id_ = casemate.run("run", "-d", "--restart", "always", "--name", "one", image, "sh", "-c", loop).strip()
    feed(casemate, tmp_path)
    told(casemate, "judged", id_)
    casemate.run("exec", "one", "touch", "/tmp/end")
    until(casemate, "exited")
    assert told(casemate, "refuse", id_)[-1]["code"] == "trust.refused"


def test_a_dry_run_says_what_would_change_and_changes_nothing(casemate: Casemate, image: str, tmp_path: Path) -> None:
    feed(casemate, tmp_path)
    running(casemate, image)
    before = state(casemate)
    found = casemate.json("trust", "policy", "dry-run", policy(casemate, tmp_path, "stop"))
    assert isinstance(found, dict)
    (change,) = found["changes"]
    assert (change["name"], change["answer"], change["answer_then"], change["does"]) == (
        "one", "admit", "refuse", "stop",
    )  # fmt: skip
    assert "1 of 1 containers" in casemate.run("trust", "policy", "dry-run", policy(casemate, tmp_path, "stop"))
    assert state(casemate) == before
    assert casemate.json("trust", "policy", "ls") == {"policies": []}


def test_a_kill_in_the_middle_converges(casemate: Casemate, image: str, tmp_path: Path) -> None:
    feed(casemate, tmp_path, REPAIRED)
    casemate.run("trust", "policy", "apply", policy(casemate, tmp_path, "stop"))
    running(casemate, image)
    feed(casemate, tmp_path)
    casemate.daemons.kill("casemated")  # before, while or after it acts
    casemate.daemons.start()
    until(casemate, "exited")


def test_labels_of_our_own_cannot_be_set(casemate: Casemate, image: str) -> None:
    running(casemate, image, "--label", "casemate/quarantine=no", "--label", "casemate/segment=vip", "--label", "a=b")
    assert state(casemate)["summary"]["labels"] == {"a": "b"}  # type: ignore[index]
