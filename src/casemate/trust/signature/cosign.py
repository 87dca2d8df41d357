"""cosign's two layouts: simple signing at the tag ``sha256-HEX.sig``, and the bundle (v0.3) as an OCI 1.1 referrer.

Sources: cosign specs/SIGNATURE_SPEC.md; containers/image docs/atomic-signature.md; sigstore protobuf-specs v0.3;
rekor types hashedrekord, dsse and intoto 0.0.1 and 0.0.2.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from casemate.spec.ids import digest_hex
from casemate.trust.signature.errors import SignatureInvalid
from casemate.trust.signature.keys import MAX_SIGNATURE_BYTES, PublicKey, check_key, decode_base64, load_public_key
from casemate.trust.signature.statement import Envelope, RawEnvelope, decode, envelope_of, parse_statement

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_ANNOTATION = "dev.cosignproject.cosign/signature"
BUNDLE_TYPES = ("application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.dev.sigstore.bundle+json;version=0.3")
DSSE_TYPE = "application/vnd.dsse.envelope.v1+json"
SIGN_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
#: A payload is 250 bytes and its annotations; nobody needs more.
MAX_PAYLOAD_BYTES = 64 << 10
_MAX_ENTRIES = 8
_MAX_ENTRY_BYTES = 1 << 20


def signature_tag(digest: str) -> str:
    """The tag under which cosign keeps the signatures of *digest*."""
    return f"sha256-{digest_hex(digest)}.sig"


def referrers_tag(digest: str) -> str:
    """OCI distribution-spec 1.1, "Referrers Tag Schema": for registries without the referrers API."""
    return f"sha256-{digest_hex(digest)}"


class _Image(msgspec.Struct, frozen=True, rename={"digest": "docker-manifest-digest"}):
    digest: str


class _Identity(msgspec.Struct, frozen=True, rename={"reference": "docker-reference"}):
    reference: str = ""


class _Critical(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    identity: _Identity
    image: _Image
    type: str


class _Simple(msgspec.Struct, frozen=True):
    critical: _Critical


_SIMPLE_TYPES = ("cosign container image signature", "atomic container signature")


class Simple(msgspec.Struct, frozen=True):
    """A simple-signing claim. *repository* is empty where the signer named none."""

    digest: str
    repository: str


def verify_simple(payload: bytes, signature: str, key: PublicKey) -> Simple | None:
    """The claim in *payload* when *signature* (base64) over it is by *key*, else None.

    Steps 5 and 6 of the plan: the payload is parsed only after its signature held.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise SignatureInvalid(f"a simple-signing payload of {len(payload)} bytes; {MAX_PAYLOAD_BYTES} are allowed")
    if not key.verify(decode_base64(signature, "a cosign signature", MAX_SIGNATURE_BYTES), payload):
        return None
    claim: _Simple = decode(payload, _Simple, "a simple-signing payload")
    if claim.critical.type not in _SIMPLE_TYPES:
        raise SignatureInvalid(f"a simple-signing payload of the type {claim.critical.type[:80]!r}")
    return Simple(claim.critical.image.digest, claim.critical.identity.reference)


class _Body(msgspec.Struct, frozen=True, rename={"body": "canonicalizedBody"}):
    body: str = ""


class _Hint(msgspec.Struct, frozen=True):
    hint: str = ""


class _Material(msgspec.Struct, frozen=True, rename={"public_key": "publicKey", "entries": "tlogEntries"}):
    public_key: _Hint | None = None
    certificate: Any = None
    entries: tuple[_Body, ...] = ()


class _MessageDigest(msgspec.Struct, frozen=True):
    digest: str
    algorithm: str = "SHA2_256"


class _Message(msgspec.Struct, frozen=True, rename={"digest": "messageDigest"}):
    signature: str
    digest: _MessageDigest | None = None


class _Bundle(
    msgspec.Struct, frozen=True,
    rename={
        "media_type": "mediaType", "material": "verificationMaterial", "envelope": "dsseEnvelope",
        "message": "messageSignature",
    },
):  # fmt: skip
    media_type: str
    material: _Material
    envelope: RawEnvelope | None = None
    message: _Message | None = None


class Bundle(msgspec.Struct, frozen=True):
    """A bundle whose form is checked. *entries*: the bodies of its log entries, as they were logged."""

    envelope: Envelope
    entries: tuple[bytes, ...]
    keyless: bool


def parse_bundle(data: bytes) -> Bundle:
    """The bundle in *data*; raises :class:`SignatureInvalid`. Steps 3 and 4 of the plan."""
    raw: _Bundle = decode(data, _Bundle, "a sigstore bundle")
    if raw.media_type not in BUNDLE_TYPES:
        raise SignatureInvalid(f"a bundle of the type {raw.media_type[:80]!r}; {BUNDLE_TYPES[0]} is read")
    if raw.envelope is None or raw.message is not None:
        raise SignatureInvalid("a bundle without a DSSE envelope signs no image")
    if (raw.material.public_key is None) == (raw.material.certificate is None):
        raise SignatureInvalid("a bundle holds either a key's hint or a certificate, and this one both or neither")
    if len(raw.material.entries) > _MAX_ENTRIES:
        raise SignatureInvalid(f"a bundle with {len(raw.material.entries)} log entries; {_MAX_ENTRIES} are allowed")
    entries = tuple(decode_base64(entry.body, "a log entry", _MAX_ENTRY_BYTES) for entry in raw.material.entries)
    return Bundle(envelope_of(raw.envelope), entries, raw.material.certificate is not None)


def verify_bundle(bundle: Bundle, key: PublicKey) -> tuple[bytes, ...]:
    """The signatures in *bundle* that are by *key* (none: it is another's); raises when a log entry is another's.

    Steps 5 and 7: an entry that came along must be of this payload, this key and this signature (CVE-2026-22703).
    """
    good = tuple(row for row in bundle.envelope.signatures if key.verify(row, bundle.envelope.signed))
    if good:
        for entry in bundle.entries:
            check_entry(entry, bundle.envelope, key, good)
    return good


def bundle_claims(bundle: Bundle, digest: str, predicate: str) -> bool:
    """Step 6: whether the verified *bundle* says *predicate* of *digest*."""
    statement = parse_statement(bundle.envelope)
    return statement.predicate_type == predicate and statement.is_about(digest)


_HASHES = {"SHA2_256": "sha256", "SHA2_384": "sha384", "SHA2_512": "sha512"}


def _logged_key(data: bytes) -> PublicKey:
    """A key as the log has it: PEM or DER, bare or in the certificate of one who signs without a kept key."""
    if b"BEGIN CERTIFICATE" in data[:60] or not data.lstrip().startswith(b"-----BEGIN"):
        from cryptography import x509  # noqa: PLC0415 - lazily

        try:
            load = x509.load_pem_x509_certificate if b"BEGIN" in data[:60] else x509.load_der_x509_certificate
            return check_key(load(data).public_key())
        except ValueError:
            pass  # a bare key, in DER
    return load_public_key(data)


class _Entry(msgspec.Struct, frozen=True):
    kind: str
    spec: Any


def check_entry(body: bytes, envelope: Envelope, key: PublicKey, signatures: tuple[bytes, ...]) -> None:
    """Raise :class:`SignatureInvalid` unless the log entry *body* is of the same content, key and signature."""
    entry: _Entry = decode(body, _Entry, "a log entry")
    try:
        match entry.kind:
            case "dsse":
                digest = entry.spec["payloadHash"]["value"]
                pairs = [(row["verifier"], row["signature"]) for row in entry.spec["signatures"]]
            case "intoto":
                content = entry.spec["content"]
                digest = content["payloadHash"]["value"]
                rows = content["envelope"]["signatures"]
                # Version 0.0.2 keeps the signature's base64 in base64 again.
                pairs = [
                    (row["publicKey"], decode_base64(row["sig"], "a logged signature", 8192).decode()) for row in rows
                ]
            case "hashedrekord" if "hashedRekordV002" in entry.spec:  # Rekor v2: over the encoding, DER in base64
                record = entry.spec["hashedRekordV002"]
                verifier = record["signature"]["verifier"]
                der = verifier.get("x509Certificate") or verifier["publicKey"]
                pairs = [(der["rawBytes"], record["signature"]["content"])]
                logged_digest = decode_base64(record["data"]["digest"], "a logged digest", 64)
                if logged_digest != hashlib.new(_HASHES[record["data"]["algorithm"]], envelope.signed).digest():
                    raise SignatureInvalid("the bundle's log entry is of another content")
                digest = hashlib.sha256(envelope.payload).hexdigest()
            case "hashedrekord":
                digest = entry.spec["data"]["hash"]["value"]
                signature = entry.spec["signature"]
                pairs = [(signature["publicKey"]["content"], signature["content"])]
                if digest != hashlib.sha256(envelope.signed).hexdigest():
                    raise SignatureInvalid("the bundle's log entry is of another content")
                digest = hashlib.sha256(envelope.payload).hexdigest()
            case _:
                raise SignatureInvalid(f"a log entry of the kind {entry.kind[:60]!r}")
        if digest != hashlib.sha256(envelope.payload).hexdigest():
            raise SignatureInvalid("the bundle's log entry is of another content")
        logged = {
            (
                _logged_key(decode_base64(pem, "a logged key", 16384)).ident,
                decode_base64(signature, "a logged signature", 2048),
            )
            for pem, signature in pairs
        }
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise SignatureInvalid(f"a log entry of the kind {entry.kind[:60]!r} lacks {error}") from error
    if not any((key.ident, signature) in logged for signature in signatures):
        raise SignatureInvalid("the bundle's log entry is by another key, or of another signature")
