"""Puts signatures and attestations beside an image at its registry, in both layouts. A child of casemated runs it.

A tag's manifest is read, grows by one layer, and is written back: two who sign at one instant can lose one signature,
which no registry can prevent; the loser's `trust verify` shows it. Referrers have no such race where the registry keeps
the list; with the fallback tag they have.

Sources: OCI distribution-spec v1.1 ("Pushing Manifests with Subject", "Referrers Tag Schema"), cosign
specs/SIGNATURE_SPEC.md.
"""

from __future__ import annotations

import hashlib
from urllib.parse import quote, urljoin

import msgspec

from casemate.image import media
from casemate.image.artifacts import MAX_MANIFEST_BYTES, Referrer, check_stored, decode_artifact, fallback
from casemate.image.errors import ArtifactLimit, ImageNotFound, RegistryError
from casemate.image.http import parse_url
from casemate.image.manifest import Descriptor
from casemate.image.referring import MAX_ARTIFACT_BYTES, MAX_ARTIFACTS
from casemate.image.registry import Repository
from casemate.spec.ids import digest_hex

EMPTY = b"{}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


class Attachment(msgspec.Struct, frozen=True):
    """One blob to be put beside *subject*. *suffix*: of the tag that it goes under; empty: as a referrer of *type*.

    *annotations*: of the blob's descriptor; *on_manifest*: of the manifest (referrers only).
    """

    kind: str
    data: bytes
    annotations: dict[str, str] = {}
    suffix: str = ""
    type: str = ""
    on_manifest: dict[str, str] = {}


def attach(place: Repository, subject: Descriptor, attachment: Attachment) -> str:
    """Push *attachment*; the digest of the manifest that names it now."""
    if len(attachment.data) > MAX_ARTIFACT_BYTES:
        raise ArtifactLimit(f"an attachment of {len(attachment.data)} bytes; {MAX_ARTIFACT_BYTES} are allowed")
    layer = Descriptor(
        _digest(attachment.data), len(attachment.data), attachment.kind, annotations=attachment.annotations or None
    )
    put_blob(place, attachment.data)
    if attachment.suffix:
        return _under_tag(place, f"sha256-{digest_hex(subject.digest)}.{attachment.suffix}", layer)
    return _as_referrer(place, subject, attachment, layer)


def _under_tag(place: Repository, tag: str, layer: Descriptor) -> str:
    layers: tuple[Descriptor, ...] = ()
    try:
        data, _, _ = place.manifest(tag, MAX_MANIFEST_BYTES)
        layers = decode_artifact(data, f"manifest {tag} of {place}").layers
    except ImageNotFound:
        pass
    if len(layers) >= MAX_ARTIFACTS:
        raise ArtifactLimit(f"{place}:{tag} bears {len(layers)} signatures already; {MAX_ARTIFACTS} are looked at")
    layers = (*layers, layer)
    # The configuration that cosign writes: that of an image whose layers are the payloads.
    config = msgspec.json.encode({
        "architecture": "", "os": "", "created": "0001-01-01T00:00:00Z", "config": {},
        "history": [{"created": "0001-01-01T00:00:00Z"} for _ in layers],
        "rootfs": {"type": "layers", "diff_ids": [row.digest for row in layers]},
    })  # fmt: skip
    put_blob(place, config)
    manifest = {
        "schemaVersion": 2, "mediaType": media.OCI_MANIFEST,
        "config": _row(Descriptor(_digest(config), len(config), media.OCI_CONFIG)),
        "layers": [_row(row) for row in layers],
    }  # fmt: skip
    return put_manifest(place, tag, msgspec.json.encode(manifest))[0]


def _as_referrer(place: Repository, subject: Descriptor, attachment: Attachment, layer: Descriptor) -> str:
    put_blob(place, EMPTY)
    manifest = {
        "schemaVersion": 2, "mediaType": media.OCI_MANIFEST, "artifactType": attachment.type,
        "config": _row(Descriptor(_digest(EMPTY), len(EMPTY), EMPTY_TYPE)),
        "layers": [_row(layer)], "subject": _row(subject), "annotations": attachment.on_manifest,
    }  # fmt: skip
    data = msgspec.json.encode(manifest)
    digest, listed = put_manifest(place, _digest(data), data)
    if not listed:
        row = Referrer(digest, len(data), media.OCI_MANIFEST, attachment.type, attachment.on_manifest or None)
        _list(place, subject.digest, row)
    return digest


def _list(place: Repository, subject: str, row: Referrer) -> None:
    """Where the registry keeps no list of referrers its clients do: one more row in the index of the fallback tag."""
    rows = [other for other in fallback(place, subject) if other.digest != row.digest]
    index = {"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": [_referrer(one) for one in (*rows, row)]}
    put_manifest(place, f"sha256-{digest_hex(subject)}", msgspec.json.encode(index), media.OCI_INDEX)


def put_manifest(place: Repository, name: str, data: bytes, kind: str = media.OCI_MANIFEST) -> tuple[str, bool]:
    """Push a manifest under a tag or its digest: its digest, and whether the registry listed it with its subject."""
    digest = _digest(data)
    with place.call("PUT", place.url(f"manifests/{name}"), {"Content-Type": kind}, data, accept=(200, 201, 202)) as put:
        check_stored(put.header("Docker-Content-Digest"), digest, place)
        return digest, bool(put.header("OCI-Subject"))


def put_blob(place: Repository, data: bytes) -> None:
    """Push a small blob, unless it is there."""
    digest = _digest(data)
    try:
        with place.call("HEAD", place.url(f"blobs/{digest}")):
            return
    except ImageNotFound:
        pass
    with place.call("POST", place.url("blobs/uploads/"), {"Content-Length": "0"}, b"", accept=(201, 202)) as answer:
        location, base = answer.header("Location"), answer.url
    text = urljoin(str(base), location)
    url = parse_url(f"{text}{'&' if '?' in text else '?'}digest={quote(digest, safe='')}")
    if not location or (url.scheme == "http" and base.scheme == "https"):
        raise RegistryError(f"{place} gives no place to upload {digest} to, or one over plain HTTP")
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(data))}
    with place.call("PUT", url, headers, data, accept=(201,)) as put:
        check_stored(put.header("Docker-Content-Digest"), digest, place)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _row(descriptor: Descriptor) -> dict[str, object]:
    row: dict[str, object] = {
        "mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size
    }  # fmt: skip
    return row | ({"annotations": descriptor.annotations} if descriptor.annotations else {})


def _referrer(row: Referrer) -> dict[str, object]:
    found: dict[str, object] = {"mediaType": row.media_type, "digest": row.digest, "size": row.size}
    if row.artifact_type:
        found["artifactType"] = row.artifact_type
    return found | ({"annotations": row.annotations} if row.annotations else {})
