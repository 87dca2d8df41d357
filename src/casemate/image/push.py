"""The push job: blobs that the registry lacks, then the configuration, then the manifest. Worker only.

Source: OCI distribution-spec v1.1, "Push" (POST then PUT; cross-repository mount).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from urllib.parse import quote, urljoin

from casemate.image.convert import READ_BYTES
from casemate.image.errors import DigestMismatch, ImageNotFound, RegistryError
from casemate.image.http import Client, Url, parse_url
from casemate.image.jobs import Progress, PushJob, Result
from casemate.image.manifest import Manifest, decode_manifest
from casemate.image.pull import in_parallel
from casemate.image.registry import Repository
from casemate.image.workspace import Meter, Workspace
from casemate.spec.errors import Corrupt, NotFound
from casemate.spec.reference import Reference, parse_reference


def push(work: Workspace, job: PushJob) -> Result:
    """Do *job*: the stored bytes go out as they came in, so every digest stays."""
    reference = parse_reference(job.reference)
    bound = work.limits.max_manifest_bytes
    data = work.store.read_blob(job.manifest_digest, bound)
    manifest = decode_manifest(data, f"manifest {job.manifest_digest}", bound)
    sizes = {blob.digest: blob.size for blob in (manifest.config, *manifest.layers)}
    work.lease.add((job.manifest_digest, *sizes))
    for digest, size in sizes.items():
        if not work.store.has_blob(digest, size):
            raise NotFound(f"blob {digest} of image {job.manifest_digest} is not in the store", digest=digest)
    with closing(Client(job.endpoints.ca_files, work.stop, work.patience)) as client:
        sent = _send(work, job, reference, client, data, manifest, sizes)
    work.report(Progress(str(reference), "done"))
    work.lease.drop()
    return Result(digest=job.manifest_digest, transferred_bytes=sent)


def _send(  # noqa: PLR0917 - one caller
    work: Workspace,
    job: PushJob,
    reference: Reference,
    client: Client,
    data: bytes,
    manifest: Manifest,
    sizes: dict[str, int],
) -> int:
    place = Repository(client, reference.registry, reference.repository, "pull,push", job.endpoints)
    layers = list(dict.fromkeys(layer.digest for layer in manifest.layers))
    tasks = [partial(_push_blob, work, place, digest, sizes[digest], job.mount_from) for digest in layers]
    sent = sum(in_parallel(work.stop, work.limits.parallel_layers, tasks))
    sent += _push_blob(work, place, manifest.config.digest, manifest.config.size, ())
    kind = manifest.media_type or "application/vnd.oci.image.manifest.v1+json"
    url = place.url(f"manifests/{reference.tag or job.manifest_digest}")
    with place.call("PUT", url, {"Content-Type": kind}, data, accept=(201, 202, 200)) as answer:
        _check_digest(answer.header("Docker-Content-Digest"), job.manifest_digest, place)
    return sent


def _push_blob(work: Workspace, place: Repository, digest: str, size: int, mount_from: tuple[str, ...]) -> int:
    """Send one blob unless the registry has it or can mount it from a repository in *mount_from*; bytes sent."""
    work.check()
    try:
        with place.call("HEAD", place.url(f"blobs/{digest}")):
            work.report(Progress(digest, "shared", size, size))
            return 0
    except ImageNotFound:
        pass
    location, base = "", place.url("blobs/uploads/")
    for source in (*mount_from, ""):
        query = f"?mount={digest}&from={quote(source, safe='')}" if source else ""
        with place.call(
            "POST", place.url(f"blobs/uploads/{query}"), {"Content-Length": "0"}, b"", accept=(201, 202)
        ) as answer:
            if answer.status == 201:
                work.report(Progress(digest, "mounted", size, size))
                return 0
            location = answer.header("Location")
            base = answer.url
        if location:
            break
    if not location:
        raise RegistryError(f"{place} gives no place to upload {digest} to")
    url = _upload_url(base, location, digest, place)
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
    with place.call("PUT", url, headers, accept=(201,), stream=lambda: _body(work, digest, size)) as answer:
        _check_digest(answer.header("Docker-Content-Digest"), digest, place)
    work.report(Progress(digest, "done", size, size))
    return size


def _upload_url(base: Url, location: str, digest: str, place: Repository) -> Url:
    text = urljoin(str(base), location)
    url = parse_url(f"{text}{'&' if '?' in text else '?'}digest={quote(digest, safe='')}")
    if url.scheme == "http" and base.scheme == "https":
        raise RegistryError(f"{place} sends an upload from https to plain HTTP at {url.host}")
    return url


def _body(work: Workspace, digest: str, size: int) -> Iterator[bytes]:
    meter = Meter(work.report, digest, "uploading", size)
    with work.store.open_blob(digest) as stream:
        while chunk := stream.read(READ_BYTES):
            work.check()
            meter.add(len(chunk))
            yield chunk
    if meter.bytes != size:
        raise Corrupt(f"blob {digest} has {meter.bytes} bytes in the store, its manifest says {size}", digest=digest)


def _check_digest(stated: str, wanted: str, place: Repository) -> None:
    if stated and stated != wanted:
        raise DigestMismatch(f"{place} stored {stated[:80]} where {wanted} was sent", wanted=wanted, found=stated[:80])
