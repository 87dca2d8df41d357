"""What is asked of the image worker and what it answers: frozen values and their JSON. Pure; no effects.

One job goes to the worker's standard input, then lines come back: any number of :class:`Progress`, then one
:class:`Result` or one :class:`Failure`. A line is at most :data:`MAX_LINE_BYTES` long.
"""

from __future__ import annotations

from typing import Any

import msgspec

from casemate.image.errors import WorkerFailed
from casemate.image.records import ImageRecord, LayerRecord, Platform
from casemate.image.referring import Wanted

MAX_JOB_BYTES = 4 << 20
#: A result carries records of up to 127 layers, each with up to 1 MiB of passwd and group in base64.
MAX_LINE_BYTES = 64 << 20


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of the ``image.*`` settings, and how layers are converted.

    *id_shift* is added to every owner in the squashfs files: for kernels that cannot mount squashfs idmapped
    (before 6.2), where all pods then share the one range that begins there; else 0.
    """

    parallel_layers: int = 3
    max_manifest_bytes: int = 4 << 20
    max_layer_bytes: int = 64 << 30
    max_ratio: int = 1000
    max_layer_files: int = 2_000_000
    memory_bytes: int = 8 << 30
    id_shift: int = 0


class Login(msgspec.Struct, frozen=True):
    """Credentials for one registry. *identity_token* is an OAuth2 refresh token, used instead of the password."""

    username: str = ""
    password: str = ""
    identity_token: str = ""


class Endpoints(msgspec.Struct, frozen=True, kw_only=True):
    """How registries may be reached. *mirrors*: ``host=mirror``; *insecure*: hosts to be spoken to over plain HTTP."""

    mirrors: tuple[str, ...] = ()
    insecure: tuple[str, ...] = ()
    ca_files: tuple[str, ...] = ()
    logins: dict[str, Login] = {}


class PullJob(msgspec.Struct, frozen=True, tag="pull", kw_only=True):
    """Fetch *reference*; with *convert* false the layers are only stored, not turned into squashfs."""

    state: str
    reference: str
    platform: Platform = Platform()
    endpoints: Endpoints = Endpoints()
    limits: Limits = Limits()
    convert: bool = True
    #: What refers to the image is fetched with it and kept beside it; None: it is not looked for.
    referring: Wanted | None = None
    #: The digest that the tag's publisher signed; empty: none is known. Another one is not fetched.
    published: str = ""


class PushJob(msgspec.Struct, frozen=True, tag="push", kw_only=True):
    """Send the stored image of *manifest_digest* to *reference*. *mount_from*: repositories that may have it."""

    state: str
    reference: str
    manifest_digest: str
    endpoints: Endpoints = Endpoints()
    limits: Limits = Limits()
    mount_from: tuple[str, ...] = ()


class ConfigChange(msgspec.Struct, frozen=True, kw_only=True):
    """What an image made from a root file system is told to be."""

    cmd: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    labels: dict[str, str] = {}
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    comment: str = ""


class ImportJob(msgspec.Struct, frozen=True, tag="import", kw_only=True):
    """Read an archive or folder. *source*: an absolute path, or ``fd:N`` for an inherited descriptor.

    *rootfs* true: it is a plain root file system tar that becomes an image of one layer named *name*; *maybe_rootfs*:
    it is that when it holds no image.
    """

    state: str
    source: str
    rootfs: bool = False
    maybe_rootfs: bool = False
    name: str = ""
    change: ConfigChange = ConfigChange()
    platform: Platform = Platform()
    limits: Limits = Limits()
    epoch: int = 0


class ExportJob(msgspec.Struct, frozen=True, tag="export", kw_only=True):
    """Write stored images as one archive. *images*: (manifest digest, names); *kind*: docker-archive or oci-archive."""

    state: str
    images: tuple[tuple[str, tuple[str, ...]], ...]
    target: str
    kind: str = "docker-archive"
    limits: Limits = Limits()


class DebianJob(msgspec.Struct, frozen=True, tag="build-debian", kw_only=True):
    """Make an image out of Debian packages with mmdebstrap. *sources*: apt lines; empty takes the host's own."""

    state: str
    name: str
    suite: str
    packages: tuple[str, ...] = ()
    variant: str = "minbase"
    architecture: str = ""
    sources: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    change: ConfigChange = ConfigChange()
    epoch: int = 0
    mode: str = "auto"
    limits: Limits = Limits()
    timeout_s: int = 1800


class ConvertJob(msgspec.Struct, frozen=True, tag="convert", kw_only=True):
    """Make a layer's squashfs anew from its kept blob (hostd lost it, or the record is gone)."""

    state: str
    layers: tuple[tuple[str, str], ...]
    limits: Limits = Limits()


class VerifyJob(msgspec.Struct, frozen=True, tag="verify", kw_only=True):
    """Read the whole store and compare each object with its name."""

    state: str
    limits: Limits = Limits()


Job = PullJob | PushJob | ImportJob | ExportJob | DebianJob | ConvertJob | VerifyJob


class Progress(msgspec.Struct, frozen=True, tag="progress", omit_defaults=True):
    """Something moved on. *item*: a layer's digest or a word; *stage*: waiting, downloading, shared, done, ..."""

    item: str
    stage: str
    current_bytes: int = 0
    total_bytes: int = 0
    text: str = ""


class Result(msgspec.Struct, frozen=True, tag="result", omit_defaults=True):
    """The job is done. *staged*: squashfs digests that wait in ``staging/`` for adoption by hostd.

    *lease*: keeps what the job stored from garbage collection until ``store.release(lease)``.
    """

    images: tuple[ImageRecord, ...] = ()
    layers: tuple[LayerRecord, ...] = ()
    staged: tuple[str, ...] = ()
    lease: str = ""
    transferred_bytes: int = 0
    digest: str = ""
    #: What an import found: docker-archive, oci-archive or rootfs.
    form: str = ""
    damaged: tuple[str, ...] = ()


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """The job failed; *problem* is what ``CasemateError.to_problem()`` gives."""

    problem: dict[str, Any]


Message = Progress | Result | Failure

_JOBS: msgspec.json.Decoder[Job] = msgspec.json.Decoder(Job)
_MESSAGES: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode(value: Job | Message) -> bytes:
    """*value* as one line of JSON, without the newline."""
    return msgspec.json.encode(value)


def decode_job(data: bytes) -> Job:
    """The job in *data*; unknown members are not looked at, wrong types are refused."""
    if len(data) > MAX_JOB_BYTES:
        raise WorkerFailed(f"a job of {len(data)} bytes; {MAX_JOB_BYTES} are allowed")
    try:
        return _JOBS.decode(data)
    except msgspec.MsgspecError as error:
        raise WorkerFailed(f"the job cannot be read: {error}") from error


def decode_message(line: bytes) -> Message:
    """One line of the worker; raises :class:`WorkerFailed` for anything else."""
    try:
        return _MESSAGES.decode(line)
    except msgspec.MsgspecError as error:
        raise WorkerFailed(f"the worker wrote a line that is no message: {error}") from error
