"""Keyless bundles of an instance made here; each way in which one may not hold, and in which it is somebody else's."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

pytest.importorskip("sigstore", reason="missing: sigstore")

from tests.unit.trust.signature.instance import ISSUER, Instance, b64

from casemate.trust.signature.cosign import SIGN_PREDICATE
from casemate.trust.signature.errors import KeyInvalid, SignatureInvalid, SignatureNoMatch
from casemate.trust.signature.keyless import KeylessSigner, check_signer, verifier_of, verify_keyless
from casemate.trust.signature.verify import Document, Evidence, require, verify

DIGEST, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
REPOSITORY = "registry.example/team/app"
WORKFLOW = "https://ci.example/org/repo/release.yml@refs/tags/v1"


@pytest.fixture(scope="module")
def instance() -> Instance:
    return Instance()


def signer(instance: Instance, identity: str = "dev@example.org", issuer: str = ISSUER) -> KeylessSigner:
    return KeylessSigner("team", identity, issuer, instance.trusted_root())


def checked(bundle: Any, who: KeylessSigner, digest: str = DIGEST) -> Evidence:
    documents = [Document("cosign-bundle", json.dumps(bundle).encode())]
    return verify(digest, REPOSITORY, documents, [who], datetime.now(UTC))


def test_a_bundle_that_holds(instance: Instance) -> None:
    for identity, wanted in (("dev@example.org", "dev@example.org"), (WORKFLOW, WORKFLOW),
                             (WORKFLOW, "https://ci.example/org/repo/release.yml@*")):  # fmt: skip
        bundle = instance.bundle(identity, DIGEST, SIGN_PREDICATE)
        found = checked(bundle, signer(instance, wanted))
        assert found.signers == {"team"}, found.refused
    attested = checked(instance.bundle("dev@example.org", DIGEST, "https://slsa.dev/provenance/v1"), signer(instance))
    assert not attested.signers
    assert [statement.predicate_type for _, statement in attested.attestations] == ["https://slsa.dev/provenance/v1"]


@pytest.mark.parametrize(
    ("identity", "issuer"),
    [("eve@example.org", ISSUER), ("dev@example.org.evil", ISSUER), ("dev@example.org", "https://evil.example"),
     ("https://ci.example/org/repo/release.yml.evil/x@y", ISSUER)],
)  # fmt: skip
def test_another_identity_is_no_match_and_no_fault(instance: Instance, identity: str, issuer: str) -> None:
    bundle = instance.bundle(identity, DIGEST, SIGN_PREDICATE, issuer=issuer)
    assert verify_keyless(json.dumps(bundle).encode(), signer(instance)) is None
    workflow = signer(instance, "https://ci.example/org/repo/release.yml@*")
    assert verify_keyless(json.dumps(bundle).encode(), workflow) is None
    with pytest.raises(SignatureNoMatch):
        require(checked(bundle, signer(instance)), ["team"], 1)


def broken(instance: Instance, name: str) -> dict[str, Any]:
    good = instance.bundle("dev@example.org", DIGEST, SIGN_PREDICATE)
    bundle = copy.deepcopy(good)
    material = bundle["verificationMaterial"]
    entry = material["tlogEntries"][0]
    match name:
        case "another's entry":
            return instance.bundle("dev@example.org", DIGEST, SIGN_PREDICATE, logged=good)
        case "no entry":
            material["tlogEntries"] = []
        case "entry after the certificate":
            return instance.bundle("dev@example.org", DIGEST, SIGN_PREDICATE, at=instance.now + timedelta(hours=1))
        case "another instance":
            return Instance().bundle("dev@example.org", DIGEST, SIGN_PREDICATE)
        case "payload":
            bundle["dsseEnvelope"]["payload"] = b64(b'{"_type":"x"}')
        case "promise":
            entry["inclusionPromise"]["signedEntryTimestamp"] = b64(b"0" * 70)
        case "root hash":
            entry["inclusionProof"]["rootHash"] = b64(b"0" * 32)
        case "checkpoint":
            envelope = entry["inclusionProof"]["checkpoint"]["envelope"]
            entry["inclusionProof"]["checkpoint"]["envelope"] = envelope.replace("1\n", "2\n", 1)
        case "certificate":
            material["certificate"]["rawBytes"] = b64(b"0\x03\x02\x01\x01")
        case "certificate of another key":
            other = instance.bundle("dev@example.org", DIGEST, SIGN_PREDICATE)
            material["certificate"] = other["verificationMaterial"]["certificate"]
        case "signature":
            bundle["dsseEnvelope"]["signatures"] = [{"sig": b64(b"0" * 70)}]
        case "junk":
            material["tlogEntries"] = [{"logIndex": "x"}]
    return bundle


@pytest.mark.parametrize("name", [
    "another's entry", "no entry", "entry after the certificate", "another instance", "payload", "promise", "root hash",
    "checkpoint", "certificate", "certificate of another key", "signature", "junk",
])  # fmt: skip
def test_a_bundle_that_does_not_hold(instance: Instance, name: str) -> None:
    bundle = broken(instance, name)
    with pytest.raises(SignatureInvalid):
        verify_keyless(json.dumps(bundle).encode(), signer(instance))
    assert not checked(bundle, signer(instance)).signers


def test_over_another_digest(instance: Instance) -> None:
    found = checked(instance.bundle("dev@example.org", OTHER, SIGN_PREDICATE), signer(instance))
    assert not found.signers
    assert "another digest" in found.refused[0]


def test_signers_that_anybody_could_meet_are_refused(instance: Instance) -> None:
    check_signer(signer(instance))
    for identity, issuer in (("*", ISSUER), ("", ISSUER), ("a*b", ISSUER), ("dev@example.org", ""),
                             ("dev@example.org", "http://plain.example")):  # fmt: skip
        with pytest.raises(KeyInvalid):
            check_signer(signer(instance, identity, issuer))
    for root in ("{", "{}", '{"mediaType": "x"}'):
        with pytest.raises(KeyInvalid):
            check_signer(KeylessSigner("team", "dev@example.org", ISSUER, root))


def test_the_public_instance_s_root_is_in_the_library() -> None:
    assert verifier_of("") is not None


def test_nothing_of_it_is_loaded_without_such_a_signer() -> None:
    program = "import sys, casemate.trust.signature.verify; assert 'sigstore' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False, env={"PYTHONPATH": "src"}).returncode == 0
