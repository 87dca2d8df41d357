"""Notation's signatures and keyless bundles at a real registry, verified from the command line and by policy."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sigstore", reason="missing: sigstore")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.integration.registry import running_registry
from tests.integration.trust.conftest import Casemate, debian_tar, imported
from tests.unit.trust.signature.instance import ISSUER, Instance
from tests.unit.trust.signature.test_verify import certificate, jws

from casemate.cli.wire.client import Client
from casemate.trust.signature import notation
from casemate.trust.signature.cosign import BUNDLE_TYPES, SIGN_PREDICATE

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


def attach(casemate: Casemate, image: str, digest: str, kind: str, type_: str, data: bytes) -> None:
    """Put a signature that another tool made beside the image, through the API."""
    client = Client(f"unix://{casemate.daemons.socket}", "default")

    blob = {"kind": kind, "type": type_, "data": base64.b64encode(data).decode()}
    request = {"reference": image, "digest": digest, "blobs": [blob], "plain_http": True}
    client.post("/v1/trust/attach", request)
    client.close()


def pushed(casemate: Casemate, name: str) -> str:
    imported(casemate, name, debian_tar(**{"etc/word": name.encode()}))
    answer: Any = casemate.json("push", "--plain-http", name)
    return str(answer["result"]["digest"])


def verify(casemate: Casemate, code: int, *argv: str) -> Any:
    return casemate.json("trust", "verify", "--plain-http", *argv, code=code)


def test_notation_by_authority_and_level(casemate: Casemate, registry: str, tmp_path: Path) -> None:
    name = f"{registry}/notary/app:1"
    digest = pushed(casemate, name)
    now = datetime.now(UTC).replace(microsecond=0)
    root_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = certificate("root", root_key, ca=True, days=1000, start=now - timedelta(days=100))
    stale = certificate("stale", leaf_key, (root, root_key), start=now - timedelta(days=20), days=10)
    authority = tmp_path / "notary.pem"
    authority.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    other = tmp_path / "other.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    other.write_bytes(certificate("other", key, ca=True, start=now - timedelta(days=1)).public_bytes(
        serialization.Encoding.PEM))  # fmt: skip
    at = {notation.TIME: (now - timedelta(hours=1)).isoformat()}
    document = jws((stale, root), leaf_key, digest, **at)
    assert verify(casemate, 2, "--authority", str(authority), name)["outcome"] == "unsigned"
    attach(casemate, name, digest, notation.ENVELOPE_TYPE, notation.ARTIFACT_TYPE, document.data)
    # The certificate has ended: strict refuses, the other levels say so and let it pass.
    assert "valid from" in verify(casemate, 3, "--authority", str(authority), name)["refused"][0]
    found = verify(casemate, 0, "--authority", str(authority), "--level", "permissive", name)
    assert "valid from" in found["signatures"][0]["detail"]
    leaf = certificate("leaf", leaf_key, (root, root_key), start=now - timedelta(days=1))
    critical = jws((leaf, root), leaf_key, digest, [notation.SCHEME, "x.unknown"], **at, **{"x.unknown": 1})
    attach(casemate, name, digest, notation.ENVELOPE_TYPE, notation.ARTIFACT_TYPE, critical.data)
    assert any("not understood" in line for line in verify(casemate, 3, "--authority", str(authority), name)["refused"])
    good = jws((leaf, root), leaf_key, digest, **at)
    attach(casemate, name, digest, notation.ENVELOPE_TYPE, notation.ARTIFACT_TYPE, good.data)
    assert verify(casemate, 0, "--authority", str(authority), name)["signatures"][0]["kind"] == "notation-jws"
    verify(casemate, 0, "--authority", str(authority), "--subject", "CN=leaf", name)
    verify(casemate, 3, "--authority", str(authority), "--subject", "CN=another", name)
    verify(casemate, 3, "--authority", str(other), name)
    casemate.run("rmi", "-f", name)


def test_keyless_by_policy_and_offline(casemate: Casemate, registry: str, tmp_path: Path) -> None:
    name = f"{registry}/keyless/app:1"
    digest = pushed(casemate, name)
    instance = Instance()
    bundle = instance.bundle("https://ci.example/org/app.yml@v1", digest, SIGN_PREDICATE)
    attach(casemate, name, digest, BUNDLE_TYPES[0], BUNDLE_TYPES[0], json.dumps(bundle).encode())
    casemate.run("rmi", "-f", name)
    casemate.run("pull", "--quiet", "--plain-http", name)
    root = tmp_path / "root.json"
    root.write_text(instance.trusted_root())
    who = ("--trusted-root", str(root), "--issuer", ISSUER, "--identity")
    verify(casemate, 0, "--offline", *who, "https://ci.example/org/app.yml@*", name)
    verify(casemate, 3, "--offline", *who, "https://ci.example/evil/*", name)
    assert casemate.ended("trust", "verify", "--offline", *who, "*", name).returncode == 125
    policy = {
        "apiVersion": "casemate/v1", "kind": "TrustPolicy", "metadata": {"name": "keyless"},
        "spec": {
            "signers": [{"type": "keyless", "name": "ci", "identity": "https://ci.example/org/app.yml@v1",
                         "issuer": ISSUER, "trusted_root": root.read_text()}],
            "rules": [{"name": "app", "prefix": f"{registry}/keyless", "signers": ["ci"]},
                      {"name": "rest", "prefix": ""}],
        },
    }  # fmt: skip
    (tmp_path / "policy.yaml").write_text(json.dumps(policy))
    casemate.run("trust", "policy", "apply", str(tmp_path / "policy.yaml"))
    try:
        assert casemate.run("run", "--rm", name, "echo", "ran") == "ran\n"
        policy["spec"]["signers"][0]["identity"] = "https://ci.example/other"  # type: ignore[index]
        (tmp_path / "policy.yaml").write_text(json.dumps(policy))
        casemate.run("trust", "policy", "apply", str(tmp_path / "policy.yaml"))
        done = casemate.ended("--json", "run", "--rm", name, "true")
        assert json.loads(done.stderr.splitlines()[-1])["code"] == "trust.refused"
    finally:
        casemate.run("trust", "policy", "rm", "keyless")
        casemate.run("rmi", "-f", name)
