"""What the store knows of an image and of a layer: frozen values, encoded as JSON by msgspec."""

from __future__ import annotations

from typing import Any

import msgspec


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """OCI image-spec, image index: ``os``, ``architecture`` and ``variant`` in Go's words."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class LayerRef(msgspec.Struct, frozen=True):
    """One layer of an image: the blob as transferred, and the *diff_id* of what it unpacks to."""

    digest: str
    diff_id: str
    media_type: str
    size_bytes: int


class ImageConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """The part of the OCI configuration that running a container needs; names as in Python, values as given."""

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: dict[str, str] = {}
    shell: tuple[str, ...] = ()
    #: Docker's Healthcheck object as it stands (not in OCI); None when there is none.
    healthcheck: dict[str, Any] | None = None


class HistoryEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    created: str = ""
    created_by: str = ""
    comment: str = ""
    author: str = ""
    empty_layer: bool = False


class ImageRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """An image for one platform. *names* are whole references; the image's id is *config_digest* (as in Docker)."""

    names: tuple[str, ...]
    manifest_digest: str
    manifest_media_type: str
    config_digest: str
    platform: Platform
    layers: tuple[LayerRef, ...]
    config: ImageConfig
    index_digest: str | None = None
    created: str = ""
    author: str = ""
    history: tuple[HistoryEntry, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of the layers as transferred."""
        return sum(layer.size_bytes for layer in self.layers)

    def digests(self) -> frozenset[str]:
        """Every blob and every diff_id that this image needs: what garbage collection must keep."""
        found = {self.manifest_digest, self.config_digest}
        found.update(layer.digest for layer in self.layers)
        found.update(layer.diff_id for layer in self.layers)
        if self.index_digest:
            found.add(self.index_digest)
        return frozenset(found)


class LayerRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What conversion learnt of a layer. *squashfs_digest* is its name at hostd.

    *passwd* and *group* are the layer's own ``etc/passwd`` and ``etc/group`` (at most 1 MiB each, else None);
    *passwd_hidden* and *group_hidden* say that the layer hides those of the layers below (by its own file, a
    whiteout or an opaque folder). *opaque_root*: nothing of the layers below may be seen (overlayfs ignores
    the mark on a root, so whoever mounts must leave them out). *id_shift* was added to every owner.
    """

    diff_id: str
    squashfs_digest: str
    squashfs_bytes: int
    unpacked_bytes: int
    entries: int
    whiteouts: int = 0
    opaque_root: bool = False
    dropped_xattrs: int = 0
    id_shift: int = 0
    passwd: bytes | None = None
    group: bytes | None = None
    passwd_hidden: bool = False
    group_hidden: bool = False


def visible_layers(records: list[LayerRecord]) -> list[LayerRecord]:
    """*records* (bottom to top) without those that an opaque root above hides: what is to be mounted."""
    start = 0
    for number, record in enumerate(records):
        if record.opaque_root:
            start = number
    return records[start:]


def user_files(records: list[LayerRecord]) -> tuple[bytes | None, bytes | None]:
    """``etc/passwd`` and ``etc/group`` as a container of these layers (bottom to top) sees them."""
    passwd = group = None
    for record in visible_layers(records):
        if record.passwd_hidden:
            passwd = record.passwd
        if record.group_hidden:
            group = record.group
    return passwd, group
