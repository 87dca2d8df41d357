"""Notation's JWS signatures with X.509 trust stores (Notary Project specifications: signature-specification.md,
signature-envelope-jws.md, trust-store-trust-policy.md, all 1.0).
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from casemate.trust.signature.errors import KeyInvalid, SignatureInvalid
from casemate.trust.signature.keys import PublicKey, check_key, decode_base64
from casemate.trust.signature.statement import decode

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

MEDIA_TYPE = "application/vnd.cncf.notary.payload.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.notary.signature"
ENVELOPE_TYPE = "application/jose+json"
SCHEME, TIME, EXPIRY = "io.cncf.notary.signingScheme", "io.cncf.notary.signingTime", "io.cncf.notary.expiry"
AUTHORITY_TIME = "io.cncf.notary.authenticSigningTime"
_SCHEMES = ("notary.x509", "notary.x509.signingAuthority")
#: Critical headers that are understood; any other that is called critical is refused (RFC 7515 4.1.11).
_UNDERSTOOD = frozenset((SCHEME, TIME, EXPIRY, AUTHORITY_TIME))
MAX_ENVELOPE_BYTES = 1 << 20
_MAX_CHAIN = 10
_MAX_CERTIFICATE_BYTES = 32 << 10

#: What fails the verification at each level (trust-store-trust-policy.md, "Signature Verification Level").
Level = Literal["strict", "permissive", "audit"]


class _Header(msgspec.Struct, frozen=True):
    x5c: tuple[str, ...]


class _Envelope(msgspec.Struct, frozen=True):
    payload: str
    protected: str
    header: _Header
    signature: str


class _Target(msgspec.Struct, frozen=True, rename={"media_type": "mediaType"}):
    digest: str
    media_type: str
    size: int
    annotations: dict[str, str] | None = None


class _Payload(msgspec.Struct, frozen=True, rename={"target": "targetArtifact"}, forbid_unknown_fields=True):
    target: _Target


class Notation(msgspec.Struct, frozen=True):
    """What a verified signature says. *signer*: the leaf's subject (RFC 4514). *warnings*: what the level let pass."""

    digest: str
    size_bytes: int
    signer: str
    signed_at: str
    expires_at: str = ""
    warnings: tuple[str, ...] = ()


class TrustStore:
    """Certificates of authorities (PEM, one or more), under a name that policies use."""

    def __init__(self, name: str, pem: bytes) -> None:
        from cryptography import x509  # noqa: PLC0415 - lazily

        self.name = name
        if len(pem) > 4 << 20:
            raise KeyInvalid(f"trust store {name}: {len(pem)} bytes of certificates")
        try:
            self.certificates = x509.load_pem_x509_certificates(pem)
        except ValueError as error:
            raise KeyInvalid(f"trust store {name}: {error}") from error


def verify_jws(data: bytes, stores: tuple[TrustStore, ...], now: datetime, level: Level = "strict") -> Notation | None:
    """What the envelope *data* says, when a certificate of *stores* vouches for its signer, else None.

    Raises :class:`SignatureInvalid` for a bad form, a signature that does not hold, and what *level* does not let pass.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise SignatureInvalid(f"a Notation envelope of {len(data)} bytes; {MAX_ENVELOPE_BYTES} are allowed")
    envelope: _Envelope = decode(data, _Envelope, "a Notation envelope")
    # 4. the form
    protected = decode(_urlsafe(envelope.protected, "protected"), dict[str, Any], "Notation's protected header")
    algorithm = _check_protected(protected)
    chain = _chain(envelope.header.x5c)
    # 5. the signature, by the leaf; the leaf, by an authority that the policy names
    key = check_key(chain[0].public_key())
    signed = f"{envelope.protected}.{envelope.payload}".encode()
    if not _signature_holds(key, algorithm, _urlsafe(envelope.signature, "signature"), signed):
        raise SignatureInvalid("the Notation signature does not hold")
    _check_chain(chain)
    if not any(certificate in store.certificates for store in stores for certificate in chain):
        return None
    # 6. the content
    payload: _Payload = decode(_urlsafe(envelope.payload, "payload"), _Payload, "a Notation payload")
    # 8. times
    warnings = _check_times(protected, chain, now, level)
    return Notation(
        payload.target.digest, payload.target.size, chain[0].subject.rfc4514_string(), str(_signing_time(protected)),
        str(protected.get(EXPIRY, "")), warnings,
    )  # fmt: skip


_ALGORITHMS = {
    "PS256": ("rsa", "SHA256"), "PS384": ("rsa", "SHA384"), "PS512": ("rsa", "SHA512"),
    "ES256": ("secp256r1", "SHA256"), "ES384": ("secp384r1", "SHA384"), "ES512": ("secp521r1", "SHA512"),
}  # fmt: skip


def _check_protected(protected: dict[str, Any]) -> str:
    algorithm, critical = protected.get("alg"), protected.get("crit")
    if algorithm not in _ALGORITHMS:
        raise SignatureInvalid(f"Notation's algorithm {str(algorithm)[:40]!r} is none of {', '.join(_ALGORITHMS)}")
    if protected.get("cty") != MEDIA_TYPE:
        raise SignatureInvalid(f"a Notation payload of the type {str(protected.get('cty'))[:80]!r}")
    if not isinstance(critical, list) or not all(isinstance(name, str) for name in critical) or SCHEME not in critical:
        raise SignatureInvalid("Notation's signing scheme is not marked critical")
    if unknown := [name for name in critical if name not in _UNDERSTOOD]:
        raise SignatureInvalid(f"the critical header {unknown[0][:80]!r} is not understood")
    if missing := [name for name in critical if name not in protected]:
        raise SignatureInvalid(f"the critical header {missing[0][:80]!r} is not there")
    if EXPIRY in protected and EXPIRY not in critical:
        raise SignatureInvalid("an expiry that is not critical")
    if protected.get(SCHEME) not in _SCHEMES:
        raise SignatureInvalid(f"Notation's signing scheme {str(protected.get(SCHEME))[:80]!r} is not known")
    return str(algorithm)


def _signature_holds(key: PublicKey, algorithm: str, signature: bytes, signed: bytes) -> bool:
    kind, hash_name = _ALGORITHMS[algorithm]
    if not key.kind.startswith(kind):
        raise SignatureInvalid(f"Notation's algorithm {algorithm} with a key of the kind {key.kind}")
    if kind == "rsa":
        return key.verify(signature, signed, padding="pss", hash_name=hash_name)
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature  # noqa: PLC0415

    if len(signature) % 2:
        return False
    half = len(signature) // 2
    der = encode_dss_signature(int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))
    return key.verify(der, signed, hash_name=hash_name)


def _chain(x5c: tuple[str, ...]) -> list[Certificate]:
    from cryptography import x509  # noqa: PLC0415

    if not 0 < len(x5c) <= _MAX_CHAIN:
        raise SignatureInvalid(f"a chain of {len(x5c)} certificates; 1 to {_MAX_CHAIN} are allowed")
    try:
        return [
            x509.load_der_x509_certificate(decode_base64(text, "a certificate", _MAX_CERTIFICATE_BYTES)) for text in x5c
        ]
    except ValueError as error:
        raise SignatureInvalid(f"a certificate cannot be read: {error}") from error


def _check_chain(chain: list[Certificate]) -> None:
    """signature-specification.md, "Certificate Requirements": order, signatures, basic constraints, key usage."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

    for number, certificate in enumerate(chain):
        issuer = chain[number + 1] if number + 1 < len(chain) else certificate
        check_key(certificate.public_key())
        try:
            # A lone self-signed leaf, or the root at the end, is checked with itself.
            if number + 1 < len(chain) or certificate.issuer == certificate.subject:
                certificate.verify_directly_issued_by(issuer)
            usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
            constraints = _extension(certificate, x509.BasicConstraints)
            extended = _extension(certificate, x509.ExtendedKeyUsage)
        except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
            raise SignatureInvalid(f"certificate {number} of the chain: {error or 'is not by the next one'}") from error
        if number == 0:
            if not usage.digital_signature or (constraints is not None and constraints.ca):
                raise SignatureInvalid("the leaf certificate may not sign, or is an authority's")
            if extended is not None and ExtendedKeyUsageOID.CODE_SIGNING not in extended:
                raise SignatureInvalid("the leaf certificate is not for signing code")
        elif constraints is None or not constraints.ca or not usage.key_cert_sign:
            raise SignatureInvalid(f"certificate {number} of the chain is no authority's")
        elif constraints.path_length is not None and constraints.path_length < number - 1:
            raise SignatureInvalid(f"certificate {number} allows {constraints.path_length} authorities below it")


def _extension(certificate: Certificate, kind: Any) -> Any:
    from cryptography import x509  # noqa: PLC0415

    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _check_times(protected: dict[str, Any], chain: list[Certificate], now: datetime, level: Level) -> tuple[str, ...]:
    """Expiry and validity: *strict* refuses both, *permissive* and *audit* let them pass with a warning."""
    faults = []
    if EXPIRY in protected and now > _time(protected[EXPIRY], "expiry"):
        faults.append(f"the signature expired at {protected[EXPIRY]}")
    for number, certificate in enumerate(chain):
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            faults.append(
                f"certificate {number} is valid from {certificate.not_valid_before_utc} "
                f"to {certificate.not_valid_after_utc}"
            )
    if _signing_time(protected) > now:
        faults.append(f"the signature is of {_signing_time(protected)}, and the clock says {now}")
    if faults and level == "strict":
        raise SignatureInvalid(faults[0])
    return tuple(faults)


def _signing_time(protected: dict[str, Any]) -> datetime:
    return _time(protected.get(TIME, protected.get(AUTHORITY_TIME)), "signing time")


def _time(value: object, what: str) -> datetime:
    try:
        found = datetime.fromisoformat(str(value)[:40])
    except ValueError as error:
        raise SignatureInvalid(f"Notation's {what} {str(value)[:60]!r} is no time of RFC 3339") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _urlsafe(text: str, what: str) -> bytes:
    if not text.isascii() or len(text) > MAX_ENVELOPE_BYTES or any(character in "+/=\n\r " for character in text):
        raise SignatureInvalid(f"Notation's {what} is no base64url without padding")
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise SignatureInvalid(f"Notation's {what}: {error}") from error
