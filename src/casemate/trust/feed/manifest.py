"""What a mirror of feeds offers, and who says so: the manifest, plain or signed. Pure: bytes in, values out.

Plain, it is JSON and believed by TLS, or by a digest that the caller knows::

    {"feeds": [{"name": "debian", "kind": "debian-tracker", "file": "debian.json.xz", "sha256": "<64 digits>",
                "date": "2026-11-20"}]}

Signed, the same stands as the payload of a DSSE envelope (DSSE 1.0.2), with ``version`` and ``expires`` beside
``feeds``. The numbered plan of :func:`verify_manifest`:

1. the envelope and its counts are bounded, its payload type is ours;
2. at least *threshold* different keys of those that are trusted have signed the payload's exact bytes;
3. only now the payload is read; it has to say a version and a last day;
4. the last day has not passed (freeze);
5. no key that signed has been seen with a higher version (rollback), nor with other content under the same.

One key therefore signs one series of manifests.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from casemate.spec.errors import CasemateError
from casemate.trust.feed.model import FeedInvalid, FeedKind
from casemate.trust.signature.errors import SignatureInvalid
from casemate.trust.signature.keys import PublicKey
from casemate.trust.signature.statement import Envelope, pae, parse_envelope

if TYPE_CHECKING:
    from casemate.trust.keys.private import SigningKey

MAX_PAYLOAD_BYTES = 1 << 20
#: The payload as base64, and 64 signatures of 2,048 bytes.
MAX_MANIFEST_BYTES = 2 << 20
MAX_FEEDS = 1000
MAX_VERSION = (1 << 53) - 1  # what every JSON reader holds exactly (RFC 8259, 6)
PAYLOAD_TYPE = "application/vnd.casemate.feeds.v1+json"
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}(/[A-Za-z0-9][A-Za-z0-9._-]{0,199}){0,8}\Z")


class FeedUnsigned(CasemateError):
    code = "trust.feed_unsigned"
    status = 403
    title = "The mirror's manifest is not signed by the keys that are trusted"
    remedy = "Compare feed.keys with the mirror's keys; its maker signs with `casemate feed sign --key KEY FOLDER`."


class FeedRollback(CasemateError):
    code = "trust.feed_rollback"
    status = 409
    title = "The mirror shows an older manifest than it did before, or one whose time has passed"
    remedy = "Ask the mirror's maker for a newer one, and compare this host's clock; the feeds are as they were."


class Offered(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One file of the manifest. *file*: relative to the manifest's own address."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    kind: FeedKind
    file: str
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    date: Annotated[str, Meta(pattern=r"\A([0-9]{4}-[0-9]{2}-[0-9]{2})?\Z")] = ""


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """*version* counts up; *expires*: the last day on which it counts. Both are there where it is signed."""

    feeds: Annotated[tuple[Offered, ...], Meta(min_length=1, max_length=MAX_FEEDS)]
    version: Annotated[int, Meta(ge=0, le=MAX_VERSION)] = 0
    expires: Annotated[str, Meta(pattern=r"\A([0-9]{4}-[0-9]{2}-[0-9]{2})?\Z")] = ""


class Seen(msgspec.Struct, frozen=True):
    """The newest manifest that a key was seen with: *digest* of its payload."""

    version: int
    digest: str


#: Key's id -> the newest that it was seen with.
Floor = Mapping[str, Seen]


class Verified(msgspec.Struct, frozen=True):
    """A manifest that holds, and what is to be remembered of it."""

    manifest: Manifest
    seen: dict[str, Seen]


def parse_manifest(data: bytes) -> Manifest:
    """A manifest, signed or not, as it says of itself; raises :class:`FeedInvalid`. Nothing is verified."""
    return read_payload(_envelope(data).payload if is_signed(data) else data)


class _Shape(msgspec.Struct, frozen=True, rename={"payload_type": "payloadType"}):
    payload_type: str = ""


def is_signed(data: bytes) -> bool:
    """Whether *data* claims to be an envelope; raises :class:`FeedInvalid` for what is no JSON object."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise FeedInvalid(f"the mirror's manifest has {len(data)} bytes; {MAX_MANIFEST_BYTES} are allowed")
    try:
        return bool(msgspec.json.decode(data, type=_Shape).payload_type)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FeedInvalid(f"the mirror's manifest: {error}"[:300]) from error


def read_payload(data: bytes) -> Manifest:
    """The manifest in *data*. Names are there once, files stay below the manifest's folder."""
    if len(data) > MAX_PAYLOAD_BYTES:
        raise FeedInvalid(f"the mirror's manifest has {len(data)} bytes; {MAX_PAYLOAD_BYTES} are allowed")
    try:
        found = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FeedInvalid(f"the mirror's manifest: {error}"[:300]) from error
    names = [row.name for row in found.feeds]
    if len(set(names)) != len(names):
        raise FeedInvalid("the mirror's manifest names a feed twice")
    for row in found.feeds:
        if not _FILE.match(row.file) or not row.name.isprintable():
            raise FeedInvalid(f"the mirror's manifest: {row.file[:100]!r} is no file below the manifest's folder")
    return found


def verify_manifest(data: bytes, keys: Sequence[PublicKey], threshold: int, today: date, floor: Floor) -> Verified:
    """The manifest in *data*, when *threshold* of *keys* vouch for it and it is no older than *floor*.

    Raises :class:`FeedUnsigned`, :class:`FeedRollback`, :class:`FeedInvalid`.
    """
    if not is_signed(data):
        raise FeedUnsigned("the manifest is not signed, and keys are named that have to have signed it")
    envelope = _envelope(data)  # 1
    distinct = {key.ident: key for key in keys}
    signers = [
        ident for ident, key in distinct.items()
        if any(key.verify(signature, envelope.signed) for signature in envelope.signatures)
    ]  # fmt: skip
    if threshold < 1 or len(signers) < threshold:  # 2
        raise FeedUnsigned(
            f"the manifest bears signatures of {len(signers)} of the {len(distinct)} keys; {threshold} are wanted"
        )
    found = read_payload(envelope.payload)  # 3
    if not found.version or not found.expires:
        raise FeedInvalid("the signed manifest says no version, or no last day")
    if _day(found.expires) < today:  # 4
        raise FeedRollback(f"the manifest counted until {found.expires}; this host's clock says {today}")
    digest = f"sha256:{hashlib.sha256(envelope.payload).hexdigest()}"
    for ident in signers:  # 5
        last = floor.get(ident)
        if last is not None and found.version < last.version:
            raise FeedRollback(f"the manifest is of version {found.version}; {last.version} was seen of its signer")
        if last is not None and found.version == last.version and digest != last.digest:
            raise FeedRollback(f"two manifests of version {found.version} by one signer: {digest} and {last.digest}")
    return Verified(found, {ident: Seen(found.version, digest) for ident in signers})


def sign_manifest(manifest: Manifest, keys: Sequence[SigningKey]) -> bytes:
    """The manifest as the payload of an envelope, signed by each of *keys*."""
    return _sealed(read_back(manifest), keys, ())


def countersign(data: bytes, keys: Sequence[SigningKey]) -> bytes:
    """The signed manifest in *data* with the signatures of *keys* beside those that it bears."""
    if not is_signed(data):
        raise FeedInvalid("the manifest is not signed yet")
    envelope = _envelope(data)
    read_payload(envelope.payload)
    return _sealed(envelope.payload, keys, envelope.signatures)


def read_back(manifest: Manifest) -> bytes:
    """The bytes that are signed; what no reader would take is not signed either."""
    payload = msgspec.json.encode(manifest)
    read_payload(payload)
    return payload


def _sealed(payload: bytes, keys: Sequence[SigningKey], more: Sequence[bytes]) -> bytes:
    signed = pae(PAYLOAD_TYPE, payload)
    made = [*more, *(key.sign(signed) for key in keys)]
    rows = [{"sig": base64.b64encode(signature).decode(), "keyid": ""} for signature in made]
    whole = {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE, "signatures": rows}
    return msgspec.json.encode(whole)


def _envelope(data: bytes) -> Envelope:
    try:
        envelope = parse_envelope(data)
    except SignatureInvalid as error:
        raise FeedInvalid(f"the mirror's manifest: {error.detail}"[:300]) from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise FeedInvalid(f"the mirror's manifest is of the type {envelope.payload_type[:80]!r}, not {PAYLOAD_TYPE}")
    return envelope


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise FeedInvalid(f"the mirror's manifest: {text!r} is no day") from error
