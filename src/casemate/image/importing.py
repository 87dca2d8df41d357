"""The import job: `docker save` archives (old, new), OCI archives and folders, plain root file systems. Worker only."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import msgspec

from casemate.image import media
from casemate.image.archive import Archive, FolderArchive, file_chunks, open_archive, open_source
from casemate.image.errors import ArchiveInvalid, ManifestInvalid
from casemate.image.ingest import take_layer
from casemate.image.jobs import ConfigChange, ImportJob, Result
from casemate.image.manifest import (
    choose_platform,
    decode,
    decode_index,
    decode_manifest,
    document_type,
    image_record,
)
from casemate.image.records import ImageRecord, LayerRecord, LayerRef, Platform
from casemate.image.workspace import Workspace
from casemate.spec.reference import ReferenceInvalid, parse_reference

MAX_IMAGES = 256
REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"


class _SavedImage(msgspec.Struct, frozen=True, rename="pascal"):
    """One entry of ``manifest.json`` in a `docker save` archive."""

    config: str
    layers: tuple[str, ...]
    repo_tags: tuple[str, ...] | None = None


class _Config(msgspec.Struct, frozen=True):
    rootfs: dict[str, Any]


def import_archive(work: Workspace, job: ImportJob) -> Result:
    """Do *job*; every image of the archive (for *job.platform*) is imported."""
    descriptor = open_source(job.source)
    try:
        if job.rootfs:
            return _import_rootfs(work, descriptor, job)
        archive = open_archive(work, descriptor)
        if archive.has("index.json") and archive.has("oci-layout"):
            images, records = _import_oci(work, archive, job)
            return _result(work, images, records, "oci-archive")
        if archive.has("manifest.json"):
            images, records = _import_docker(work, archive, job)
            return _result(work, images, records, "docker-archive")
        if job.maybe_rootfs and not isinstance(archive, FolderArchive):
            # Docker's `import` is for root file systems alone: what holds no image is one.
            os.lseek(descriptor, 0, os.SEEK_SET)
            return _import_rootfs(work, descriptor, job)
        raise ArchiveInvalid("the archive holds neither index.json with oci-layout nor manifest.json")
    finally:
        os.close(descriptor)


def _import_rootfs(work: Workspace, descriptor: int, job: ImportJob) -> Result:
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        if not stream.peek(1):
            raise ArchiveInvalid("the archive is empty")
        layer, record = take_layer(work, file_chunks(stream), item=job.name or "rootfs", pack=True)
    image = assemble(work, [(layer, record)], job.name, job.platform, job.change, job.epoch)
    return _result(work, [image], [record], "rootfs")


def assemble(  # noqa: PLR0917 - what an image is
    work: Workspace,
    layers: list[tuple[LayerRef, LayerRecord]],
    name: str,
    platform: Platform,
    change: ConfigChange,
    epoch: int,
) -> ImageRecord:
    """An image out of *layers*: configuration and manifest are written and stored; *epoch* (seconds) is its date."""
    created = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    run = {
        "User": change.user,
        "Env": list(change.env) or ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Entrypoint": list(change.entrypoint),
        "Cmd": list(change.cmd),
        "WorkingDir": change.working_dir,
        "Labels": dict(sorted(change.labels.items())),
        "ExposedPorts": {port: {} for port in sorted(change.exposed_ports)},
        "Volumes": {path: {} for path in sorted(change.volumes)},
        "StopSignal": change.stop_signal,
    }
    config: dict[str, object] = {
        "created": created,
        "os": platform.os,
        "architecture": platform.architecture,
        "config": {key: value for key, value in run.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer, _ in layers]},
        "history": [{"created": created, "created_by": "casemate", "comment": change.comment} for _ in layers],
    }
    if platform.variant:
        config["variant"] = platform.variant
    return _store_image(work, _json(config), [layer for layer, _ in layers], _names((name,)), None)


def _store_image(
    work: Workspace, config: bytes, layers: list[LayerRef], names: tuple[str, ...], index_digest: str | None
) -> ImageRecord:
    config_digest = work.store.put_blob(config)
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": media.OCI_MANIFEST,
            "config": {"mediaType": media.OCI_CONFIG, "digest": config_digest, "size": len(config)},
            "layers": [
                {"mediaType": item.media_type, "digest": item.digest, "size": item.size_bytes} for item in layers
            ],
        }
    )
    digest = work.store.put_blob(manifest)
    record = image_record(
        manifest, media.OCI_MANIFEST, config, names, index_digest, digest, work.limits.max_manifest_bytes
    )
    work.lease.add(sorted(record.digests()))
    # Leased only now: had they been collected in between, they are written again.
    work.store.put_blob(config)
    work.store.put_blob(manifest)
    return record


def _import_docker(work: Workspace, archive: Archive, job: ImportJob) -> tuple[list[ImageRecord], list[LayerRecord]]:
    bound = work.limits.max_manifest_bytes
    saved = decode(archive.read("manifest.json", bound), tuple[_SavedImage, ...], "manifest.json", bound)
    if not 0 < len(saved) <= MAX_IMAGES:
        raise ArchiveInvalid(f"manifest.json lists {len(saved)} images; 1 to {MAX_IMAGES} are read")
    images, records = [], {}
    taken: dict[str, LayerRef] = {}
    for entry in saved:
        config = archive.read(entry.config, bound)
        diff_ids = decode(config, _Config, entry.config[:100], bound).rootfs.get("diff_ids") or ()
        if len(diff_ids) != len(entry.layers):
            raise ManifestInvalid(f"{entry.config[:100]} has {len(diff_ids)} diff_ids for {len(entry.layers)} layers")
        layers = []
        for name, diff_id in zip(entry.layers, diff_ids, strict=True):
            if diff_id not in taken:
                size = archive.size(name)
                taken[diff_id], records[diff_id] = take_layer(
                    work, archive.chunks(name), item=str(diff_id), total_bytes=size, diff_id=str(diff_id), pack=True
                )
            layers.append(taken[diff_id])
        names = entry.repo_tags or ((job.name,) if job.name else ())
        images.append(_store_image(work, config, layers, _names(tuple(names)), None))
    return images, list(records.values())


def _import_oci(work: Workspace, archive: Archive, job: ImportJob) -> tuple[list[ImageRecord], list[LayerRecord]]:
    bound = work.limits.max_manifest_bytes
    index = decode_index(archive.read("index.json", bound), "index.json", bound)
    if not 0 < len(index.manifests) <= MAX_IMAGES:
        raise ArchiveInvalid(f"index.json lists {len(index.manifests)} images; 1 to {MAX_IMAGES} are read")
    images: dict[str, ImageRecord] = {}
    records: dict[str, LayerRecord] = {}
    for entry in index.manifests:
        names = _oci_names(entry.annotations or {}, job.name)
        digest, index_digest = entry.digest, None
        data = _document(archive, digest, bound)
        kind = document_type(data, entry.media_type, f"manifest {digest}", bound)
        if kind in media.INDEXES:
            index_digest = work.store.put_blob(data)
            digest = choose_platform(decode_index(data, digest, bound), job.platform, digest).digest
            data = _document(archive, digest, bound)
            kind = document_type(data, "", f"manifest {digest}", bound)
        manifest = decode_manifest(data, f"manifest {digest}", bound)
        config = _document(archive, manifest.config.digest, bound)
        record = image_record(data, kind, config, names, index_digest, digest, bound)
        if digest in images:
            merged = tuple(dict.fromkeys((*images[digest].names, *names)))
            images[digest] = msgspec.structs.replace(images[digest], names=merged)
            continue
        work.lease.add(sorted(record.digests()))
        for layer in record.layers:
            if layer.diff_id not in records:
                records[layer.diff_id] = _oci_layer(work, archive, layer)
        for document in (config, data):
            work.store.put_blob(document)
        images[digest] = record
    return list(images.values()), list(records.values())


def _oci_layer(work: Workspace, archive: Archive, layer: LayerRef) -> LayerRecord:
    known = work.known_layer(layer.diff_id)
    if known is not None and work.store.has_blob(layer.digest, layer.size_bytes):
        return known
    name = f"blobs/sha256/{layer.digest[7:]}"
    _, record = take_layer(
        work,
        archive.chunks(name),
        item=layer.digest,
        total_bytes=layer.size_bytes,
        digest=layer.digest,
        diff_id=layer.diff_id,
        media_type=layer.media_type,
    )
    return record


def _document(archive: Archive, digest: str, bound: int) -> bytes:
    data = archive.read(f"blobs/sha256/{digest[7:]}", bound)
    if f"sha256:{sha256(data).hexdigest()}" != digest:
        raise ArchiveInvalid(f"{digest} in the archive hashes to something else")
    return data


def _oci_names(annotations: dict[str, str], job_name: str) -> tuple[str, ...]:
    """The image's names: containerd's whole one, a whole one as ref.name, or ref.name as a tag of the job's name."""
    text = annotations.get(CONTAINERD_NAME) or annotations.get(REF_NAME) or ""
    if "/" in text or ":" in text:
        return _names((text,))
    return _names((job_name,)) if job_name else ()


def _names(texts: tuple[str, ...]) -> tuple[str, ...]:
    names = []
    for text in texts:
        if text:
            try:
                names.append(str(parse_reference(text)))
            except ReferenceInvalid as error:
                raise ArchiveInvalid(f"the image is called {text[:100]!r}: {error.detail}") from error
    return tuple(dict.fromkeys(names))


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def _result(work: Workspace, images: list[ImageRecord], records: list[LayerRecord], form: str) -> Result:
    staged = tuple(work.staged)
    return Result(images=tuple(images), layers=tuple(records), staged=staged, lease=work.lease.name, form=form)
