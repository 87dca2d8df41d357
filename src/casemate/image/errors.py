"""What can go wrong with images; each class is one documented code."""

from __future__ import annotations

import errno

from casemate.spec.errors import CasemateError, DiskFull, LimitExceeded, NotFound


class RegistryError(CasemateError):
    """Root of what a registry answers or fails to answer."""

    code = "registry.failed"
    status = 502
    title = "The registry's answer cannot be used"
    remedy = "Check the registry; `casemate image pull` again shows whether it lasts."


class RegistryUnauthorized(RegistryError):
    code = "registry.unauthorized"
    status = 401
    title = "The registry wants other credentials"
    remedy = "Log in: `docker login REGISTRY` or `podman login REGISTRY`; Casemate reads their credential files."


class RegistryDenied(RegistryError):
    code = "registry.denied"
    status = 403
    title = "The registry does not allow this"
    remedy = "Ask the registry's owner for the right, or check that the name is right."


class ImageNotFound(NotFound):
    code = "image.not_found"
    title = "No such image"
    remedy = "Check the name and tag; `casemate image ls` lists the images that are here."


class RegistryBusy(RegistryError):
    code = "registry.rate_limited"
    status = 429
    title = "The registry limits how often it may be asked"
    remedy = "Wait, log in (limits are often higher then), or set a mirror under [registry] mirrors."
    retryable = True


class RegistryUnavailable(RegistryError):
    code = "registry.unavailable"
    status = 503
    title = "The registry cannot be reached or fails"
    remedy = "Check name, network and the registry; plain HTTP works only for hosts in [registry] insecure."
    retryable = True


class DigestMismatch(RegistryError):
    code = "image.digest_mismatch"
    title = "The content is not what its digest says"
    remedy = "Do not use this content; pull again, and if it lasts report it to the registry's owner."


class BodyCutOff(RegistryError):
    code = "registry.body_cut_off"
    title = "A body ended before or after the length that was promised"
    remedy = "Pull again: what has arrived is kept, and the rest is fetched."
    retryable = True


class CredentialsInvalid(CasemateError):
    code = "registry.credentials_invalid"
    status = 400
    title = "The credential file or a credential helper cannot be used"
    remedy = "Check ~/.docker/config.json and the docker-credential-* program that it names."


class ManifestInvalid(CasemateError):
    code = "image.manifest_invalid"
    status = 422
    title = "A manifest, an index or an image configuration is not valid"
    remedy = "Build the image anew with a current tool."


class ManifestTooLarge(LimitExceeded):
    code = "image.manifest_too_large"
    title = "A manifest, an index or an image configuration is too large or too deep"
    remedy = "Raise [image] max_manifest_bytes if you trust the image."


class MediaTypeUnsupported(ManifestInvalid):
    code = "image.media_type_unsupported"
    title = "The media type is not one of an image"
    remedy = "Push the image anew with a current tool: OCI or Docker v2 schema 2, layers as tar, gzip or zstd."


class PlatformMissing(ManifestInvalid):
    code = "image.platform_missing"
    status = 404
    title = "The image does not exist for this platform"
    remedy = "Choose one of the platforms that the message lists with --platform."


class ArtifactLimit(LimitExceeded):
    code = "image.artifact_limit"
    title = "An image bears more signatures and attestations, or larger ones, than are looked at"
    remedy = "Remove those that nobody needs from the registry; `casemate trust verify` shows what counts."


class DigestUnpublished(CasemateError):
    code = "image.digest_unpublished"
    status = 403
    title = "The registry's tag leads to another digest than the one that its publisher signed"
    remedy = "Pull by the digest that the message names; or have its publisher sign the new one (`trust publish`)."


class LayerInvalid(CasemateError):
    code = "image.layer_invalid"
    status = 422
    title = "A layer is not a tar archive that can be used"
    remedy = "Build the image anew; the message names the entry."


class LayerCutOff(LayerInvalid):
    code = "image.layer_cut_off"
    title = "A layer ends in the middle of an entry"


class LayerEscapes(LayerInvalid):
    code = "image.layer_escapes"
    title = "A layer names a file outside itself"
    remedy = "Do not trust this image: well-made layers hold no such names."


class LayerTooLarge(LimitExceeded):
    code = "image.layer_too_large"
    title = "A layer is larger than allowed when unpacked"
    remedy = "Raise [image] max_layer_bytes, max_ratio or max_layer_files if you trust the image."


class ArchiveInvalid(CasemateError):
    code = "image.archive_invalid"
    status = 422
    title = "The archive is not an image"
    remedy = (
        "Give what `docker save` or an OCI tool wrote; a tar of a root file system needs a name for its image: "
        "`casemate image import --form rootfs FILE NAME`."
    )


class BuildFailed(CasemateError):
    code = "image.build_failed"
    status = 422
    title = "The image could not be built"
    remedy = "Read the builder's words in the detail: most often a package's name or a mirror is wrong."


class WorkerFailed(CasemateError):
    code = "image.worker_failed"
    title = "The image worker ended without a result"
    remedy = "Try again; `casemate system doctor` checks memory, disk and programs."
    retryable = True


def from_os_error(error: OSError, what: str) -> CasemateError:
    """*error* as ours: no space (or quota, or the bound on a file's size) becomes :class:`DiskFull`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(f"{what}: {error.strerror}")
    return CasemateError(f"{what}: {error.strerror or error}")
