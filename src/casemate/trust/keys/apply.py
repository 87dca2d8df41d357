"""Keys on tokens, through a PKCS#11 library that is loaded into this process. The command line alone uses it.

The PIN goes to the token and nowhere else. A key that wants it for each signature (CKA_ALWAYS_AUTHENTICATE: PIV's slot
9c) gets it after C_SignInit, as CKU_CONTEXT_SPECIFIC has it (PKCS#11 v2.40, 5.6 and 11.6).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Generator
from typing import Any

import msgspec

from casemate.spec.errors import HostLacks
from casemate.trust.keys.errors import PinLocked, PinWrong, TokenFailed, TokenKeyMissing, TokenMissing
from casemate.trust.keys.uri import PIV_IDS, TokenAddress, parse_address
from casemate.trust.signature.errors import KeyInvalid
from casemate.trust.signature.keys import check_key

#: Where Debian puts the libraries of tokens; the first that is there is taken when none is named.
MODULES = (
    "/usr/lib/x86_64-linux-gnu/libykcs11.so.2", "/usr/lib/aarch64-linux-gnu/libykcs11.so.2",
    "/usr/lib/x86_64-linux-gnu/opensc-pkcs11.so", "/usr/lib/aarch64-linux-gnu/opensc-pkcs11.so",
    "/usr/lib/softhsm/libsofthsm2.so",
)  # fmt: skip
MAX_KEYS = 1000
#: DER of CKA_EC_PARAMS to curve (RFC 5480, 2.1.1.1) and the hash that goes with it.
_CURVES = {
    "06082a8648ce3d030107": ("SECP256R1", "sha256"), "06052b81040022": ("SECP384R1", "sha384"),
    "06052b81040023": ("SECP521R1", "sha512"),
}  # fmt: skip
AskPin = Callable[[str], bytes]


class TokenRow(msgspec.Struct, frozen=True):
    """A private key on a token, as a person finds it. *address*: what names it."""

    token: str
    serial: str
    label: str
    id: str
    kind: str
    slot: str
    address: str


class TokenKey:
    """A key on a token, with its session."""

    def __init__(self, session: Any, key: Any, token: str, ask_pin: AskPin) -> None:
        import pkcs11  # noqa: PLC0415 - lazily

        public = _public_of(session, key)
        self._session = session
        self._key = key
        self._public = public
        self._token = token
        self._ask = ask_pin
        self.kind = check_key(public).kind
        self._always = bool(_attribute(key, pkcs11.Attribute.ALWAYS_AUTHENTICATE))

    def close(self) -> None:
        """End the session; with the last one of a token its login ends."""
        with _translated(self._token):
            self._session.close()

    @property
    def public_pem(self) -> str:
        from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 - lazily

        spki = form.PublicFormat.SubjectPublicKeyInfo
        return str(self._public.public_bytes(form.Encoding.PEM, spki).decode())

    def sign(self, data: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519  # noqa: PLC0415 - lazily
        from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature  # noqa: PLC0415
        from pkcs11 import Mechanism  # noqa: PLC0415

        pin = {"pin": _pin_text(self._ask(self._token))} if self._always else {}
        with _translated(self._token):
            if isinstance(self._public, ec.EllipticCurvePublicKey):
                name = next(hash_ for curve, hash_ in _CURVES.values() if curve.lower() == self._public.curve.name)
                # The digest is made here: plain ECDSA is what every token has.
                raw = self._key.sign(hashlib.new(name, data).digest(), mechanism=Mechanism.ECDSA, **pin)
                half = len(raw) // 2
                return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
            if isinstance(self._public, ed25519.Ed25519PublicKey):
                return bytes(self._key.sign(data, mechanism=Mechanism.EDDSA, **pin))
            return bytes(self._key.sign(data, mechanism=Mechanism.SHA256_RSA_PKCS, **pin))


def open_token_key(text: str, ask_pin: AskPin, module: str = "") -> TokenKey:
    """The private key that the address *text* names, logged in.

    *ask_pin* is asked for the PIN of a token by its label. Raises :class:`TokenMissing`, :class:`TokenKeyMissing`,
    :class:`PinWrong`, :class:`PinLocked`, :class:`TokenFailed`.
    """
    address = parse_address(text)
    library = _library(address.module or module)
    with _translated(address.token or "the token"):
        tokens = [token for token in _tokens(library) if _fits(token, address)]
        if len(tokens) != 1:
            names = ", ".join(sorted(_name(token) for token in tokens)) or "none"
            raise TokenMissing(f"{text[:200]}: {len(tokens)} tokens fit it ({names})")
        token = tokens[0]
        session = _open(token, ask_pin)
        try:
            keys = [key for key in _private_keys(session) if _names(key, address)]
            if len(keys) != 1:
                raise TokenKeyMissing(f"{text[:200]}: {len(keys)} private keys of {_name(token)} fit it")
            return TokenKey(session, keys[0], _name(token), ask_pin)
        except BaseException:
            session.close()
            raise


def _open(token: Any, ask_pin: AskPin) -> Any:
    """A session that is logged in. A login is the process's, so a second key of one token finds it made."""
    import pkcs11  # noqa: PLC0415 - lazily

    try:
        return token.open(user_pin=_pin_text(ask_pin(_name(token))))
    except pkcs11.UserAlreadyLoggedIn:
        return token.open()


def list_tokens(module: str, ask_pin: AskPin) -> list[TokenRow]:
    """Every private key of every token that *ask_pin* gives a PIN for."""
    library = _library(module)
    rows: list[TokenRow] = []
    with _translated("the token"):
        for token in _tokens(library):
            with _open(token, ask_pin) as session:
                rows += [_row(session, token, key) for key in _private_keys(session)]
    return rows


def _row(session: Any, token: Any, key: Any) -> TokenRow:
    ident = bytes(key.id or b"")
    slot = next((name for name, number in PIV_IDS.items() if ident == bytes([number])), "")
    try:
        kind = check_key(_public_of(session, key)).kind
    except (KeyInvalid, TokenKeyMissing) as error:
        kind = error.detail[:60]
    where = f"pkcs11:serial={_serial(token)};" + (
        f"object={_escaped(key.label)}" if key.label else f"id={_percent(ident)}"
    )
    return TokenRow(_name(token), _serial(token), key.label or "", ident.hex(), kind, slot, where)


def _library(path: str) -> Any:
    try:
        import pkcs11  # noqa: PLC0415 - lazily
    except ImportError as error:
        raise HostLacks(
            "the Python package python-pkcs11 is not installed", remedy="pip install 'python-pkcs11>=0.10'"
        ) from error
    found = path or next((name for name in MODULES if os.path.exists(name)), "")  # noqa: PTH110
    if not found:
        raise TokenFailed(f"no PKCS#11 library is named, and none of {', '.join(MODULES)} is there")
    with _translated(found):
        return pkcs11.lib(found)


def _tokens(library: Any) -> list[Any]:
    from pkcs11 import PKCS11Error, TokenFlag  # noqa: PLC0415 - lazily

    found = []
    for slot in library.get_slots(token_present=True):
        try:
            token = slot.get_token()
        except PKCS11Error:
            continue  # pulled out between two calls, or unreadable: not a token that anybody means
        if TokenFlag.TOKEN_INITIALIZED in token.flags:
            found.append(token)
    return found


def _name(token: Any) -> str:
    return str(token.label).strip("\0 ") or _serial(token)


def _serial(token: Any) -> str:
    return bytes(token.serial).decode("ascii", "replace").strip("\0 ")


def _fits(token: Any, address: TokenAddress) -> bool:
    have = {"token": _name(token), "serial": _serial(token), "manufacturer": str(token.manufacturer_id).strip("\0 "),
            "model": str(token.model).strip("\0 ")}  # fmt: skip
    wanted = {
        "token": address.token,
        "serial": address.serial,
        "manufacturer": address.manufacturer,
        "model": address.model,
    }
    return (address.slot < 0 or token.slot.slot_id == address.slot) and all(
        not value or have[name] == value for name, value in wanted.items()
    )


def _private_keys(session: Any) -> list[Any]:
    import itertools  # noqa: PLC0415

    import pkcs11  # noqa: PLC0415 - lazily

    found = session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY})
    return list(itertools.islice(found, MAX_KEYS))


def _names(key: Any, address: TokenAddress) -> bool:
    return (not address.object or key.label == address.object) and (not address.id or bytes(key.id) == address.id)


def _public_of(session: Any, key: Any) -> Any:
    """The public half of *key* (the object of the same id), as ``cryptography`` has it."""
    import pkcs11  # noqa: PLC0415 - lazily
    from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    wanted = {pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY, pkcs11.Attribute.ID: bytes(key.id)}
    public = next(iter(session.get_objects(wanted)), None)
    if public is None:
        raise TokenKeyMissing(f"the token has no public key for the private one of the id {bytes(key.id).hex()}")
    try:
        if public.key_type == pkcs11.KeyType.RSA:
            numbers = (int.from_bytes(public[name], "big")
                       for name in (pkcs11.Attribute.PUBLIC_EXPONENT, pkcs11.Attribute.MODULUS))  # fmt: skip
            return rsa.RSAPublicNumbers(*numbers).public_key()
        point = _octets(bytes(public[pkcs11.Attribute.EC_POINT]))
        if public.key_type == pkcs11.KeyType.EC_EDWARDS:
            return Ed25519PublicKey.from_public_bytes(point)
        curve, _ = _CURVES[bytes(public[pkcs11.Attribute.EC_PARAMS]).hex()]
        return ec.EllipticCurvePublicKey.from_encoded_point(getattr(ec, curve)(), point)
    except (KeyError, ValueError) as error:
        raise KeyInvalid(f"the token's key {bytes(key.id).hex()} is of a kind that is not used: {error}") from error


def _octets(der: bytes) -> bytes:
    """CKA_EC_POINT is a DER octet string; some libraries leave the frame out."""
    if len(der) > 2 and der[0] == 4 and der[1] == len(der) - 2:
        return der[2:]
    if len(der) > 3 and der[:2] == b"\x04\x81" and der[2] == len(der) - 3:
        return der[3:]
    return der


def _attribute(key: Any, name: Any) -> Any:
    from pkcs11 import PKCS11Error  # noqa: PLC0415 - lazily

    try:
        return key[name]
    except PKCS11Error:
        return None


def _pin_text(pin: bytes) -> str:
    try:
        return pin.decode()
    except UnicodeDecodeError as error:
        raise PinWrong("the PIN is no UTF-8") from error


def _escaped(text: str) -> str:
    return "".join(char if char.isalnum() and char.isascii() else _percent(char.encode()) for char in text)


def _percent(data: bytes) -> str:
    return "".join(f"%{byte:02X}" for byte in data)


@contextlib.contextmanager
def _translated(token: str) -> Generator[None]:
    """The library's errors as ours."""
    import pkcs11  # noqa: PLC0415 - lazily

    try:
        yield
    except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange) as error:
        raise PinWrong(f"{token} refuses the PIN ({type(error).__name__})") from error
    except pkcs11.PinLocked as error:
        raise PinLocked(f"the PIN of {token} is locked") from error
    except (pkcs11.TokenNotPresent, pkcs11.TokenNotRecognised, pkcs11.DeviceRemoved, pkcs11.SlotIDInvalid) as error:
        raise TokenMissing(f"{token}: {type(error).__name__}") from error
    except pkcs11.PKCS11Error as error:
        raise TokenFailed(f"{token}: {type(error).__name__} {error}"[:400]) from error
