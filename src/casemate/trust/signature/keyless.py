"""Signatures without a kept key: a certificate of some minutes, and a public log's word for when it was used.

``sigstore`` (an optional extra) does the mathematics, offline: chain, certificate transparency, identity, inclusion in
the log with its signed checkpoint, and the log entry's being of this content, key and signature (CVE-2026-22703). The
last is checked here once more, since a slip there once let a signer pass with another's entry. Pure; loaded lazily.

Whom to trust is the policy's to say: ``trusted_root`` (JSON, as `sigstore trust-root` has it), or the public instance's
as it came with the library.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from casemate.spec.errors import HostLacks
from casemate.trust.signature.cosign import check_entry, parse_bundle
from casemate.trust.signature.errors import KeyInvalid, SignatureInvalid
from casemate.trust.signature.keys import check_key
from casemate.trust.signature.statement import Statement, parse_statement

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

#: The public instance's has 7 KiB; one with all its former keys some more.
MAX_ROOT_BYTES = 1 << 20
_PUBLIC = "https%3A%2F%2Ftuf-repo-cdn.sigstore.dev"


class KeylessSigner(msgspec.Struct, frozen=True, tag="keyless", forbid_unknown_fields=True):
    """Who signs with an identity: *identity* (SAN: a mail address or a URI; ``*`` at the end stands for anything) that
    *issuer* vouched for. *trusted_root*: JSON; empty: the public instance's."""

    name: str
    identity: str
    issuer: str
    trusted_root: str = ""
    repositories: tuple[str, ...] = ()


def check_signer(signer: KeylessSigner) -> None:
    """Raises :class:`KeyInvalid` for a signer that could never be met, or by anybody, and for a root that is none."""
    check_names(signer)
    if signer.trusted_root:
        verifier_of(signer.trusted_root)


def check_names(signer: KeylessSigner) -> None:
    """As :func:`check_signer`, without a look into the trusted root; loads nothing."""
    if not signer.issuer.startswith("https://") or not signer.identity.rstrip("*") or "*" in signer.identity[:-1]:
        raise KeyInvalid(
            f"signer {signer.name}: an issuer (https://...) and an identity are wanted, `*` only at its end",
            remedy="For example issuer https://token.actions.githubusercontent.com, identity "
            "https://github.com/ORG/REPO/.github/workflows/release.yml@*.",
        )
    if len(signer.trusted_root) > MAX_ROOT_BYTES:
        raise KeyInvalid(f"signer {signer.name}: a trusted root of {len(signer.trusted_root)} bytes")


@lru_cache(maxsize=16)
def verifier_of(trusted_root: str) -> Any:
    """A verifier for the instance that *trusted_root* describes."""
    models, verify = _sigstore()
    try:
        if not trusted_root:
            from importlib.resources import files  # noqa: PLC0415 - only here

            trusted_root = (files("sigstore") / "_store" / _PUBLIC / "trusted_root.json").read_text()
        from sigstore_models.trustroot.v1 import TrustedRoot  # noqa: PLC0415 - lazily

        return verify.Verifier(trusted_root=models.TrustedRoot(TrustedRoot.from_json(trusted_root)))
    except Exception as error:  # pydantic's and sigstore's errors have no root of their own
        raise KeyInvalid(f"the trusted root cannot be used: {type(error).__name__}: {error}"[:300]) from error


def _sigstore() -> tuple[Any, Any]:
    try:
        from sigstore import models, verify  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise HostLacks(
            "the Python package sigstore is not installed, and a signer of the policy needs it",
            remedy="Install it beside Casemate: pip install 'sigstore>=4.5,<5'.",
        ) from error
    return models, verify


def verify_keyless(data: bytes, signer: KeylessSigner) -> Statement | None:
    """The statement in the bundle *data*, when it is by *signer*; None when it is by somebody else.

    Raises :class:`SignatureInvalid` for a bundle that does not hold. Steps 3 to 8 of the package's plan.
    """
    bundle = parse_bundle(data)  # 3, 4: our own form and bounds first
    if not bundle.keyless:
        return None
    models, verify = _sigstore()
    verifier = verifier_of(signer.trusted_root)
    other = _Other()
    try:
        parsed = models.Bundle.from_json(data)
        certificate: Certificate = parsed.signing_certificate
        kind, payload = verifier.verify_dsse(parsed, _Policy(signer, verify.policy, other))  # 5, 7, 8
    except Exception as error:  # as above: whatever it was, nothing is proven
        if other.seen:
            return None
        raise SignatureInvalid(f"keyless: {type(error).__name__}: {error}"[:300]) from error
    if payload != bundle.envelope.payload or kind != bundle.envelope.payload_type:
        raise SignatureInvalid("keyless: the library read another payload than we did")
    key = check_key(certificate.public_key())
    good = tuple(row for row in bundle.envelope.signatures if key.verify(row, bundle.envelope.signed))
    if not good or not bundle.entries:
        raise SignatureInvalid("keyless: no signature by the certificate's key, or no log entry")
    for entry in bundle.entries:
        check_entry(entry, bundle.envelope, key, good)  # 7
    return parse_statement(bundle.envelope)  # 6


class _Other:
    """Whether the identity was another one: then the bundle is not wrong, it is somebody else's."""

    def __init__(self) -> None:
        self.seen = False


class _Policy:
    """What sigstore asks about a certificate whose chain holds."""

    def __init__(self, signer: KeylessSigner, policies: Any, other: _Other) -> None:
        self._signer = signer
        self._policies = policies
        self._other = other

    def verify(self, certificate: Certificate) -> None:
        from sigstore.errors import VerificationError  # noqa: PLC0415 - lazily

        signer, policies = self._signer, self._policies
        issuer = policies.AnyOf([policies.OIDCIssuerV2(signer.issuer), policies.OIDCIssuer(signer.issuer)])
        try:
            issuer.verify(certificate)
            if not any(_fits(signer.identity, name) for name in names_of(certificate)):
                raise VerificationError(f"the certificate is not of {signer.identity}")
        except VerificationError:
            self._other.seen = True
            raise


def names_of(certificate: Certificate) -> list[str]:
    """Mail addresses and URIs among the certificate's alternative names."""
    from cryptography import x509  # noqa: PLC0415 - lazily

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    kinds = (x509.RFC822Name, x509.UniformResourceIdentifier)
    return [name.value for name in found if isinstance(name, kinds)]


def _fits(wanted: str, name: str) -> bool:
    return name.startswith(wanted[:-1]) if wanted.endswith("*") else name == wanted
