"""Media types of manifests, configurations and layers (OCI image-spec v1.1, Docker image manifest v2 schema 2)."""

from __future__ import annotations

from casemate.image.errors import MediaTypeUnsupported

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

OCI_TAR = "application/vnd.oci.image.layer.v1.tar"
OCI_TAR_GZIP = OCI_TAR + "+gzip"
OCI_TAR_ZSTD = OCI_TAR + "+zstd"
DOCKER_TAR = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_TAR_GZIP = DOCKER_TAR + ".gzip"
DOCKER_TAR_ZSTD = DOCKER_TAR + ".zstd"

INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
LAYERS = frozenset({OCI_TAR, OCI_TAR_GZIP, OCI_TAR_ZSTD, DOCKER_TAR, DOCKER_TAR_GZIP, DOCKER_TAR_ZSTD})

#: What we ask a registry for, best first.
ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))


def check_layer(media_type: str, digest: str) -> str:
    """*media_type*, when it is a layer that we can read; foreign layers are named as such."""
    if media_type in LAYERS:
        return media_type
    if "foreign" in media_type or "nondistributable" in media_type:
        raise MediaTypeUnsupported(
            f"layer {digest} is foreign ({media_type}): its content is not in the registry",
            remedy="Use an image whose layers may be distributed.",
        )
    raise MediaTypeUnsupported(
        f"layer {digest} has media type {media_type[:120]!r}; tar, tar+gzip and tar+zstd are read"
    )


def check_document(media_type: str, what: str) -> str:
    """*media_type*, when it is an index or a manifest; Docker's schema 1 is named as such."""
    kind = media_type.partition(";")[0].strip()
    if kind in INDEXES or kind in MANIFESTS:
        return kind
    if "manifest.v1+" in kind:
        raise MediaTypeUnsupported(
            f"{what} is a Docker schema 1 manifest ({kind}): obsolete since 2019 and not verifiable by digest"
        )
    raise MediaTypeUnsupported(f"{what} has media type {kind[:120]!r}, which is no image manifest or index")
