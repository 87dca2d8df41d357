"""A mirror's manifest: who signed it, what it may say, and that it only goes forward."""

from __future__ import annotations

import base64
from datetime import date

import msgspec
import pytest

from casemate.trust.feed.manifest import (
    MAX_MANIFEST_BYTES,
    PAYLOAD_TYPE,
    FeedRollback,
    FeedUnsigned,
    Floor,
    Manifest,
    Offered,
    Seen,
    Verified,
    countersign,
    is_signed,
    parse_manifest,
    sign_manifest,
    verify_manifest,
)
from casemate.trust.feed.model import FeedInvalid
from casemate.trust.keys.private import new_key
from casemate.trust.signature.keys import PublicKey, load_public_key
from casemate.trust.signature.statement import IN_TOTO, pae

pytest.importorskip("cryptography", reason="missing: cryptography")
A, B, STRANGER = new_key(), new_key(), new_key()
TODAY = date(2026, 11, 22)


def public(*keys: object) -> list[PublicKey]:
    return [load_public_key(key.public_pem.encode()) for key in keys]  # type: ignore[attr-defined]


def manifest(version: int = 7, expires: str = "2026-11-29", digest: str = "ab" * 32) -> Manifest:
    return Manifest((Offered("debian", "debian-tracker", "debian.json", digest, "2026-11-20"),), version, expires)


def judged(data: bytes, *keys: object, threshold: int = 1, floor: Floor | None = None) -> Verified:
    return verify_manifest(data, public(*(keys or (A,))), threshold, TODAY, floor or {})


def sealed(payload: bytes, kind: str = PAYLOAD_TYPE) -> bytes:
    """An envelope over any payload, rightly signed by A."""
    text = base64.b64encode(A.sign(pae(kind, payload))).decode()
    whole = {"payload": base64.b64encode(payload).decode(), "payloadType": kind, "signatures": [{"sig": text}]}
    return msgspec.json.encode(whole)


def test_a_signed_manifest_is_what_was_signed() -> None:
    data = sign_manifest(manifest(), [A])
    assert is_signed(data)
    assert parse_manifest(data) == manifest()
    found = judged(data)
    assert found.manifest == manifest()
    (seen,) = found.seen.values()
    assert seen.version == 7


def test_a_threshold_counts_keys_and_not_signatures() -> None:
    once = sign_manifest(manifest(), [A, A])
    with pytest.raises(FeedUnsigned, match="1 of the 2 keys; 2 are wanted"):
        judged(once, A, B, threshold=2)
    with pytest.raises(FeedUnsigned):
        judged(once, A, A, threshold=2)
    assert len(judged(countersign(once, [B]), A, B, threshold=2).seen) == 2


@pytest.mark.parametrize("threshold", [0, -1, 2])
def test_a_threshold_that_nobody_can_meet_or_anybody_would_is_not_met(threshold: int) -> None:
    with pytest.raises(FeedUnsigned):
        judged(sign_manifest(manifest(), [A]), threshold=threshold)


def test_what_nobody_signed_or_a_stranger_did_is_refused() -> None:
    with pytest.raises(FeedUnsigned, match="is not signed"):
        judged(msgspec.json.encode(manifest()))
    with pytest.raises(FeedUnsigned):
        judged(sign_manifest(manifest(), [STRANGER]))
    # A payload that was changed after it was signed.
    whole = msgspec.json.decode(sign_manifest(manifest(), [A]))
    whole["payload"] = base64.b64encode(msgspec.json.encode(manifest(digest="cd" * 32))).decode()
    with pytest.raises(FeedUnsigned):
        judged(msgspec.json.encode(whole))


def test_a_signature_over_another_kind_of_thing_does_not_count() -> None:
    payload = msgspec.json.encode(manifest())
    with pytest.raises(FeedInvalid, match="of the type"):
        judged(sealed(payload, IN_TOTO))
    # The same signature under our type is one over other bytes.
    whole = msgspec.json.decode(sealed(payload, IN_TOTO)) | {"payloadType": PAYLOAD_TYPE}
    with pytest.raises(FeedUnsigned):
        judged(msgspec.json.encode(whole))


def test_it_only_goes_forward() -> None:
    (ident,) = (key.ident for key in public(A))
    floor = judged(sign_manifest(manifest(), [A])).seen
    assert judged(sign_manifest(manifest(), [A]), floor=floor).manifest.version == 7
    assert judged(sign_manifest(manifest(8), [A]), floor=floor).seen[ident].version == 8
    with pytest.raises(FeedRollback, match="version 6; 7 was seen"):
        judged(sign_manifest(manifest(6), [A]), floor=floor)
    with pytest.raises(FeedRollback, match="two manifests of version 7"):
        judged(sign_manifest(manifest(digest="cd" * 32), [A]), floor=floor)
    # That another key signed as well is no way around what one of them was seen with.
    with pytest.raises(FeedRollback):
        judged(sign_manifest(manifest(6), [A, B]), A, B, floor={ident: Seen(7, "")})


def test_its_time_passes() -> None:
    assert judged(sign_manifest(manifest(expires="2026-11-22"), [A])).manifest.version == 7
    with pytest.raises(FeedRollback, match="until 2026-11-21"):
        judged(sign_manifest(manifest(expires="2026-11-21"), [A]))


def test_what_is_signed_is_judged_like_anything_else() -> None:
    row = {"name": "a", "kind": "osv", "file": "a.zip", "sha256": "ab" * 32}
    good = {"feeds": [row], "version": 1, "expires": "2026-12-01"}
    assert judged(sealed(msgspec.json.encode(good))).manifest.feeds[0].file == "a.zip"
    for bad in (
        {"version": 0}, {"version": -1}, {"version": 1 << 60}, {"expires": ""}, {"expires": "2026-13-45"},
        {"expires": "soon"}, {"feeds": []}, {"feeds": [row, row]}, {"feeds": [row | {"file": "../a"}]},
    ):  # fmt: skip
        with pytest.raises(FeedInvalid):
            judged(sealed(msgspec.json.encode(good | bad)))
    for payload in (b"", b"{}", b"[" * 5000, b"\xff", b"x" * ((1 << 20) + 1)):
        with pytest.raises(FeedInvalid):
            judged(sealed(payload))


@pytest.mark.parametrize(
    "changes",
    [{"signatures": []}, {"signatures": [{"sig": "AAAA"}] * 65}, {"payload": "!"}, {"signatures": [{"sig": "!"}]},
     {"signatures": [{"sig": "AAAA" * 1000}]}],
)  # fmt: skip
def test_envelopes_that_are_none(changes: dict[str, object]) -> None:
    whole = msgspec.json.decode(sign_manifest(manifest(), [A])) | changes
    with pytest.raises(FeedInvalid):
        judged(msgspec.json.encode(whole))


def test_what_is_too_long_is_not_read() -> None:
    for data in (b"", b"[]", b" " * (MAX_MANIFEST_BYTES + 1)):
        with pytest.raises(FeedInvalid):
            parse_manifest(data)


def test_what_no_host_would_take_is_not_signed() -> None:
    for bad in (manifest(-1), manifest(expires="soon"), manifest(digest="no")):
        with pytest.raises(FeedInvalid):
            sign_manifest(bad, [A])
    with pytest.raises(FeedInvalid, match="not signed yet"):
        countersign(msgspec.json.encode(manifest()), [A])
