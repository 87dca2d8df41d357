"""Public keys, and signatures checked with them. ``cryptography`` is loaded when the first key is."""

from __future__ import annotations

import binascii
import hashlib
from base64 import b64decode
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from casemate.spec.errors import HostLacks
from casemate.trust.signature.errors import KeyInvalid, SignatureInvalid

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    AnyKey = EllipticCurvePublicKey | Ed25519PublicKey | RSAPublicKey

#: An RSA key of 8,192 bits has 1,500 bytes as PEM.
MAX_PEM_BYTES = 16 << 10
#: RSA of 8,192 bits signs with 1,024 bytes.
MAX_SIGNATURE_BYTES = 2048
_MIN_RSA_BITS, _MAX_RSA_BITS = 2048, 8192
_CURVE_HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}

RsaPadding = Literal["pkcs1v15", "pss"]


class PublicKey:
    """A checked key. *ident*: SHA-256 of its DER (SubjectPublicKeyInfo), in hexadecimal."""

    __slots__ = ("_key", "ident", "kind")

    def __init__(self, key: AnyKey, kind: str, der: bytes) -> None:
        self._key = key
        self.kind = kind
        self.ident = hashlib.sha256(der).hexdigest()

    def verify(self, signature: bytes, data: bytes, *, padding: RsaPadding = "pkcs1v15", hash_name: str = "") -> bool:
        """Whether *signature* (DER for ECDSA) over *data* is by this key.

        *hash_name* (``SHA256``, ``SHA384``, ``SHA512``): for RSA, and to override the curve's own.
        """
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: PLC0415 - lazily, see above
        from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import padding as paddings  # noqa: PLC0415

        if not 0 < len(signature) <= MAX_SIGNATURE_BYTES:
            return False
        known: dict[str, Callable[[], hashes.HashAlgorithm]]
        known = {"SHA256": hashes.SHA256, "SHA384": hashes.SHA384, "SHA512": hashes.SHA512}
        key = self._key
        try:
            if isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, data)
            elif isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(signature, data, ec.ECDSA(known[hash_name or _CURVE_HASHES[key.curve.name]]()))
            else:
                assert isinstance(key, rsa.RSAPublicKey)
                algorithm = known[hash_name or "SHA256"]()
                how: paddings.AsymmetricPadding = paddings.PKCS1v15()
                if padding == "pss":
                    how = paddings.PSS(mgf=paddings.MGF1(algorithm), salt_length=paddings.PSS.DIGEST_LENGTH)
                key.verify(signature, data, how, algorithm)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError):
            return False
        return True


def load_public_key(data: bytes) -> PublicKey:
    """A PEM or DER public key; raises :class:`KeyInvalid` for anything else, and for what is too weak."""
    crypto = _crypto()
    if not 0 < len(data) <= MAX_PEM_BYTES:
        raise KeyInvalid(f"a key of {len(data)} bytes; 1 to {MAX_PEM_BYTES} are allowed")
    try:
        load = crypto.load_pem_public_key if data.lstrip().startswith(b"-----BEGIN") else crypto.load_der_public_key
        return check_key(load(data))
    except (ValueError, TypeError, UnicodeError, _unsupported()) as error:
        raise KeyInvalid(f"{data[:40]!r} is no public key: {error}") from error


def check_key(key: object) -> PublicKey:
    """*key* (of ``cryptography``) as a :class:`PublicKey`, when it is of a kind and size that are allowed."""
    crypto = _crypto()
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415

    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVE_HASHES:
        kind = key.curve.name
    elif isinstance(key, ed25519.Ed25519PublicKey):
        kind = "ed25519"
    elif isinstance(key, rsa.RSAPublicKey) and _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
        kind = f"rsa{key.key_size}"
    else:
        raise KeyInvalid(f"{type(key).__name__.strip('_')} of this kind or size is not allowed")
    der = key.public_bytes(crypto.Encoding.DER, crypto.PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(key, kind, der)


def decode_base64(text: str, what: str, limit: int) -> bytes:
    """Strict base64, standard alphabet; raises :class:`SignatureInvalid`."""
    if len(text) > limit * 4 // 3 + 4:
        raise SignatureInvalid(f"{what} has {len(text)} characters; {limit} bytes are allowed")
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureInvalid(f"{what} is no base64: {error}") from error


def _crypto() -> ModuleType:
    try:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    except ImportError as error:
        raise HostLacks(
            "the Python package cryptography is not installed", remedy="pip install 'cryptography>=44'"
        ) from error
    return serialization


def _unsupported() -> type[Exception]:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415

    return UnsupportedAlgorithm
