"""A private key out of a PEM file, and what every signing key offers. Pure: bytes in, signatures out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from casemate.trust.keys.errors import PassphraseWrong, PrivateKeyInvalid
from casemate.trust.signature.errors import KeyInvalid
from casemate.trust.signature.keys import check_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

#: An RSA key of 8,192 bits has 6,400 bytes as PEM, encrypted a little more.
MAX_FILE_BYTES = 64 << 10
#: What cosign writes is sealed with a cipher (XSalsa20-Poly1305) that no library of ours has.
_COSIGN_SEALED = (b"ENCRYPTED SIGSTORE PRIVATE KEY", b"ENCRYPTED COSIGN PRIVATE KEY")


class SigningKey(Protocol):
    """A key that signs. *public_pem*: SubjectPublicKeyInfo; *kind*: as :class:`PublicKey` has it."""

    @property
    def public_pem(self) -> str: ...

    @property
    def kind(self) -> str: ...

    def sign(self, data: bytes) -> bytes:
        """The signature over *data*: DER for ECDSA (with the curve's hash), PKCS#1 v1.5 with SHA-256 for RSA."""
        ...


class FileKey:
    """A key in memory."""

    def __init__(self, key: PrivateKeyTypes) -> None:
        self._key = key
        try:
            self.kind = check_key(key.public_key()).kind
        except KeyInvalid as error:
            raise PrivateKeyInvalid(error.detail) from error

    @property
    def public_pem(self) -> str:
        from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 - lazily

        spki = form.PublicFormat.SubjectPublicKeyInfo
        return self._key.public_key().public_bytes(form.Encoding.PEM, spki).decode()

    def sign(self, data: bytes) -> bytes:
        from cryptography.hazmat.primitives import hashes  # noqa: PLC0415 - lazily
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa  # noqa: PLC0415

        key = self._key
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(data)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            found: dict[str, Any] = {"secp256r1": hashes.SHA256, "secp384r1": hashes.SHA384, "secp521r1": hashes.SHA512}
            return key.sign(data, ec.ECDSA(found[key.curve.name]()))
        assert isinstance(key, rsa.RSAPrivateKey)
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())

    def sealed(self, passphrase: bytes) -> bytes:
        """The key as PEM (PKCS#8), encrypted where there is a *passphrase*."""
        from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 - lazily

        how: Any = form.BestAvailableEncryption(passphrase) if passphrase else form.NoEncryption()
        return self._key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, how)


def is_sealed(data: bytes) -> bool:
    """Whether the PEM *data* wants a passphrase."""
    return b"ENCRYPTED" in data[:200] or b"Proc-Type: 4,ENCRYPTED" in data[:400]


def load_private_key(data: bytes, passphrase: bytes = b"") -> FileKey:
    """The key in the PEM *data*. Raises :class:`PassphraseWrong`, :class:`PrivateKeyInvalid`."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - lazily
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    if not 0 < len(data) <= MAX_FILE_BYTES:
        raise PrivateKeyInvalid(f"a key file of {len(data)} bytes; 1 to {MAX_FILE_BYTES} are allowed")
    if any(mark in data[:200] for mark in _COSIGN_SEALED):
        raise PrivateKeyInvalid(
            "the key is sealed in cosign's own form",
            remedy="Make the key with `openssl genpkey` or `casemate trust key new`; cosign takes it over with "
            "`cosign import-key-pair --key FILE`.",
        )
    if is_sealed(data) and not passphrase:
        raise PassphraseWrong("the key is encrypted, and there is no passphrase")
    try:
        return FileKey(load_pem_private_key(data, passphrase if is_sealed(data) else None))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if is_sealed(data) and "password" in str(error).lower():
            raise PassphraseWrong("the passphrase does not open the key") from error
        raise PrivateKeyInvalid(f"no private key that can be used: {str(error)[:200]}") from error


def new_key() -> FileKey:
    """A fresh key: ECDSA on P-256, which cosign, Notation, TUF and every token know."""
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - lazily

    return FileKey(ec.generate_private_key(ec.SECP256R1()))
