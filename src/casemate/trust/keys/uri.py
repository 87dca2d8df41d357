"""Addresses of keys on tokens: ``pkcs11:token=release;object=signing`` (RFC 7512). Pure.

Of its own it adds ``x-piv-slot=9c``: the slots of a PIV card (NIST SP 800-73-4) under the ids that both Yubico's and
OpenSC's libraries give them. A PIN in the address is refused: it would stand in `ps` and in the shell's history.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from casemate.spec.errors import InvalidArgument

MAX_CHARS = 1024
#: PIV slot to CKA_ID: 9a authentication, 9c digital signature (asks for the PIN at each use), 9d key management,
#: 9e card authentication, 82 to 95 retired key management.
PIV_IDS: dict[str, int] = {"9a": 1, "9c": 2, "9d": 3, "9e": 4, **{f"{0x82 + n:x}": 5 + n for n in range(20)}}
_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
#: Attributes that say which token or key is meant; others (library-version ...) are refused rather than passed over.
_KNOWN = frozenset((
    "token", "manufacturer", "serial", "model", "slot-id", "object", "type", "id", "x-piv-slot", "module-path",
    "pin-source",
))  # fmt: skip


class TokenAddressInvalid(InvalidArgument):
    code = "trust.token_address_invalid"
    title = "The pkcs11: address cannot be read"
    remedy = "Write it as pkcs11:token=LABEL;object=LABEL, with id=%02 or x-piv-slot=9c for a key without a label."


class TokenAddress(msgspec.Struct, frozen=True):
    """What the address says; empty means "any"."""

    token: str = ""
    serial: str = ""
    manufacturer: str = ""
    model: str = ""
    slot: Annotated[int, Meta(ge=-1)] = -1
    object: str = ""
    id: bytes = b""
    module: str = ""


def parse_address(text: str) -> TokenAddress:
    """*text* as a :class:`TokenAddress`; raises :class:`TokenAddressInvalid`."""
    if not text.startswith("pkcs11:") or len(text) > MAX_CHARS or not text.isascii() or not text.isprintable():
        raise TokenAddressInvalid(f"{text[:80]!r} is no pkcs11: address of at most {MAX_CHARS} characters")
    path, _, query = text.removeprefix("pkcs11:").partition("?")
    found: dict[str, bytes] = {}
    for part in [*path.split(";"), *query.split("&")]:
        if not part:
            continue
        name, equals, value = part.partition("=")
        if name == "pin-value":
            raise TokenAddressInvalid("a PIN in the address could be read by others", remedy="Give --pin-file FILE.")
        if not equals or name not in _KNOWN or name in found:
            raise TokenAddressInvalid(f"{name[:60]!r} is no attribute that is known, or stands twice")
        found[name] = _unescaped(value, name)
    if found.get("type", b"private") != b"private":
        raise TokenAddressInvalid(f"type={found['type'].decode('ascii', 'replace')[:40]}: a private key signs")
    if "pin-source" in found:
        raise TokenAddressInvalid("pin-source is not read", remedy="Give --pin-file FILE.")
    return TokenAddress(
        _text(found, "token"), _text(found, "serial"), _text(found, "manufacturer"), _text(found, "model"),
        _slot(_text(found, "slot-id")), _text(found, "object"), _key_id(found), _text(found, "module-path"),
    )  # fmt: skip


def _unescaped(value: str, name: str) -> bytes:
    if _BAD_ESCAPE.search(value):
        raise TokenAddressInvalid(f"{name}: {value[:60]!r} holds a % without two hexadecimal digits")
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), value).encode("latin-1")


def _text(found: dict[str, bytes], name: str) -> str:
    try:
        return found.get(name, b"").decode()
    except UnicodeDecodeError as error:
        raise TokenAddressInvalid(f"{name} is no UTF-8") from error


def _slot(text: str) -> int:
    if text and not (text.isdigit() and len(text) < 20):
        raise TokenAddressInvalid(f"slot-id={text[:40]} is no number")
    return int(text) if text else -1


def _key_id(found: dict[str, bytes]) -> bytes:
    slot = _text(found, "x-piv-slot").lower()
    if not slot:
        return found.get("id", b"")
    if "id" in found or slot not in PIV_IDS:
        raise TokenAddressInvalid(
            f"x-piv-slot={slot[:20]} is none of {', '.join(list(PIV_IDS)[:4])}, 82 to 95, or id is there too"
        )
    return bytes([PIV_IDS[slot]])
