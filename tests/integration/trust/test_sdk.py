"""The SDK's methods of trust against the real daemons: every one of them, and what a refusal looks like."""

from __future__ import annotations

import json
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.integration.registry import running_registry
from tests.integration.trust.conftest import TRACKER, Casemate, debian_tar, imported, tracker
from tests.integration.trust.mirror import Mirror, serving

from casemate.sdk import ApiError
from casemate.sdk.trust import Trust
from casemate.spec.api.signatures import VerifyKey
from casemate.trust.keys.private import new_key

pytestmark = pytest.mark.root
pytest.importorskip("cvss", reason="missing: cvss")
pytest.importorskip("cel", reason="missing: common-expression-language")
TODAY = datetime.now(UTC).date().isoformat()
POLICY = """
apiVersion: casemate/v1
kind: TrustPolicy
metadata: {name: sdk}
spec:
  rules:
    - {name: here, prefix: local, grades: [{name: open, when: "size(findings) > 0", then: ANSWER}]}
"""
CASES = """
apiVersion: casemate/v1
kind: TrustPolicyTest
today: "2026-11-22"
cases:
  - {name: one, given: {image: local/x, findings: [{severity: low}]}, expect: {answer: admit}}
"""


@pytest.fixture(scope="module")
def trust(casemate: Casemate) -> Trust:
    return casemate.daemons.client.trust


@pytest.fixture
def clean(trust: Trust) -> None:
    for policy in trust.policies():
        trust.remove_policy(policy.name)
    for feed in trust.feeds().feeds:
        trust.remove_feed(feed.name)


@pytest.mark.usefixtures("clean")
def test_feeds_scans_and_why(casemate: Casemate, trust: Trust, tmp_path: Path) -> None:
    image = imported(casemate, "sdk-scanned", debian_tar())
    with tracker(tmp_path).open("rb") as file:
        row = trust.import_feed("debian-tracker", file, name="debian", date=TODAY)
    assert (row.name, row.rows, row.age_days, row.stale) == ("debian", 3, 0, False)
    assert trust.feeds(verify=True).feeds == (row,)
    found = trust.scan(image)
    assert found.whole
    assert found.upgrades[0].to == "3.0.13-1~deb12u1"
    assert json.loads(trust.scan_document(image, "sarif"))["version"] == "2.1.0"
    assert trust.scan_document(image, "html").startswith(b"<!doctype html>")
    assert trust.why(image).now.answer == "admit"
    with pytest.raises(ApiError) as error:
        trust.import_feed("debian-tracker", [b"{"], name="debian")
    assert error.value.problem_code == "trust.feed_invalid"
    assert trust.feeds().feeds == (row,)
    trust.remove_feed("debian")
    with pytest.raises(ApiError) as error:
        trust.scan(image)
    assert error.value.problem_code == "trust.feed_missing"


@pytest.mark.usefixtures("clean")
def test_policies_and_what_is_judged_anew(casemate: Casemate, trust: Trust, tmp_path: Path) -> None:
    image = imported(casemate, "sdk-judged", debian_tar())
    trust.import_feed("debian-tracker", [json.dumps(TRACKER).encode()], name="debian", date=TODAY)
    assert trust.apply_policy(POLICY.replace("ANSWER", "warn")) == ("sdk",)
    assert [row.name for row in trust.policies()] == ["sdk"]
    assert trust.policy("sdk").spec["rules"]
    assert trust.test_policy(CASES).passed
    assert not trust.test_policy(CASES, policy=POLICY.replace("ANSWER", "refuse")).passed
    container = casemate.daemons.client.create(image, ["true"]).id
    changes = trust.dry_run(POLICY.replace("ANSWER", "refuse")).changes
    assert [(row.container, row.answer_then) for row in changes] == [(container, "refuse")]
    follower = trust.judgements(follow=True, since="1h")
    trust.apply_policy(POLICY.replace("ANSWER", "refuse"))
    row = next(row for row in follower if row.container == container and row.answer == "refuse")
    assert (row.was, row.image, row.does) == ("admit", image, "nothing")
    assert "policy" in row.because
    assert [found.container for found in trust.judgements(since="1h")].count(container) >= 1
    assert trust.why(container).now.answer == "refuse"
    casemate.daemons.client.remove(container)
    with pytest.raises(ApiError) as error:
        trust.apply_policy("kind: TrustPolicy")
    assert error.value.problem_code == "trust.policy_invalid"


@pytest.mark.usefixtures("clean")
def test_a_mirror(trust: Trust, tmp_path: Path) -> None:
    from casemate.trust.feed.manifest import Manifest, Offered, sign_manifest  # noqa: PLC0415 - as a maker would

    key, data = new_key(), tracker(tmp_path).read_bytes()
    import hashlib  # noqa: PLC0415

    row = Offered("debian", "debian-tracker", "debian.json", hashlib.sha256(data).hexdigest(), TODAY)
    with serving() as url:
        Mirror.files = {"manifest.json": sign_manifest(Manifest((row,), 1, TODAY), [key]), "debian.json": data}
        (change,) = trust.update_feeds(url=url, keys=[key.public_pem])
        assert (change.name, change.outcome, change.rows) == ("debian", "imported", 3)
        with pytest.raises(ApiError) as error:
            trust.update_feeds(url=url, keys=[new_key().public_pem])
        assert error.value.problem_code == "trust.feed_unsigned"
        Mirror.files["manifest.json"] = sign_manifest(Manifest((row,), 1, "2020-01-01"), [key])
        with pytest.raises(ApiError) as error:
            trust.update_feeds(url=url, keys=[key.public_pem])
        assert error.value.problem_code == "trust.feed_rollback"


@pytest.mark.usefixtures("clean")
def test_signatures(casemate: Casemate, trust: Trust, tmp_path: Path) -> None:
    with running_registry(tmp_path) as host:
        name = imported(casemate, f"{host}/sdk/app:1", debian_tar())
        casemate.run("push", "--quiet", "--plain-http", name)
        key = new_key()
        signer = VerifyKey("team", key.public_pem)
        assert trust.verify(name, keys=(signer,), plain_http=True).outcome == "unsigned"
        attached = trust.sign(name, key, plain_http=True)
        assert attached.digest == trust.resolve(name, plain_http=True).digest
        answer = trust.verify(name, keys=(signer,), plain_http=True)
        assert answer.outcome == "verified"
        assert {row.kind for row in answer.signatures} == {"cosign-simple", "cosign-bundle"}
        other = VerifyKey("other", new_key().public_pem)
        assert trust.verify(name, keys=(other,), plain_http=True).outcome == "no_match"
        with pytest.raises(ApiError) as error:
            trust.verify(f"{host}/sdk/none:1", keys=(signer,), plain_http=True)
        assert error.value.http_status == 404


def test_publishers(casemate: Casemate, trust: Trust) -> None:
    pytest.importorskip("tuf", reason="missing: tuf")
    folder = Path(tempfile.mkdtemp(dir=casemate.daemons.scope.folder))
    folder.chmod(0o755)
    casemate.run("trust", "key", "new", "--no-passphrase", str(folder / "key"))
    casemate.run("trust", "init", "--key", str(folder / "key.key"), str(folder / "site"))
    digest = "sha256:" + "ab" * 32
    image = "registry.example/sdk/app:1"
    casemate.run("trust", "publish", "--key", str(folder / "key.key"), "--digest", digest, str(folder / "site"), image)
    root = (folder / "site/1.root.json").read_text()
    added = trust.add_publisher("sdk", str(folder / "site"), root, ["registry.example/sdk"])
    assert added.versions["targets"] == 2
    assert trust.refresh_publisher("sdk").error == ""
    assert (trust.tag(image).digest, trust.tag(image).publisher) == (digest, "sdk")
    assert [row.name for row in trust.publishers()] == ["sdk"]
    trust.remove_publisher("sdk")
    assert trust.publishers() == ()
    assert trust.tag(image).publisher == ""
    shutil.rmtree(folder)
