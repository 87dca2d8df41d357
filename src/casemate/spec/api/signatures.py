"""Signatures of images: what vouches for one, and new ones put beside it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from casemate.spec.api.fields import Reference
from casemate.spec.api.images import RegistryAuth
from casemate.spec.workload import Value

SignerName = Annotated[str, Meta(min_length=1, max_length=128)]
#: A PEM file of keys or certificates.
Pem = Annotated[str, Meta(min_length=1, max_length=262_144)]
Digest = Annotated[str, Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
MediaType = Annotated[str, Meta(max_length=255)]
Annotations = Annotated[dict[str, Annotated[str, Meta(max_length=16_384)]], Meta(max_length=32)]


class VerifyKey(Value, frozen=True):
    """A public key, and what to call its holder."""

    name: SignerName
    key: Pem


class VerifyAuthority(Value, frozen=True):
    """Certificates of authorities (Notation). *subject*: the only leaf that counts (RFC 4514); empty: any."""

    name: SignerName
    roots: Pem
    subject: Annotated[str, Meta(max_length=1024)] = ""
    level: Literal["strict", "permissive", "audit"] = "strict"


class VerifyIdentity(Value, frozen=True):
    """Who signs without a kept key. *identity* may end in ``*``; *trusted_root*: JSON, empty: the public instance's."""

    name: SignerName
    identity: Annotated[str, Meta(min_length=1, max_length=2048)]
    issuer: Annotated[str, Meta(min_length=1, max_length=2048)]
    trusted_root: Annotated[str, Meta(max_length=262_144)] = ""


class VerifyRequest(Value, frozen=True):
    """*policy*: the signers and the threshold are those of the trust policy for this repository.

    *offline*: nothing is fetched; what was kept when the image was pulled is checked. *attestations*: predicate types
    that have to be there.
    """

    reference: Reference
    keys: Annotated[tuple[VerifyKey, ...], Meta(max_length=64)] = ()
    authorities: Annotated[tuple[VerifyAuthority, ...], Meta(max_length=64)] = ()
    identities: Annotated[tuple[VerifyIdentity, ...], Meta(max_length=64)] = ()
    threshold: Annotated[int, Meta(ge=1, le=64)] = 1
    attestations: Annotated[tuple[Annotated[str, Meta(max_length=512)], ...], Meta(max_length=64)] = ()
    policy: bool = False
    offline: bool = False
    plain_http: bool = False
    auth: RegistryAuth | None = None


class SignatureRow(Value, frozen=True):
    """One signer's proven word. *kind*: ``cosign-simple``, ``cosign-bundle``, ``notation-jws``."""

    signer: str
    kind: str
    detail: str = ""


class AttestationRow(Value, frozen=True):
    signer: str
    type: str


class VerifyAnswer(Value, frozen=True):
    """*outcome*: ``verified``; ``unsigned``: it bears nothing; ``no_match``: nothing by these signers; ``too_few``;
    ``attestation_missing``; ``not_asked``: the policy's rule for it wants no signature.

    *refused*: why a document did not count. *fetched_at*: when the documents were fetched.
    """

    reference: str
    repository: str
    digest: str
    outcome: Literal["verified", "unsigned", "no_match", "too_few", "attestation_missing", "not_asked"]
    detail: str
    remedy: str
    threshold: int
    documents: int
    source: Literal["registry", "stored"]
    fetched_at: str
    signatures: tuple[SignatureRow, ...] = ()
    attestations: tuple[AttestationRow, ...] = ()
    refused: tuple[str, ...] = ()


class ResolveRequest(Value, frozen=True):
    reference: Reference
    plain_http: bool = False
    auth: RegistryAuth | None = None


class ResolveAnswer(Value, frozen=True):
    """What the registry has under the reference now: what is to be signed."""

    reference: str
    repository: str
    digest: str
    media_type: str
    size_bytes: int


class SignedBlob(Value, frozen=True):
    """A signature as it goes to the registry: under the tag ``sha256-HEX.SUFFIX``, or as a referrer of *type*."""

    kind: MediaType
    data: Annotated[bytes, Meta(max_length=700_000)]
    annotations: Annotations = {}
    suffix: Literal["", "sig", "att"] = ""
    type: MediaType = ""
    on_manifest: Annotations = {}


class AttachRequest(Value, frozen=True):
    """Put *blobs* beside the image *digest*; what they say is the client's affair, whoever verifies judges it."""

    reference: Reference
    digest: Digest
    blobs: Annotated[tuple[SignedBlob, ...], Meta(min_length=1, max_length=8)]
    plain_http: bool = False
    auth: RegistryAuth | None = None


class AttachAnswer(Value, frozen=True):
    """The digest of the manifest that names each blob."""

    digest: str
    manifests: tuple[str, ...]
