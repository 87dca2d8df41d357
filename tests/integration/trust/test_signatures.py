"""``trust sign`` and ``trust verify`` from the command line over a real registry and back."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.daemons import rootfs_tar
from tests.integration.registry import running_registry
from tests.integration.trust.conftest import Casemate, debian_tar, imported

pytestmark = pytest.mark.root


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
