"""The values of the REST API: what a request may hold and what an answer holds.

docs/reference/openapi.json is generated from these and from the table of routes; a test fails when it is stale.
Unknown fields in a request are refused. Times are RFC 3339 text in UTC; sizes bytes; durations seconds.

Attach and exec are WebSockets (the same over the unix socket and over TLS). A binary message begins with one byte:
0 standard input, 1 standard output, 2 standard error, 3 control (the rest is JSON: :class:`Control`). An empty
standard-input message ends the input. The server's last message is a control with ``exit_code``.

Logs are a chunked body of frames: one byte stream (1 or 2), three zero bytes, four bytes length (big endian), text.
Server-sent events carry ``id``, ``event`` and one JSON ``data`` line.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from casemate.spec.workload import (
    Bytes,
    Device,
    HostEntry,
    Level,
    Mount,
    Name,
    PathText,
    Port,
    Project,
    Resources,
    Rlimit,
    Sysctl,
    Text,
    Value,
)

Reference = Annotated[str, Meta(min_length=1, max_length=512)]
Labels = Annotated[dict[str, Annotated[str, Meta(max_length=65_536)]], Meta(max_length=512)]
Seconds = Annotated[int, Meta(ge=0, le=86_400)]
#: A user as it is typed: ``name``, ``uid``, ``name:group``, ``uid:gid``.
UserText = Annotated[str, Meta(max_length=256)]
PullPolicy = Literal["missing", "always", "never"]


class PortRequest(Value, frozen=True):
    """A published port; *host_port* 0 lets Casemate choose a free one."""

    container_port: Port
    host_port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    host_address: Annotated[str, Meta(max_length=15)] = "0.0.0.0"  # noqa: S104 - the default of Docker and Podman
    protocol: Literal["tcp", "udp"] = "tcp"


class RestartPolicy(Value, frozen=True):
    name: Literal["no", "on-failure", "always", "unless-stopped"] = "no"
    #: For on-failure: how often at most; 0 is without end.
    maximum: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class NetworkRequest(Value, frozen=True):
    mode: Literal["pod", "none", "host"] = "pod"
    ports: Annotated[tuple[PortRequest, ...], Meta(max_length=1024)] = ()
    #: Publish every port that the image exposes (``-P``).
    publish_all: bool = False
    dns: Annotated[tuple[str, ...], Meta(max_length=8)] = ()
    dns_search: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    dns_options: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    hosts: Annotated[tuple[HostEntry, ...], Meta(max_length=256)] = ()


class ContainerRequest(Value, frozen=True):
    """``POST /v1/containers``: what a person asks for; None and empty mean "as the image says" or the default."""

    image: Reference
    name: Name | None = None
    project: Project = "default"
    #: Join this pod; otherwise the container gets a pod of its own.
    pod: str | None = None
    level: Level | None = None
    command: Annotated[tuple[Text, ...], Meta(max_length=8192)] | None = None
    #: None: the image's; empty: none.
    entrypoint: Annotated[tuple[Text, ...], Meta(max_length=8192)] | None = None
    #: ``NAME=value``; added to, and over, those of the image.
    env: Annotated[tuple[Text, ...], Meta(max_length=8192)] = ()
    cwd: PathText | None = None
    user: UserText | None = None
    groups: Annotated[tuple[UserText, ...], Meta(max_length=64)] = ()
    hostname: Annotated[str, Meta(max_length=64)] | None = None
    labels: Labels = {}
    terminal: bool = False
    stdin: bool = False
    #: Remove the container (and its pod and anonymous volumes) as soon as it ends.
    auto_remove: bool = False
    mounts: Annotated[tuple[Mount, ...], Meta(max_length=256)] = ()
    devices: Annotated[tuple[Device, ...], Meta(max_length=64)] = ()
    resources: Resources = Resources()
    rlimits: Annotated[tuple[Rlimit, ...], Meta(max_length=32)] = ()
    sysctls: Annotated[tuple[Sysctl, ...], Meta(max_length=64)] = ()
    cap_add: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    cap_drop: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    privileged: bool = False
    no_new_privileges: bool = True
    seccomp: Literal["default", "unconfined"] = "default"
    read_only: bool = False
    writable_bytes: Bytes = 0
    shm_bytes: Bytes | None = None
    init: bool = False
    host_pid: bool = False
    host_ipc: bool = False
    network: NetworkRequest = NetworkRequest()
    restart: RestartPolicy = RestartPolicy()
    #: A name (SIGTERM, TERM) or a number; None: the image's.
    stop_signal: Annotated[str, Meta(max_length=32)] | None = None
    stop_timeout: Seconds | None = None
    platform: Annotated[str, Meta(max_length=64)] | None = None
    log_max_bytes: Bytes | None = None
    log_keep: bool = True


class ContainerCreated(Value, frozen=True):
    id: str
    name: str
    warnings: tuple[str, ...] = ()


Status = Literal["created", "starting", "running", "paused", "stopping", "restarting", "exited", "removing", "broken"]


class ContainerSummary(Value, frozen=True):
    """A row of ``ps``."""

    id: str
    name: str
    project: str
    pod: str
    pod_name: str
    image: str
    image_digest: str
    command: str
    level: str
    status: Status
    created_at: str
    started_at: str = ""
    finished_at: str = ""
    exit_code: int | None = None
    ports: tuple[PortRequest, ...] = ()
    labels: dict[str, str] = {}
    address: str = ""
    restarts: int = 0


class Admission(Value, frozen=True):
    """What admission answered between "resolved to a digest" and "run"."""

    answer: str
    reason: str
    policy: str = ""


class ContainerDetail(Value, frozen=True):
    """``inspect``: the summary, what was asked, and what is."""

    summary: ContainerSummary
    request: ContainerRequest
    #: As it was resolved: the process that runs, capabilities, mounts, layers.
    resolved: dict[str, object]
    admission: Admission
    pid: int = 0
    conmon_pid: int = 0
    first_id: int = 0
    oom_killed: bool = False
    reason: str = ""
    warnings: tuple[str, ...] = ()
    execs: tuple[str, ...] = ()


class ContainerList(Value, frozen=True):
    containers: tuple[ContainerSummary, ...]
    #: Pass as ``after`` for the next page; empty at the end.
    next_after: str = ""


class StopRequest(Value, frozen=True):
    #: None: the container's own, then the setting runtime.stop_timeout.
    timeout: Seconds | None = None
    signal: Annotated[str, Meta(max_length=32)] | None = None


class KillRequest(Value, frozen=True):
    signal: Annotated[str, Meta(max_length=32)] = "SIGKILL"


class RenameRequest(Value, frozen=True):
    name: Name


class UpdateRequest(Value, frozen=True):
    resources: Resources = Resources()
    restart: RestartPolicy | None = None


class UpdateAnswer(Value, frozen=True):
    warnings: tuple[str, ...] = ()


class WaitAnswer(Value, frozen=True):
    exit_code: int
    oom_killed: bool = False
    reason: str = ""


class ExecRequest(Value, frozen=True):
    command: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=8192)]
    env: Annotated[tuple[Text, ...], Meta(max_length=8192)] = ()
    cwd: PathText | None = None
    user: UserText | None = None
    terminal: bool = False
    stdin: bool = False
    privileged: bool = False


class ExecCreated(Value, frozen=True):
    id: str


class ExecDetail(Value, frozen=True):
    id: str
    container: str
    running: bool
    exit_code: int | None
    command: tuple[str, ...]
    pid: int = 0


class Control(Value, frozen=True):
    """Control message of an attach: from the client rows and columns; from the server the end, or an error."""

    rows: int | None = None
    columns: int | None = None
    exit_code: int | None = None
    problem: dict[str, object] | None = None
    #: The server says this once the process runs (so that a client of ``run`` knows it started).
    started: bool = False


class TopAnswer(Value, frozen=True):
    titles: tuple[str, ...]
    processes: tuple[tuple[str, ...], ...]


class StatsRow(Value, frozen=True):
    id: str
    name: str
    cpu_percent: float
    memory_bytes: int
    memory_limit_bytes: int
    pids: int
    pids_limit: int
    read_bytes: int
    write_bytes: int
    rx_bytes: int
    tx_bytes: int


class StatsAnswer(Value, frozen=True):
    at: str
    rows: tuple[StatsRow, ...]


class Change(Value, frozen=True):
    kind: Literal["A", "C", "D"]
    path: str


class ChangesAnswer(Value, frozen=True):
    changes: tuple[Change, ...]


class PathStat(Value, frozen=True):
    """Header ``X-Casemate-Path-Stat`` (base64 of this as JSON) of the archive routes."""

    name: str
    size: int
    mode: int
    mtime: float
    link_target: str = ""
    is_dir: bool = False


# --- pods -------------------------------------------------------------------------------------------------------


class PodRequest(Value, frozen=True):
    name: Name | None = None
    project: Project = "default"
    level: Level | None = None
    hostname: Annotated[str, Meta(max_length=64)] | None = None
    labels: Labels = {}
    network: NetworkRequest = NetworkRequest()
    resources: Resources = Resources()
    host_pid: bool = False
    host_ipc: bool = False


class PodSummary(Value, frozen=True):
    id: str
    name: str
    project: str
    level: str
    status: str
    created_at: str
    address: str
    containers: tuple[str, ...]
    labels: dict[str, str] = {}
    ports: tuple[PortRequest, ...] = ()
    #: Made for a lone container, and removed with it.
    implicit: bool = False


class PodList(Value, frozen=True):
    pods: tuple[PodSummary, ...]


class PodDetail(Value, frozen=True):
    summary: PodSummary
    request: PodRequest
    first_id: int = 0


# --- images -----------------------------------------------------------------------------------------------------


class RegistryAuth(Value, frozen=True):
    """Credentials for one registry, for one operation; never stored, never logged."""

    registry: str
    username: str = ""
    password: str = ""
    identity_token: str = ""


class PullRequest(Value, frozen=True):
    reference: Reference
    platform: Annotated[str, Meta(max_length=64)] | None = None
    auth: RegistryAuth | None = None
    plain_http: bool = False
    quiet: bool = False


class PushRequest(Value, frozen=True):
    reference: Reference
    #: Push the image that *source* names under *reference*; None: the same.
    source: Reference | None = None
    auth: RegistryAuth | None = None
    plain_http: bool = False


class BuildDebianRequest(Value, frozen=True):
    suite: Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9.-]{1,40}\Z")]
    tag: Reference
    packages: Annotated[
        tuple[Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9+.:=~-]{0,200}\Z")], ...], Meta(max_length=500)
    ] = ()
    variant: Literal["extract", "custom", "essential", "apt", "minbase"] = "essential"
    mirror: Annotated[str, Meta(max_length=512)] | None = None
    command: tuple[Text, ...] | None = None
    env: tuple[Text, ...] = ()
    labels: Labels = {}


class TagRequest(Value, frozen=True):
    source: Reference
    target: Reference


class ImageSummary(Value, frozen=True):
    """A row of ``image ls``: *id* is the digest of the config, as the field has it."""

    id: str
    digest: str
    names: tuple[str, ...]
    platform: str
    created_at: str
    size_bytes: int
    shared_bytes: int = 0
    containers: int = 0
    labels: dict[str, str] = {}


class ImageList(Value, frozen=True):
    images: tuple[ImageSummary, ...]


class ImageDetail(Value, frozen=True):
    summary: ImageSummary
    config: dict[str, object]
    layers: tuple[dict[str, object], ...]
    manifest: dict[str, object]


class HistoryRow(Value, frozen=True):
    created_at: str
    created_by: str
    size_bytes: int
    comment: str = ""
    empty: bool = False


class HistoryAnswer(Value, frozen=True):
    history: tuple[HistoryRow, ...]


class Removed(Value, frozen=True):
    """What a removal or a prune took away."""

    removed: tuple[str, ...]
    untagged: tuple[str, ...] = ()
    freed_bytes: int = 0


# --- operations, events, system ---------------------------------------------------------------------------------


class Operation(Value, frozen=True):
    """Long work: 202 answers it, ``GET /v1/operations/{id}`` follows it."""

    id: str
    kind: str
    status: Literal["running", "done", "failed", "cancelled"]
    created_at: str
    finished_at: str = ""
    target: str = ""
    result: dict[str, object] = {}
    problem: dict[str, object] | None = None


class Progress(Value, frozen=True):
    """An event of an operation: *item* (a layer) has done *done* of *total* in *phase*."""

    item: str
    phase: str
    done: int = 0
    total: int = 0
    detail: str = ""


class EventRow(Value, frozen=True):
    """An event of the node: what happened to which subject, and why."""

    number: int
    at: str
    kind: str
    subject: str
    action: str
    project: str = "default"
    name: str = ""
    facts: dict[str, object] = {}


class AuditRow(Value, frozen=True):
    """A hash-chained record: *chain* is the sha256 over the previous row's chain and this row."""

    number: int
    at: str
    who: str
    action: str
    subject: str
    answer: str
    facts: dict[str, object]
    chain: str


class AuditList(Value, frozen=True):
    rows: tuple[AuditRow, ...]
    intact: bool


class VersionAnswer(Value, frozen=True):
    version: str
    api: str
    hostd: str
    python: str
    kernel: str


class InfoAnswer(Value, frozen=True):
    version: str
    containers: int
    running: int
    images: int
    levels: dict[str, str]
    host: dict[str, str]
    settings: dict[str, object]
    warnings: tuple[str, ...] = ()


class FindingRow(Value, frozen=True):
    check: str
    severity: str
    detail: str
    remedy: str = ""
    left_over: bool = False


class DoctorAnswer(Value, frozen=True):
    findings: tuple[FindingRow, ...]
    healthy: bool


class DiskRow(Value, frozen=True):
    kind: str
    count: int
    active: int
    size_bytes: int
    reclaimable_bytes: int


class DiskAnswer(Value, frozen=True):
    rows: tuple[DiskRow, ...]


class PruneRequest(Value, frozen=True):
    #: Also remove images that no container uses (not only untagged ones).
    all_images: bool = False
    volumes: bool = False
    #: Only what a crash left behind, nothing that the user made.
    left_overs_only: bool = False
    dry_run: bool = False


class VolumeRequest(Value, frozen=True):
    name: Name | None = None
    project: Project = "default"
    labels: Labels = {}


class VolumeSummary(Value, frozen=True):
    name: str
    project: str
    created_at: str
    size_bytes: int = -1
    anonymous: bool = False
    used_by: tuple[str, ...] = ()
    labels: dict[str, str] = {}


class VolumeList(Value, frozen=True):
    volumes: tuple[VolumeSummary, ...]
