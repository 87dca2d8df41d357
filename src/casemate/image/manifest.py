"""Manifests, indexes and configurations: bytes from outside become values here, once, with bounds. Pure.

Sources: OCI image-spec v1.1 (manifest, image-index, config), Docker "Image Manifest V 2, Schema 2".
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from casemate.image import media
from casemate.image.errors import ManifestInvalid, ManifestTooLarge, MediaTypeUnsupported, PlatformMissing
from casemate.image.records import HistoryEntry, ImageConfig, ImageRecord, LayerRef, Platform
from casemate.spec.errors import InvalidArgument
from casemate.spec.ids import check_digest

#: A real manifest nests 4 deep, a configuration with a health check 4; parsers recurse, so the bound comes first.
MAX_DEPTH = 24
#: overlayfs takes 500 lower layers; Docker bounds an image at 127.
MAX_LAYERS = 127
MAX_INDEX_ENTRIES = 1000
MAX_HISTORY = 2000

T = TypeVar("T")

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class Descriptor(msgspec.Struct, frozen=True, rename={"media_type": "mediaType"}):
    """OCI content descriptor."""

    digest: str
    size: int
    media_type: str = ""
    platform: dict[str, Any] | None = None
    urls: tuple[str, ...] | None = None
    annotations: dict[str, str] | None = None


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int
    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = ""


class Index(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int
    manifests: tuple[Descriptor, ...]
    media_type: str = ""


class _Probe(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    manifests: msgspec.Raw = msgspec.Raw()
    layers: msgspec.Raw = msgspec.Raw()
    fs_layers: msgspec.Raw = msgspec.Raw()


class _RunConfig(msgspec.Struct, frozen=True, rename="pascal"):
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | str | None = None
    cmd: tuple[str, ...] | str | None = None
    user: str | None = None
    working_dir: str | None = None
    volumes: dict[str, Any] | None = None
    exposed_ports: dict[str, Any] | None = None
    stop_signal: str | None = None
    labels: dict[str, str] | None = None
    shell: tuple[str, ...] | None = None
    healthcheck: dict[str, Any] | None = None


class _RootFs(msgspec.Struct, frozen=True):
    type: str
    diff_ids: tuple[str, ...] | None


class _Config(msgspec.Struct, frozen=True):
    rootfs: _RootFs
    os: str = "linux"
    architecture: str = ""
    variant: str | None = None
    created: str | None = None
    author: str | None = None
    config: _RunConfig | None = None
    history: tuple[dict[str, Any], ...] | None = None


def decode(data: bytes, kind: type[T], what: str, max_bytes: int) -> T:
    """*data* (JSON from outside) as *kind*; size and depth are checked before any parser sees it."""
    check_bounds(data, what, max_bytes)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestInvalid(f"{what}: {error}") from error


def check_bounds(data: bytes, what: str, max_bytes: int) -> None:
    """Raise :class:`ManifestTooLarge` when *data* is longer than *max_bytes* or nests deeper than 24."""
    if len(data) > max_bytes:
        raise ManifestTooLarge(f"{what} has {len(data)} bytes; image.max_manifest_bytes allows {max_bytes}")
    depth = 0
    for match in _TOKEN.finditer(data):
        token = match[0]
        if token in (b"{", b"["):
            depth += 1
            if depth > MAX_DEPTH:
                raise ManifestTooLarge(f"{what} nests deeper than {MAX_DEPTH}")
        elif token in (b"}", b"]"):
            depth -= 1


def document_type(data: bytes, content_type: str, what: str, max_bytes: int) -> str:
    """The media type of an index or a manifest, from its own ``mediaType``, the transport's, or its members.

    A document that could be read as both (CVE-2021-41190) or that contradicts its transport is refused.
    """
    probe = decode(data, _Probe, what, max_bytes)
    if probe.schema_version == 1 or bytes(probe.fs_layers):
        raise MediaTypeUnsupported(
            f"{what} is a Docker schema 1 manifest: obsolete since 2019 and not verifiable by digest"
        )
    if bytes(probe.manifests) and bytes(probe.layers):
        raise ManifestInvalid(f"{what} holds both `manifests` and `layers`: it could be read in two ways")
    transport = content_type.partition(";")[0].strip().lower()
    if transport in ("application/json", "application/octet-stream", "text/plain"):
        transport = ""
    own = probe.media_type.strip()
    if own and transport and own != transport:
        raise ManifestInvalid(f"{what} says it is {own[:120]!r}, its transport says {transport[:120]!r}")
    kind = own or transport or (media.OCI_INDEX if bytes(probe.manifests) else media.OCI_MANIFEST)
    kind = media.check_document(kind, what)
    if (kind in media.INDEXES) != bool(bytes(probe.manifests)):
        raise ManifestInvalid(f"{what} is called {kind} but does not hold what that must hold")
    return kind


def decode_manifest(data: bytes, what: str, max_bytes: int) -> Manifest:
    """*data* as an image manifest, every digest, size and media type checked."""
    manifest = decode(data, Manifest, what, max_bytes)
    if manifest.schema_version != 2:
        raise ManifestInvalid(f"{what} has schemaVersion {manifest.schema_version}; 2 is read")
    if len(manifest.layers) > MAX_LAYERS:
        raise ManifestInvalid(f"{what} has {len(manifest.layers)} layers; at most {MAX_LAYERS} are allowed")
    _check_descriptor(manifest.config, what)
    if manifest.config.media_type not in media.CONFIGS:
        raise MediaTypeUnsupported(
            f"{what} has a configuration of type {manifest.config.media_type[:99]!r}: an artifact, no container image"
        )
    for layer in manifest.layers:
        _check_descriptor(layer, what)
        media.check_layer(layer.media_type, layer.digest)
    return manifest


def decode_index(data: bytes, what: str, max_bytes: int) -> Index:
    """*data* as an image index; its entries' digests and sizes are checked."""
    index = decode(data, Index, what, max_bytes)
    if index.schema_version != 2 or len(index.manifests) > MAX_INDEX_ENTRIES:
        raise ManifestInvalid(f"{what}: schemaVersion {index.schema_version}, {len(index.manifests)} entries")
    for entry in index.manifests:
        _check_descriptor(entry, what)
    return index


def _check_descriptor(descriptor: Descriptor, what: str) -> None:
    try:
        check_digest(descriptor.digest)
    except InvalidArgument as error:
        raise ManifestInvalid(f"{what}: {error.detail}") from error
    if not 0 <= descriptor.size < 1 << 50:
        raise ManifestInvalid(f"{what}: {descriptor.digest} has size {descriptor.size}")


def parse_platform(text: str) -> Platform:
    """``linux/arm64/v8`` or ``arm64`` as a :class:`Platform`, with the field's other words for architectures."""
    parts = text.lower().split("/")
    if len(parts) == 1:
        parts = ["linux", parts[0]]
    if len(parts) > 3 or not all(re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,31}", part) for part in parts):
        raise InvalidArgument(f"platform {text[:80]!r} is not OS/ARCHITECTURE[/VARIANT], as linux/arm64")
    return _normal(Platform(parts[0], parts[1], parts[2] if len(parts) == 3 else ""))


def _normal(platform: Platform) -> Platform:
    names = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm", "i386": "386", "i686": "386"}
    architecture = names.get(platform.architecture, platform.architecture)
    variant = platform.variant
    if (architecture, variant) in (("arm64", "v8"), ("arm64", "8"), ("amd64", "v1")):
        variant = ""
    if architecture == "arm" and not variant:
        variant = "v7"
    return Platform(platform.os, architecture, variant.removeprefix("v") and f"v{variant.removeprefix('v')}")


def choose_platform(index: Index, wanted: Platform, what: str) -> Descriptor:
    """The entry of *index* for *wanted*: the same variant, else the highest one that *wanted* can run.

    Entries whose type is unknown and build attestations (``unknown/unknown``) are passed over.
    """
    wanted = _normal(wanted)
    offered: list[tuple[Platform, Descriptor]] = []
    for entry in index.manifests:
        kind = entry.media_type or media.OCI_MANIFEST
        if kind in media.MANIFESTS and entry.platform is not None:
            fields = {key: str(entry.platform.get(key) or "") for key in ("os", "architecture", "variant")}
            offered.append((_normal(Platform(**fields)), entry))
    best: tuple[int, Descriptor] | None = None
    for platform, entry in offered:
        if (platform.os, platform.architecture) != (wanted.os, wanted.architecture):
            continue
        have, want = _rank(platform.variant), _rank(wanted.variant)
        if have <= want and (best is None or have > best[0]):
            best = (have, entry)
    if best is not None:
        return best[1]
    if len(index.manifests) == 1 and index.manifests[0].platform is None:
        return index.manifests[0]
    names = ", ".join(sorted({str(platform) for platform, _ in offered if platform.os != "unknown"})[:20])
    raise PlatformMissing(
        f"{what} has nothing for {wanted}; it has {names or 'no platform at all'}", platform=str(wanted)
    )


def _rank(variant: str) -> int:
    digits = variant.removeprefix("v")
    return int(digits) if digits.isdigit() and len(digits) < 4 else 0


def image_record(  # noqa: PLR0917 - the documents of one image
    manifest_data: bytes, media_type: str, config_data: bytes, names: tuple[str, ...], index_digest: str | None,
    manifest_digest: str, max_bytes: int,
) -> ImageRecord:  # fmt: skip
    """The record of an image from its verified manifest and configuration."""
    manifest = decode_manifest(manifest_data, manifest_digest, max_bytes)
    what = f"configuration {manifest.config.digest}"
    config = decode(config_data, _Config, what, max_bytes)
    diff_ids = config.rootfs.diff_ids or ()
    if len(diff_ids) != len(manifest.layers):
        raise ManifestInvalid(f"{what} has {len(diff_ids)} diff_ids, its manifest {len(manifest.layers)} layers")
    layers = []
    for diff_id, layer in zip(diff_ids, manifest.layers, strict=True):
        try:
            check_digest(diff_id)
        except InvalidArgument as error:
            raise ManifestInvalid(f"{what}: {error.detail}") from error
        layers.append(LayerRef(layer.digest, diff_id, layer.media_type, layer.size))
    if len(config.history or ()) > MAX_HISTORY:
        raise ManifestInvalid(f"{what} has {len(config.history or ())} lines of history; {MAX_HISTORY} are allowed")
    return ImageRecord(
        names=names,
        manifest_digest=manifest_digest,
        manifest_media_type=media_type,
        config_digest=manifest.config.digest,
        platform=_normal(Platform(config.os, config.architecture, config.variant or "")),
        layers=tuple(layers),
        config=_image_config(config.config or _RunConfig()),
        index_digest=index_digest,
        created=config.created or "",
        author=config.author or "",
        history=tuple(_history(line, what) for line in config.history or ()),
    )


def _image_config(run: _RunConfig) -> ImageConfig:
    def words(value: tuple[str, ...] | str | None) -> tuple[str, ...]:
        return (value,) if isinstance(value, str) else (value or ())

    return ImageConfig(
        env=run.env or (),
        entrypoint=words(run.entrypoint),
        cmd=words(run.cmd),
        user=run.user or "",
        working_dir=run.working_dir or "",
        volumes=tuple(sorted(run.volumes or ())),
        exposed_ports=tuple(sorted(run.exposed_ports or ())),
        stop_signal=run.stop_signal or "",
        labels=run.labels or {},
        shell=run.shell or (),
        healthcheck=run.healthcheck,
    )


def _history(line: dict[str, Any], what: str) -> HistoryEntry:
    try:
        return msgspec.convert({key: value for key, value in line.items() if value is not None}, HistoryEntry)
    except msgspec.ValidationError as error:
        raise ManifestInvalid(f"{what}: history: {error}") from error
