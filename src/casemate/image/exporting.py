"""The export job: stored images as a docker-archive or an oci-archive. Worker only; the target is a file or a pipe."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

from casemate.image import media
from casemate.image import tarheader as th
from casemate.image.convert import HashedStream
from casemate.image.errors import from_os_error
from casemate.image.importing import CONTAINERD_NAME, REF_NAME
from casemate.image.jobs import ExportJob, Progress, Result
from casemate.image.manifest import decode_manifest, document_type, image_record
from casemate.image.records import ImageRecord, LayerRef
from casemate.image.transfer import read_blob_chunks
from casemate.image.workspace import Workspace
from casemate.spec.errors import Corrupt, InvalidArgument
from casemate.spec.reference import parse_reference

KINDS = ("docker-archive", "oci-archive")


class TarWriter:
    """A tar onto a descriptor: members in order, each once, times and owners zero: equal input gives equal bytes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._written: set[str] = set()
        self.bytes = 0

    def has(self, name: str) -> bool:
        return name in self._written

    def add(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        self._written.add(name)
        self._put(th.build(th.Entry(name.encode(), th.REGULAR, size=size)))
        left = size
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                break
            self._put(chunk)
        if left != 0:
            raise Corrupt(f"{name} has another size than the {size} bytes that are recorded")
        self._put(bytes(-size % th.BLOCK_BYTES))

    def add_bytes(self, name: str, data: bytes) -> None:
        if not self.has(name):
            self.add(name, len(data), (data,))

    def end(self) -> None:
        self._put(bytes(2 * th.BLOCK_BYTES))

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        self.bytes += len(data)
        while view:
            view = view[os.write(self._descriptor, view) :]


def export_archive(work: Workspace, job: ExportJob) -> Result:
    """Do *job*; a target that is a path is removed again when the export fails."""
    if job.kind not in KINDS:
        raise InvalidArgument(f"{job.kind[:80]!r} is no kind of archive; {' and '.join(KINDS)} are")
    images = [_load(work, digest, names) for digest, names in job.images]
    is_path = not job.target.startswith("fd:")
    try:
        if is_path:
            descriptor = os.open(job.target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        else:
            descriptor = os.dup(int(job.target[3:]))
        try:
            writer = TarWriter(descriptor)
            if job.kind == "docker-archive":
                _docker(work, writer, images)
            else:
                _oci(work, writer, images)
            writer.end()
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        if is_path:
            with suppress(OSError):
                os.unlink(job.target)  # noqa: PTH108 - a path as given
        if isinstance(error, ValueError):
            raise InvalidArgument(f"{job.target[:80]!r} is no target") from error
        raise from_os_error(error, f"writing {job.target}") from error
    except BaseException:
        if is_path:
            with suppress(OSError):
                os.unlink(job.target)  # noqa: PTH108 - a path as given
        raise
    work.lease.drop()
    return Result(images=tuple(images), transferred_bytes=writer.bytes)


def _load(work: Workspace, digest: str, names: tuple[str, ...]) -> ImageRecord:
    bound = work.limits.max_manifest_bytes
    work.lease.add((digest,))
    data = work.store.read_blob(digest, bound)
    kind = document_type(data, "", f"manifest {digest}", bound)
    config_digest = decode_manifest(data, f"manifest {digest}", bound).config.digest
    work.lease.add((config_digest,))
    config = work.store.read_blob(config_digest, bound)
    record = image_record(data, kind, config, names, None, digest, bound)
    work.lease.add(sorted(record.digests()))
    return record


def _docker(work: Workspace, writer: TarWriter, images: list[ImageRecord]) -> None:
    """What `docker load` reads: configurations, uncompressed layers named by diff_id, manifest.json."""
    entries = []
    for image in images:
        config_name = f"{image.config_digest[7:]}.json"
        writer.add_bytes(config_name, work.store.read_blob(image.config_digest, work.limits.max_manifest_bytes))
        names = []
        for layer in image.layers:
            name = f"{layer.diff_id[7:]}.tar"
            names.append(name)
            if not writer.has(name):
                work.report(Progress(layer.digest, "exporting"))
                writer.add(name, _unpacked_size(work, layer), _unpacked(work, layer))
        tags = [parse_reference(name).familiar for name in image.names]
        entries.append({"Config": config_name, "Layers": names, "RepoTags": tags})
    writer.add_bytes("manifest.json", json.dumps(entries).encode())


def _oci(work: Workspace, writer: TarWriter, images: list[ImageRecord]) -> None:
    """OCI image-layout 1.0.0; every blob as it was pulled, so digests stay."""
    writer.add_bytes("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    manifests = []
    for image in images:
        for digest in (image.manifest_digest, image.config_digest):
            writer.add_bytes(f"blobs/sha256/{digest[7:]}", work.store.read_blob(digest, work.limits.max_manifest_bytes))
        for layer in image.layers:
            name = f"blobs/sha256/{layer.digest[7:]}"
            if not writer.has(name):
                work.report(Progress(layer.digest, "exporting"))
                writer.add(name, layer.size_bytes, read_blob_chunks(work, layer.digest))
        size = work.store.blob_path(image.manifest_digest).stat().st_size
        descriptor: dict[str, object] = {
            "mediaType": image.manifest_media_type,
            "digest": image.manifest_digest,
            "size": size,
        }
        for name in image.names or ("",):
            annotations = {CONTAINERD_NAME: name, REF_NAME: parse_reference(name).tag or name} if name else {}
            manifests.append({**descriptor, **({"annotations": annotations} if annotations else {})})
    index = {"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": manifests}
    writer.add_bytes("index.json", json.dumps(index).encode())


def _unpacked_size(work: Workspace, layer: LayerRef) -> int:
    record = work.store.layer_record(layer.diff_id)
    return record.unpacked_bytes if record is not None else sum(len(chunk) for chunk in _unpacked(work, layer))


def _unpacked(work: Workspace, layer: LayerRef) -> Iterator[bytes]:
    stream = HashedStream(read_blob_chunks(work, layer.digest), work.limits)
    yield from stream
    if stream.diff_id != layer.diff_id:
        raise Corrupt(f"layer {layer.digest} unpacks to {stream.diff_id}, its image says {layer.diff_id}")
