"""What refers to an image at its registry: the blobs of signatures and attestations, bounded, as they stand.

Nothing here says what such a blob is worth; ``trust`` does. Three places are asked, all by the image's digest: tags of
cosign's older layout (``sha256-HEX.sig``), the referrers API, and its fallback tag where a registry has no such API.

Sources: OCI distribution-spec v1.1 ("Listing Referrers", "Referrers Tag Schema"); cosign specs/SIGNATURE_SPEC.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import urljoin

import msgspec

from casemate.image import media
from casemate.image.errors import (
    ArtifactLimit,
    DigestMismatch,
    ImageNotFound,
    ManifestInvalid,
    ManifestTooLarge,
    RegistryError,
)
from casemate.image.http import Url, parse_url
from casemate.image.manifest import Descriptor, decode
from casemate.image.referring import MAX_ARTIFACT_BYTES, MAX_ARTIFACTS, MAX_TOTAL_BYTES, Artifact, Wanted
from casemate.image.registry import Repositories, Repository
from casemate.spec.errors import InvalidArgument
from casemate.spec.ids import check_digest, digest_hex

#: At one place at a time; its threads keep their connections, and start when the first question comes.
_POOL = ThreadPoolExecutor(max_workers=4, thread_name_prefix="referring")
#: A manifest of 50 signatures with their certificates as annotations has 400 KiB.
MAX_MANIFEST_BYTES = 1 << 20
#: Rows of a list of referrers that are looked at, wanted or not: an image's scans and SBOMs stand there too.
MAX_REFERRERS = 1000
_MAX_PAGES = 8
_NEXT = re.compile(r'<([^<>]{1,4096})>\s*;\s*rel="?next"?')


class ArtifactManifest(msgspec.Struct, frozen=True, rename="camel"):
    """A manifest that need not be an image's."""

    schema_version: int
    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = ""
    artifact_type: str = ""
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Referrer(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A row of a list of referrers."""

    digest: str
    size: int
    media_type: str = ""
    artifact_type: str = ""
    annotations: dict[str, str] | None = None


class ReferrerList(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int
    manifests: tuple[Referrer, ...]
    media_type: str = media.OCI_INDEX


def fetch(places: Repositories, subject: str, wanted: Wanted) -> tuple[Artifact, ...]:
    """Every wanted blob that refers to the manifest *subject* (a digest). None at all is an empty tuple, no error.

    Raises :class:`ArtifactLimit`, :class:`ManifestInvalid`, and what a registry fails with: "could not be asked" must
    never look like "there is none".
    """
    for mirror in places.places[:-1]:
        # A mirror that has the image need not have its signatures: only the registry itself can say that there is none.
        try:
            found = _fetch(mirror, subject, wanted)
        except RegistryError:
            continue
        if found:
            return found
    return _fetch(places.places[-1], subject, wanted)


def _fetch(place: Repository, subject: str, wanted: Wanted) -> tuple[Artifact, ...]:
    """In three rounds, each at once as far as it goes: which manifests, the manifests, the blobs."""
    tags = [f"sha256-{digest_hex(subject)}.{suffix}" for suffix in wanted.suffixes]
    listed = _POOL.submit(referrers, place, subject)
    manifest_of = partial(_manifest, place)
    tagged = list(_POOL.map(manifest_of, tags))
    names = [row.digest for row in listed.result() if not row.artifact_type or row.artifact_type in wanted.types]
    if len(names) > MAX_ARTIFACTS:
        raise _too_many(subject, len(names), 0)
    found = [row for row in tagged if row is not None]
    found += [row for row in _POOL.map(manifest_of, names) if row is not None and _refers(row[0], subject, wanted)]
    rows = [(row, digest) for manifest, digest in found for row in manifest.layers if row.media_type in wanted.kinds]
    _measure(subject, [row for row, _ in rows])
    blobs = _POOL.map(partial(_blob, place), [row for row, _ in rows])
    return tuple(
        Artifact(row.media_type, blob, digest, row.annotations or {})
        for (row, digest), blob in zip(rows, blobs, strict=True)
    )


def _blob(place: Repository, row: Descriptor) -> bytes:
    return place.small_blob(row.digest, row.size, MAX_ARTIFACT_BYTES)


def _measure(subject: str, rows: Sequence[Descriptor]) -> None:
    """By their stated sizes, before any is fetched (a blob that is longer is refused when it is read)."""
    total = sum(row.size for row in rows)
    if len(rows) > MAX_ARTIFACTS or total > MAX_TOTAL_BYTES or any(row.size > MAX_ARTIFACT_BYTES for row in rows):
        raise _too_many(subject, len(rows), total)


def _too_many(subject: str, count: int, size_bytes: int) -> ArtifactLimit:
    return ArtifactLimit(
        f"{subject} bears {count} signatures and attestations of {size_bytes} bytes; "
        f"{MAX_ARTIFACTS} of at most {MAX_ARTIFACT_BYTES} and together {MAX_TOTAL_BYTES} bytes are looked at"
    )


def _manifest(place: Repository, name: str) -> tuple[ArtifactManifest, str] | None:
    """The manifest *name* (a tag or a digest) with its digest; None when there is none."""
    try:
        data, _, digest = place.manifest(name, MAX_MANIFEST_BYTES)
    except ImageNotFound:
        return None
    except ManifestTooLarge as error:
        raise ArtifactLimit(error.detail) from error
    return decode_artifact(data, f"manifest {name} of {place}"), digest


def _refers(manifest: ArtifactManifest, subject: str, wanted: Wanted) -> bool:
    """Whoever may push can put any row into the list: the manifest itself must name the image."""
    return (
        manifest.subject is not None
        and manifest.subject.digest == subject
        and (manifest.artifact_type or manifest.config.media_type) in wanted.types
    )


def decode_artifact(data: bytes, what: str) -> ArtifactManifest:
    """*data* as a manifest of any artifact; digests and sizes are checked."""
    manifest = decode(data, ArtifactManifest, what, MAX_MANIFEST_BYTES)
    if manifest.schema_version != 2:
        raise ManifestInvalid(f"{what} has schemaVersion {manifest.schema_version}; 2 is read")
    for row in (manifest.config, *manifest.layers):
        _check(row.digest, row.size, what)
    return manifest


def _check(digest: str, size: int, what: str) -> None:
    try:
        check_digest(digest)
    except InvalidArgument as error:
        raise ManifestInvalid(f"{what}: {error.detail}") from error
    if not 0 <= size < 1 << 50:
        raise ManifestInvalid(f"{what}: {digest} has size {size}")


def referrers(place: Repository, subject: str) -> list[Referrer]:
    """The rows of the referrers API, or of the fallback tag where the registry has no such API."""
    rows: list[Referrer] = []
    url: Url | None = place.url(f"referrers/{subject}")
    for _ in range(_MAX_PAGES):
        assert url is not None
        try:
            with place.call("GET", url, {"Accept": media.OCI_INDEX}) as answer:
                data = answer.read(MAX_MANIFEST_BYTES)
                url = _next_page(answer.header("Link"), answer.url)
        except ImageNotFound:
            return rows or fallback(place, subject)
        rows += decode_list(data, f"the referrers of {subject} at {place}")
        if len(rows) > MAX_REFERRERS:
            raise ArtifactLimit(f"more than {MAX_REFERRERS} artifacts refer to {subject} at {place}")
        if url is None:
            return rows
    raise ArtifactLimit(f"the referrers of {subject} at {place} have more than {_MAX_PAGES} pages")


def _next_page(link: str, base: Url) -> Url | None:
    found = _NEXT.search(link[:8192])
    if found is None:
        return None
    url = parse_url(urljoin(str(base), found[1]))
    if url.origin != base.origin:
        raise RegistryError(f"{base.host} sends the list of referrers on to {url.host}")
    return url


def fallback(place: Repository, subject: str) -> list[Referrer]:
    """The rows of the tag ``sha256-HEX``; none when there is no such tag."""
    try:
        data, _, _ = place.manifest(f"sha256-{digest_hex(subject)}", MAX_MANIFEST_BYTES)
    except ImageNotFound:
        return []
    except ManifestTooLarge as error:
        raise ArtifactLimit(f"{subject}: {error.detail}") from error
    return decode_list(data, f"the referrers of {subject} at {place}")


def decode_list(data: bytes, what: str) -> list[Referrer]:
    if len(data) > MAX_MANIFEST_BYTES:
        raise ArtifactLimit(f"{what}: the list has more than {MAX_MANIFEST_BYTES} bytes")
    found = decode(data, ReferrerList, what, MAX_MANIFEST_BYTES)
    if len(found.manifests) > MAX_REFERRERS:
        raise ArtifactLimit(f"{what}: {len(found.manifests)} rows; {MAX_REFERRERS} are looked at")
    for row in found.manifests:
        _check(row.digest, row.size, what)
    return list(found.manifests)


def check_stored(stated: str, wanted: str, place: Repository) -> None:
    """What the registry says that it stored must be what was sent."""
    if stated and stated != wanted:
        raise DigestMismatch(f"{place} stored {stated[:80]} where {wanted} was sent", wanted=wanted, found=stated[:80])
