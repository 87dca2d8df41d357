"""``trust sign`` and ``trust verify`` from the command line over a real registry and back."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.integration.daemons import SOURCE, rootfs_tar, running_daemons
from tests.integration.registry import running_registry
from tests.integration.trust.conftest import Casemate, debian_tar, imported, tracker

from casemate.node.evidence_jobs import CheckJob
from casemate.node.freshness_jobs import TagJob
from casemate.trust.freshness.resolve import Trusted

pytestmark = pytest.mark.root
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="module")
def keys(casemate: Casemate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``alice`` without a passphrase, ``bob`` with one."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "words").write_text("a passphrase\n")
    casemate.run("trust", "key", "new", "--no-passphrase", str(folder / "alice"))
    casemate.run("trust", "key", "new", "--passphrase-file", str(folder / "words"), str(folder / "bob"))
    return folder


@pytest.fixture
def pushed(casemate: Casemate, registry: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """An image at the registry, in a repository and of a digest that are the test's own."""
    word = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    name = f"{registry}/team/{word}:1"
    imported(casemate, name, debian_tar(**{"etc/word": word.encode()}))
    casemate.run("push", "--quiet", "--plain-http", name)
    yield name
    casemate.ended("rmi", "-f", name)


def verify(casemate: Casemate, code: int, *argv: str) -> dict[str, Any]:
    found = casemate.json("trust", "verify", "--plain-http", *argv, code=code)
    assert isinstance(found, dict)
    return found


def test_sign_then_verify_then_offline(casemate: Casemate, pushed: str, keys: Path) -> None:
    alice, bob = str(keys / "alice.pub"), str(keys / "bob.pub")
    unsigned = verify(casemate, 2, "--key", alice, pushed)
    assert unsigned["outcome"] == "unsigned"
    assert unsigned["documents"] == 0

    told = casemate.run("trust", "sign", "--plain-http", "--key", str(keys / "alice.key"), pushed)
    assert unsigned["digest"] in told
    signed = verify(casemate, 0, "--key", alice, pushed)
    assert {row["kind"] for row in signed["signatures"]} == {"cosign-simple", "cosign-bundle"}
    assert {row["signer"] for row in signed["signatures"]} == {"alice"}
    assert signed["source"] == "registry"

    other = verify(casemate, 3, "--key", bob, pushed)
    assert other["outcome"] == "no_match"
    assert other["documents"] == 2
    few = verify(casemate, 4, "--key", alice, "--key", bob, "--threshold", "2", pushed)
    assert few["outcome"] == "too_few"
    words = ("--passphrase-file", str(keys / "words"))
    casemate.run("trust", "sign", "--plain-http", *words, "--key", str(keys / "bob.key"), pushed)
    verify(casemate, 0, "--key", alice, "--key", bob, "--threshold", "2", pushed)

    # What is here was imported, so nothing was fetched with it; signing kept what it pushed.
    casemate.run("rmi", pushed)
    # It is not here, so nothing has to be kept: the first look that finds enough is the last.
    first = verify(casemate, 0, "--key", alice, pushed)
    assert {row["kind"] for row in first["signatures"]} == {"cosign-simple"}
    assert first["documents"] == 2
    casemate.run("pull", "--quiet", "--plain-http", pushed)
    stored = verify(casemate, 0, "--offline", "--key", alice, "--key", bob, "--threshold", "2", pushed)
    assert stored["source"] == "stored"
    assert stored["documents"] == 4
    assert stored["digest"] == unsigned["digest"]
    assert verify(casemate, 3, "--offline", "--key", str(new_key(casemate, keys, "carol")), pushed)["documents"] == 4
    # A human's answer and CI's.
    text = casemate.run("trust", "verify", "--offline", "--key", alice, pushed)
    assert "verified: signed by alice" in text
    sarif = json.loads(casemate.run("trust", "verify", "--sarif", "--offline", "--key", alice, pushed))
    assert sarif["runs"][0]["results"] == []
    sarif = json.loads(
        casemate.run("trust", "verify", "--sarif", "--offline", "--key", str(keys / "carol.pub"), pushed, code=3)
    )
    assert sarif["runs"][0]["results"][0]["ruleId"] == "casemate.trust.no_match"


def new_key(casemate: Casemate, folder: Path, name: str) -> Path:
    if not (folder / f"{name}.pub").exists():
        casemate.run("trust", "key", "new", "--no-passphrase", str(folder / name))
    return folder / f"{name}.pub"


def fetch(registry: str, path: str) -> Any:
    kinds = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
    wanted = urllib.request.Request(f"http://{registry}/v2/{path}", headers={"Accept": kinds})
    with urllib.request.urlopen(wanted, timeout=10) as answer:
        return answer.read()


def openssl_verifies(folder: Path, key: Path, signature: bytes, data: bytes) -> bool:
    (folder / "signature").write_bytes(signature)
    (folder / "data").write_bytes(data)
    command = [
        "openssl",
        "dgst",
        "-sha256",
        "-verify",
        str(key),
        "-signature",
        str(folder / "signature"),
        str(folder / "data"),
    ]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_openssl_judges_both_layouts(
    casemate: Casemate, registry: str, pushed: str, keys: Path, tmp_path: Path
) -> None:
    """What stands at the registry is read here by hand, as cosign's specifications have it, and openssl verifies."""
    casemate.run("trust", "sign", "--plain-http", "--key", str(keys / "alice.key"), pushed)
    repository = pushed.removeprefix(f"{registry}/").rpartition(":")[0]
    digest = verify(casemate, 0, "--key", str(keys / "alice.pub"), pushed)["digest"]
    tag = digest.replace(":", "-")
    layer = json.loads(fetch(registry, f"{repository}/manifests/{tag}.sig"))["layers"][0]
    payload = fetch(registry, f"{repository}/blobs/{layer['digest']}")
    signature = base64.b64decode(layer["annotations"]["dev.cosignproject.cosign/signature"])
    assert openssl_verifies(tmp_path, keys / "alice.pub", signature, payload)
    assert not openssl_verifies(tmp_path, keys / "bob.pub", signature, payload)
    assert json.loads(payload)["critical"]["image"] == {"docker-manifest-digest": digest}

    (row,) = json.loads(fetch(registry, f"{repository}/manifests/{tag}"))["manifests"]
    assert row["artifactType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    manifest = json.loads(fetch(registry, f"{repository}/manifests/{row['digest']}"))
    assert manifest["subject"]["digest"] == digest
    bundle = json.loads(fetch(registry, f"{repository}/blobs/{manifest['layers'][0]['digest']}"))
    envelope = bundle["dsseEnvelope"]
    body = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)
    assert openssl_verifies(tmp_path, keys / "alice.pub", base64.b64decode(envelope["signatures"][0]["sig"]), signed)
    assert json.loads(body)["subject"] == [{"digest": {"sha256": digest.removeprefix("sha256:")}}]


def test_a_signature_is_of_its_repository(casemate: Casemate, registry: str, pushed: str, keys: Path) -> None:
    """The tag's layout names the repository: copied elsewhere it does not count."""
    casemate.run("trust", "sign", "--plain-http", "--layout", "simple", "--key", str(keys / "alice.key"), pushed)
    digest = verify(casemate, 0, "--key", str(keys / "alice.pub"), pushed)["digest"]
    elsewhere = f"{registry}/other/place:1"
    casemate.run("push", "--quiet", "--plain-http", pushed, elsewhere)
    source = pushed.removeprefix(f"{registry}/").rpartition(":")[0]
    copy_tag(registry, source, "other/place", f"{digest.replace(':', '-')}.sig")
    found = verify(casemate, 3, "--key", str(keys / "alice.pub"), elsewhere)
    assert any("is for " in line for line in found["refused"]), found


def copy_tag(registry: str, source: str, target: str, tag: str) -> None:
    data = fetch(registry, f"{source}/manifests/{tag}")
    manifest = json.loads(data)
    for row in (manifest["config"], *manifest["layers"]):
        send(registry, "POST", f"{target}/blobs/uploads/?mount={row['digest']}&from={source}", b"")
    send(registry, "PUT", f"{target}/manifests/{tag}", data, manifest["mediaType"])


def send(registry: str, method: str, path: str, data: bytes, kind: str = "application/octet-stream") -> None:
    wanted = urllib.request.Request(
        f"http://{registry}/v2/{path}", data=data, method=method, headers={"Content-Type": kind}
    )
    urllib.request.urlopen(wanted, timeout=10).close()


def test_attestations(casemate: Casemate, pushed: str, keys: Path, tmp_path: Path) -> None:
    predicate = tmp_path / "provenance.json"
    predicate.write_text('{"buildDefinition": {"buildType": "https://example.org/build"}}')
    asked = ("--key", str(keys / "alice.pub"), "--attestation", "slsaprovenance1", pushed)
    assert verify(casemate, 2, *asked)["outcome"] == "unsigned"
    casemate.run("trust", "sign", "--plain-http", "--key", str(keys / "alice.key"), pushed)
    assert verify(casemate, 5, *asked)["outcome"] == "attestation_missing"
    casemate.run(
        "trust", "attest", "--plain-http", "--key", str(keys / "alice.key"), "--type", "slsaprovenance1",
        "--predicate", str(predicate), pushed,
    )  # fmt: skip
    found = verify(casemate, 0, *asked)
    assert found["attestations"] == [{"signer": "alice", "type": "https://slsa.dev/provenance/v1"}]


def test_keys_that_cannot_be_used(casemate: Casemate, pushed: str, keys: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not it")
    done = casemate.ended(
        "trust",
        "sign",
        "--plain-http",
        "--key",
        str(keys / "bob.key"),
        "--passphrase-file",
        str(wrong),
        pushed,
        "--json",
    )
    assert json.loads(done.stderr)["code"] == "trust.passphrase_wrong"
    done = casemate.ended("trust", "sign", "--plain-http", "--key", str(keys / "bob.key"), pushed)
    assert b"no terminal" in done.stderr
    (tmp_path / "junk").write_bytes(b"\x00\x01")
    done = casemate.ended("trust", "sign", "--key", str(tmp_path / "junk"), pushed, "--json")
    assert json.loads(done.stderr)["code"] == "trust.private_key_invalid"
    done = casemate.ended("trust", "verify", "--plain-http", "--key", str(tmp_path / "junk"), pushed, "--json")
    assert json.loads(done.stderr)["code"] == "trust.key_invalid"
    assert (keys / "alice.key").stat().st_mode & 0o777 == 0o600
    done = casemate.ended("trust", "key", "new", "--no-passphrase", str(keys / "alice"))
    assert done.returncode == 125
    assert b"never overwritten" in done.stderr


def test_offline_of_what_was_never_pulled(casemate: Casemate, keys: Path) -> None:
    imported(casemate, "home-made", rootfs_tar())
    found = verify(casemate, 2, "--offline", "--key", str(keys / "alice.pub"), "home-made")
    assert (found["documents"], found["fetched_at"]) == (0, "")
    casemate.run("rmi", "home-made")


POLICY = """
apiVersion: casemate/v1
kind: TrustPolicy
metadata: {name: signed}
spec:
  signers:
    - {type: key, name: alice, repositories: [PREFIX], key: "ALICE"}
    - {type: key, name: bob, repositories: [PREFIX], key: "BOB"}
  rules:
    - {name: team, prefix: PREFIX, signers: [SIGNERS], threshold: 1}
    - {name: rest, prefix: ""}
"""


def apply_policy(casemate: Casemate, folder: Path, keys: Path, prefix: str, signers: str) -> None:
    text = POLICY.replace("PREFIX", prefix).replace("SIGNERS", signers)
    for name in ("alice", "bob"):
        text = text.replace(name.upper(), (keys / f"{name}.pub").read_text().replace("\n", "\\n"))
    (folder / "policy.yaml").write_text(text)
    casemate.run("trust", "policy", "apply", str(folder / "policy.yaml"))


def test_the_policy_s_signers_decide_what_runs(
    casemate: Casemate, registry: str, pushed: str, keys: Path, tmp_path: Path
) -> None:
    def refused() -> str:
        done = casemate.ended("--json", "run", "--rm", pushed, "echo", "ran")
        assert done.returncode == 125, done.stdout
        return str(json.loads(done.stderr.splitlines()[-1])["detail"])

    done = casemate.ended("--json", "trust", "verify", "--plain-http", "--policy", pushed)
    assert json.loads(done.stderr)["code"] == "argument.invalid"  # no policy
    casemate.run("rmi", pushed)
    casemate.run("pull", "--quiet", "--plain-http", pushed)
    apply_policy(casemate, tmp_path, keys, f"{registry}/team", "alice")
    try:
        assert "bears no signature" in refused()
        assert verify(casemate, 2, "--policy", pushed)["outcome"] == "unsigned"
        words = ("--passphrase-file", str(keys / "words"))
        casemate.run("trust", "sign", "--plain-http", *words, "--key", str(keys / "bob.key"), pushed)
        assert "no signature" not in refused()  # another's signature is another answer
        assert verify(casemate, 3, "--policy", pushed)["outcome"] == "no_match"
        casemate.run("trust", "sign", "--plain-http", "--key", str(keys / "alice.key"), pushed)
        verify(casemate, 0, "--policy", pushed)
        verify(casemate, 0, "--policy", "--offline", pushed)
        assert casemate.run("run", "--rm", pushed, "echo", "ran") == "ran\n"
        # A right signature by a key that is revoked since.
        apply_policy(casemate, tmp_path, keys, f"{registry}/team", "bob")
        assert casemate.run("run", "--rm", pushed, "echo", "ran") == "ran\n"
        carol = new_key(casemate, keys, "carol").read_text().replace("\n", "\\n")
        bob = (keys / "bob.pub").read_text().replace("\n", "\\n")
        policy = tmp_path / "policy.yaml"
        policy.write_text(policy.read_text().replace(bob, carol))
        casemate.run("trust", "policy", "apply", str(policy))
        assert "none by bob" in refused()
    finally:
        casemate.ended("trust", "policy", "rm", "signed")


def test_an_index_that_is_signed_vouches_for_its_manifests(
    casemate: Casemate, registry: str, pushed: str, keys: Path
) -> None:
    """cosign signs what the tag leads to; of a multi-platform image that is the index."""
    name, _, _ = pushed.rpartition(":")
    repository = name.removeprefix(f"{registry}/")
    manifest = fetch(registry, f"{repository}/manifests/1")
    row = {"mediaType": json.loads(manifest)["mediaType"], "digest": f"sha256:{hashlib.sha256(manifest).hexdigest()}",
           "size": len(manifest), "platform": {"os": "linux", "architecture": "amd64"}}  # fmt: skip
    kind = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [row]}).encode()
    send(registry, "PUT", f"{repository}/manifests/many", index, kind)
    casemate.run("trust", "sign", "--plain-http", "--key", str(keys / "alice.key"), f"{name}:many")
    casemate.run("rmi", "-f", pushed)
    casemate.run("pull", "--quiet", "--plain-http", f"{name}:many")
    found = verify(casemate, 0, "--offline", "--key", str(keys / "alice.pub"), f"{name}:many")
    assert found["digest"] == row["digest"]
    casemate.run("rmi", "-f", f"{name}:many")


@pytest.mark.parametrize("asked", ["stored", "tag"])
def test_what_is_called_offline_speaks_to_nobody(tmp_path: Path, asked: str) -> None:
    """The child in an empty network namespace, under strace: it answers, and speaks to nobody."""
    for program in ("strace", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"missing: {program}")
    if asked == "stored":
        job: object = CheckJob(state=str(tmp_path), reference="registry.example/a/b", subjects=(DIGEST,), now_s=0.0)
    else:
        job = TagJob(target="a:1", trusted=Trusted(b"{}"), files={"timestamp.json": b"{}"}, now_s=0.0)
    data = msgspec.json.encode(job)
    log = tmp_path / "log"
    command = ["unshare", "--net", "strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(log),
               sys.executable, "-m", "casemate.node.evidence_child"]  # fmt: skip
    done = subprocess.run(
        command, input=len(data).to_bytes(4, "big") + data, capture_output=True, check=True, timeout=60,
        env={"PYTHONPATH": str(SOURCE), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    answer = json.loads(done.stdout[4:])
    assert answer["type"] == ("checked" if asked == "stored" else "failure"), answer
    # Python asks glibc who it is, and glibc a local cache; anything else would be a name server or a peer.
    lines = [line for line in log.read_text().splitlines() if "AF_UNIX" not in line]
    assert lines == []


def judged(casemate: Casemate, *argv: str, stdin: bytes | None = None, host: str = "") -> tuple[int, str]:
    """The verifier as containerd runs it."""
    digest = argv[argv.index("-digest") + 1] if "-digest" in argv else ""
    descriptor = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 7}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from casemate.cli.verifier import main; sys.exit(main(sys.argv[1:]))",
         *argv, "-stdin-media-type", "application/vnd.oci.descriptor.v1+json"],
        input=json.dumps(descriptor).encode() if stdin is None else stdin, capture_output=True, timeout=60, check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE),
             "CASEMATE_HOST": host or f"unix://{casemate.daemons.socket}"},
    )  # fmt: skip
    assert done.stderr == b""
    assert len(done.stdout) < 9000
    return done.returncode, done.stdout.decode()


def test_containerd_s_verifier_lets_in_what_the_policy_does(
    casemate: Casemate, registry: str, pushed: str, keys: Path, tmp_path: Path
) -> None:
    """Its contract, by hand: containerd 1.6 of Debian 12 has no such plugin."""
    digest = verify(casemate, 2, "--key", str(keys / "alice.pub"), pushed)["digest"]
    asked = ("-name", pushed, "-digest", digest)
    with running_daemons(CASEMATE_REGISTRY_INSECURE=registry) as daemons:
        other = Casemate(daemons)
        code, reason = judged(other, *asked)
        assert (code, "no trust policy" in reason) == (1, True), reason
        apply_policy(other, tmp_path, keys, f"{registry}/team", "alice")
        code, reason = judged(other, *asked)
        assert (code, reason.startswith("unsigned: ")) == (1, True), reason
        other.run("trust", "sign", "--key", str(keys / "alice.key"), pushed)
        code, reason = judged(other, *asked)
        assert (code, reason) == (0, "signed by alice\n")
        assert judged(other, "-name", pushed, "-digest", DIGEST)[0] == 1  # not the tag's, and not there
        apply_policy(other, tmp_path, keys, f"{registry}/other", "alice")
        assert judged(other, *asked)[0] == 0  # the rule `rest` asks nobody
    code, reason = judged(casemate, *asked, host=f"unix://{tmp_path}/nobody.sock")
    assert (code, "could not judge" in reason) == (1, True)


def test_a_signed_statement_settles_a_finding(
    casemate: Casemate, registry: str, pushed: str, keys: Path, tmp_path: Path
) -> None:
    """OpenVEX counts out of an attestation by whom the rule names, and by nobody else."""
    pytest.importorskip("cel", reason="missing: common-expression-language")
    pytest.importorskip("cvss", reason="missing: cvss")
    today = datetime.now(UTC).date().isoformat()
    casemate.run("feed", "import", "debian-tracker", str(tracker(tmp_path)), "--date", today, "--name", "vexed")
    predicate = tmp_path / "vex.json"
    rows = [
        {
            "vulnerability": {"name": name},
            "status": "not_affected",
            "justification": "vulnerable_code_not_in_execute_path",
        }
        for name in ("CVE-2026-1000", "CVE-2026-1001")
    ]
    predicate.write_text(json.dumps({"@context": "https://openvex.dev/ns/v0.2.0", "statements": rows}))
    apply_policy(casemate, tmp_path, keys, f"{registry}/team", "alice")
    policy = tmp_path / "policy.yaml"
    rule = 'vex: [alice], grades: [{name: any, when: "size(findings) > 0", then: refuse}], threshold: 1'
    policy.write_text(policy.read_text().replace("threshold: 1", rule))
    casemate.run("trust", "policy", "apply", str(policy))
    words = ("--passphrase-file", str(keys / "words"))
    attested = ("--type", "openvex", "--predicate", str(predicate), pushed)
    try:
        casemate.run("trust", "sign", "--plain-http", "--key", str(keys / "alice.key"), pushed)
        casemate.run("trust", "attest", "--plain-http", *words, "--key", str(keys / "bob.key"), *attested)
        casemate.run("rmi", pushed)
        casemate.run("pull", "--quiet", "--plain-http", pushed)
        done = casemate.ended("--json", "run", "--rm", pushed, "true")
        assert "any: size(findings) > 0" in json.loads(done.stderr.splitlines()[-1])["detail"]
        casemate.run("trust", "attest", "--plain-http", "--key", str(keys / "alice.key"), *attested)
        assert casemate.run("run", "--rm", pushed, "echo", "ran") == "ran\n"
        assert "settled by signed VEX" in casemate.run("trust", "why", pushed)
        scanned = casemate.json("image", "scan", pushed)
        assert isinstance(scanned, dict)
        assert not scanned.get("findings")
        assert casemate.ended("image", "scan", "--fail-on", "low", pushed).returncode == 0
        assert len(scanned["settled"]) == 4
        assert "Settled: CVE-2026-1000 in openssl: not_affected by alice" in casemate.run("image", "scan", pushed)
    finally:
        casemate.ended("trust", "policy", "rm", "signed")
        casemate.ended("feed", "rm", "vexed")
