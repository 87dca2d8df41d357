"""What runs already, when its publisher takes the tag back or moves it, and when new signatures come with a pull."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.registry import running_registry
from tests.integration.trust.conftest import Casemate
from tests.integration.trust.test_publishers import Site, push
from tests.integration.trust.test_running import WAIT_S, state, told, until

pytestmark = pytest.mark.root
pytest.importorskip("tuf", reason="missing: tuf")
pytest.importorskip("cel", reason="missing: common-expression-language")

POLICY = """
apiVersion: casemate/v1
kind: TrustPolicy
metadata: {name: test}
spec:
  SIGNERS
  rules:
    - {name: shop, prefix: "PREFIX", running: RUNNING MORE}
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture
def site(casemate: Casemate) -> Site:
    """In the daemons' own folder: pytest's are root's alone, and casemated is not root."""
    folder = Path(tempfile.mkdtemp(dir=casemate.daemons.scope.folder))
    folder.chmod(0o755)
    return Site(casemate, folder / "site")


@pytest.fixture(autouse=True)
def emptied(casemate: Casemate) -> Iterator[None]:
    yield
    casemate.ended("rm", "-f", "one")
    for row in casemate.json("trust", "policy", "ls")["policies"]:  # type: ignore[index,call-overload]
        casemate.run("trust", "policy", "rm", row["name"])
    for row in casemate.json("trust", "source", "ls"):  # type: ignore[attr-defined]
        casemate.run("trust", "source", "rm", row["name"])


def policy(casemate: Casemate, folder: Path, prefix: str, running: str, signers: str = "", more: str = "") -> None:
    path = folder / "policy.yaml"
    text = POLICY.replace("PREFIX", prefix).replace("RUNNING", running).replace("MORE", more)
    path.write_text(text.replace("SIGNERS", signers))
    casemate.run("trust", "policy", "apply", str(path))


def published(casemate: Casemate, site: Site, registry: str, name: str) -> str:
    """The image *name* at the registry, signed by its publisher, who is followed; its digest."""
    digest = push(casemate, name, "good")
    site("publish", "targets", "online", more=(name, "--digest", digest))
    casemate.run(
        "trust", "source", "add", "shop", str(site.folder), "--repository", f"{registry}/shop",
        "--root", str(site.folder.parent / "first-root.json"),
    )  # fmt: skip
    casemate.run("pull", "--quiet", "--plain-http", name)
    return digest


def running(casemate: Casemate, name: str) -> str:
    words = ("run", "-d", "--network", "none", "--stop-timeout", "1", "--name", "one", name, "sleep", "600")
    return casemate.run(*words).strip()


@pytest.mark.parametrize(
    ("does", "status"), [("stop", "exited"), ("quarantine", "paused"), ("restart", "exited"), ("report", "running")]
)
def test_a_tag_that_is_taken_back(
    casemate: Casemate, registry: str, site: Site, tmp_path: Path, does: str, status: str
) -> None:
    name = f"{registry}/shop/{does}:1"
    published(casemate, site, registry, name)
    policy(casemate, tmp_path, f"{registry}/shop", does)
    id_ = running(casemate, name)
    site("revoke", "targets", "online", more=(name,))
    casemate.run("trust", "source", "refresh", "shop")
    facts = told(casemate, "judged", id_)[-1]
    assert (facts["answer"], facts["was"], facts["rule"], facts["does"]) == ("refuse", "admit", "shop", does)
    assert facts["because"] == "publisher shop signed anew"
    until(casemate, status)
    if does != "report":
        assert str(told(casemate, "policy", id_)[-1]["done"]).endswith(": publisher shop signed anew")
    why = casemate.run("trust", "why", "one", code=None)
    assert "publisher" in why
    assert name in str(facts["reason"])
    assert str(facts["reason"])[:60] in why
    if does in ("stop", "restart"):  # refused at every level: a stronger one does not help, and it does not come back
        assert casemate.ended("start", "one").returncode != 0
        assert told(casemate, "refuse", id_)[-1]["code"] == "trust.refused"


def test_a_tag_that_is_moved_without_a_policy_is_reported_and_the_name_may_be_gone(
    casemate: Casemate, registry: str, site: Site
) -> None:
    name = f"{registry}/shop/moved:1"
    published(casemate, site, registry, name)
    id_ = running(casemate, name)
    casemate.run("rmi", "-f", name)
    casemate.run("pull", "--quiet", "--plain-http", name)
    other = "sha256:" + "cd" * 32
    site("publish", "targets", "online", more=(name, "--digest", other))
    casemate.run("trust", "source", "refresh", "shop")
    facts = told(casemate, "judged", id_)[-1]
    assert (facts["answer"], facts["does"]) == ("refuse", "report")
    assert other in str(facts["reason"])
    assert state(casemate)["summary"]["status"] == "running"  # type: ignore[index]
    casemate.run("stop", "-t", "0", "one")
    assert casemate.ended("start", "one").returncode != 0
    assert told(casemate, "refuse", id_)[-1]["code"] == "trust.refused"
    # Followed no more: what it said is no reason any more.
    casemate.run("trust", "source", "rm", "shop")
    casemate.run("start", "one")


def test_new_metadata_that_changes_no_tag_wakes_nobody(casemate: Casemate, registry: str, site: Site) -> None:
    name = f"{registry}/shop/same:1"
    published(casemate, site, registry, name)
    id_ = running(casemate, name)
    site("publish", "online")
    casemate.run("trust", "source", "refresh", "shop")
    assert "publisher" in casemate.run("trust", "why", "one")
    rows = casemate.daemons.client.events(follow=False)
    assert not [row for row in rows if row.subject == id_ and row.action == "judged"]


def test_signatures_that_come_later(casemate: Casemate, registry: str, tmp_path: Path) -> None:
    name = f"{registry}/signed/app:1"
    digest = push(casemate, name, "signed")
    casemate.run("pull", "--quiet", "--plain-http", name)
    id_ = running(casemate, name)
    casemate.run("trust", "key", "new", "--no-passphrase", str(tmp_path / "release"))
    key = (tmp_path / "release.pub").read_text().replace("\n", "\n        ")
    signers = f"signers:\n    - type: key\n      name: release\n      key: |\n        {key}"
    rule = (f"{registry}/signed", "report", signers, ", signers: [release], threshold: 1")
    policy(casemate, tmp_path, *rule)
    answered(casemate, id_, "refuse", "trust policy test was applied")
    casemate.run(
        "trust", "sign", "--plain-http", "--key", str(tmp_path / "release.key"), f"{name.rpartition(':')[0]}@{digest}"
    )
    answered(casemate, id_, "admit", "what vouches for")
    # As if it had been signed elsewhere: what this host keeps does not know of it.
    for path in casemate.state.rglob("evidence/*.json"):
        if path.is_file():
            path.unlink()
    policy(casemate, tmp_path, *rule)
    answered(casemate, id_, "refuse", "trust policy test was applied")
    casemate.run("pull", "--quiet", "--plain-http", name)
    answered(casemate, id_, "admit", "was fetched again")


def answered(casemate: Casemate, id_: str, answer: str, because: str) -> None:
    """Wait until the newest judgement of the container is *answer*."""
    deadline = time.monotonic() + WAIT_S
    while (found := told(casemate, "judged", id_)[-1])["answer"] != answer:
        assert time.monotonic() < deadline, casemate.daemons.journal("casemated")[-3000:]
        time.sleep(0.1)
    assert because in str(found["because"])
