"""DSSE envelopes (DSSE 1.0.2) and the in-toto statements (Attestation Framework 1.0) in them."""

from __future__ import annotations

from typing import Any

import msgspec

from casemate.trust.signature.errors import SignatureInvalid
from casemate.trust.signature.keys import MAX_SIGNATURE_BYTES, decode_base64

IN_TOTO = "application/vnd.in-toto+json"
_STATEMENTS = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
#: An SBOM of a large image, as an attestation, has some 20 MiB.
MAX_PAYLOAD_BYTES = 64 << 20
MAX_SIGNATURES = 64
MAX_SUBJECTS = 10_000


class _Signature(msgspec.Struct, frozen=True):
    sig: str
    keyid: str | None = ""


class _Envelope(msgspec.Struct, frozen=True, rename={"payload_type": "payloadType"}):
    payload: str
    payload_type: str
    signatures: list[_Signature]


class Envelope(msgspec.Struct, frozen=True):
    """*signed*: the bytes that the signatures are over (the pre-authentication encoding)."""

    payload: bytes
    payload_type: str
    signed: bytes
    signatures: tuple[bytes, ...]


class Subject(msgspec.Struct, frozen=True):
    digest: dict[str, str]
    name: str = ""


class Statement(msgspec.Struct, frozen=True, rename={"type": "_type", "predicate_type": "predicateType"}):
    """What is said of which subjects. Read it only out of an envelope whose signature was checked."""

    type: str
    predicate_type: str
    subject: tuple[Subject, ...]
    predicate: Any = None

    def is_about(self, digest: str) -> bool:
        """Whether *digest* (``sha256:...``) is among the subjects."""
        return any(f"sha256:{subject.digest.get('sha256')}" == digest for subject in self.subject)


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE protocol.md, "Signature Definition": lengths before contents, so that no two pairs encode alike."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def parse_envelope(data: bytes) -> Envelope:
    """The envelope in *data* (JSON); raises :class:`SignatureInvalid`."""
    return envelope_of(decode(data, _Envelope, "a DSSE envelope"))


def envelope_of(raw: _Envelope) -> Envelope:
    if not 0 < len(raw.signatures) <= MAX_SIGNATURES:
        raise SignatureInvalid(
            f"a DSSE envelope with {len(raw.signatures)} signatures; 1 to {MAX_SIGNATURES} are allowed"
        )
    payload = decode_base64(raw.payload, "a DSSE payload", MAX_PAYLOAD_BYTES)
    signatures = tuple(decode_base64(row.sig, "a DSSE signature", MAX_SIGNATURE_BYTES) for row in raw.signatures)
    return Envelope(payload, raw.payload_type, pae(raw.payload_type, payload), signatures)


def parse_statement(envelope: Envelope) -> Statement:
    """The in-toto statement in *envelope*, whose signature the caller has checked."""
    if envelope.payload_type != IN_TOTO:
        raise SignatureInvalid(f"a DSSE payload of the type {envelope.payload_type[:80]!r}, not {IN_TOTO}")
    found: Statement = decode(envelope.payload, Statement, "an in-toto statement")
    if found.type not in _STATEMENTS:
        raise SignatureInvalid(f"a statement of the type {found.type[:80]!r}")
    if not 0 < len(found.subject) <= MAX_SUBJECTS:
        raise SignatureInvalid(f"a statement about {len(found.subject)} subjects")
    return found


def decode(data: bytes, shape: Any, what: str) -> Any:
    """JSON of a known shape; raises :class:`SignatureInvalid`."""
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise SignatureInvalid(f"{what}: {error}") from error


RawEnvelope = _Envelope
