"""Signatures made: the bytes of both cosign layouts, and attestations. Pure; a :class:`SigningKey` does the signing.

Sources: cosign specs/SIGNATURE_SPEC.md, BUNDLE_SPEC.md; sigstore protobuf-specs v0.3; in-toto Statement v1; DSSE 1.0.2.
"""

from __future__ import annotations

import base64
from typing import Any, Literal

import msgspec

from casemate.spec.ids import check_digest, digest_hex
from casemate.trust.keys.private import SigningKey
from casemate.trust.signature.cosign import (
    BUNDLE_TYPES,
    SIGN_PREDICATE,
    SIGNATURE_ANNOTATION,
    SIMPLE_SIGNING,
)
from casemate.trust.signature.keys import load_public_key
from casemate.trust.signature.statement import IN_TOTO, pae

Layout = Literal["simple", "bundle"]
#: Short names of predicate types, as cosign's --type has them.
PREDICATES = {
    "slsaprovenance": "https://slsa.dev/provenance/v0.2",
    "slsaprovenance1": "https://slsa.dev/provenance/v1",
    "spdxjson": "https://spdx.dev/Document",
    "cyclonedx": "https://cyclonedx.org/bom",
    "openvex": "https://openvex.dev/ns",
    "vuln": "https://cosign.sigstore.dev/attestation/vuln/v1",
}


class Made(msgspec.Struct, frozen=True):
    """One blob as it goes beside the image (see ``image.attach.Attachment``, whose words these are)."""

    kind: str
    data: bytes
    annotations: dict[str, str] = {}
    suffix: str = ""
    type: str = ""
    on_manifest: dict[str, str] = {}


def simple_payload(repository: str, digest: str) -> bytes:
    """The claim of the older layout; *repository* as the verifier will know it."""
    return msgspec.json.encode({
        "critical": {
            "identity": {"docker-reference": repository}, "image": {"docker-manifest-digest": check_digest(digest)},
            "type": "cosign container image signature",
        },
        "optional": None,
    })  # fmt: skip


def statement(digest: str, predicate_type: str, predicate: Any) -> bytes:
    """An in-toto statement about the image *digest*."""
    return msgspec.json.encode({
        "_type": "https://in-toto.io/Statement/v1", "subject": [{"digest": {"sha256": digest_hex(digest)}}],
        "predicateType": predicate_type, "predicate": predicate,
    })  # fmt: skip


def sign_image(key: SigningKey, repository: str, digest: str, layouts: tuple[Layout, ...]) -> list[Made]:
    """The image's signature in each of *layouts*. The bundle names no repository (cosign v3 has none there)."""
    made = []
    if "simple" in layouts:
        payload = simple_payload(repository, digest)
        made.append(Made(SIMPLE_SIGNING, payload, {SIGNATURE_ANNOTATION: _text(key.sign(payload))}, suffix="sig"))
    if "bundle" in layouts:
        made.append(attest_image(key, digest, SIGN_PREDICATE, {}))
    return made


def attest_image(key: SigningKey, digest: str, predicate_type: str, predicate: Any) -> Made:
    """A signed statement about the image, as a bundle that refers to it."""
    payload = statement(digest, predicate_type, predicate)
    envelope = {
        "payload": _text(payload), "payloadType": IN_TOTO,
        "signatures": [{"sig": _text(key.sign(pae(IN_TOTO, payload))), "keyid": ""}],
    }  # fmt: skip
    ident = load_public_key(key.public_pem.encode()).ident
    bundle = {
        "mediaType": BUNDLE_TYPES[0],
        "verificationMaterial": {"publicKey": {"hint": _text(bytes.fromhex(ident))}, "tlogEntries": []},
        "dsseEnvelope": envelope,
    }
    return Made(
        BUNDLE_TYPES[0], msgspec.json.encode(bundle), type=BUNDLE_TYPES[0],
        on_manifest={
            "dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": predicate_type,
        },
    )  # fmt: skip


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
