"""Containers: what is asked of one, what is told of it; execs, statistics, files."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from casemate.spec.api.fields import Labels, NetworkRequest, PortRequest, Reference, RestartPolicy, Seconds, UserText
from casemate.spec.workload import (
    Bytes,
    Device,
    Level,
    Mount,
    Name,
    PathText,
    Port,
    Project,
    Resources,
    Rlimit,
    Sysctl,
    Template,
    Text,
    Value,
)


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
    #: Of level microvm: how far apart its machine is from others; never less than the host's setting.
    template: Template | None = None
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
    #: The number by which the firewall knows what it may do; 0 where no policy holds.
    identity: int = 0


class AdmissionStep(Value, frozen=True):
    """One step of a decision. *outcome*: ``ok``, ``refuse``, ``raise``, ``warn``, ``excepted``."""

    rule: str
    outcome: str
    evidence: str


class Admission(Value, frozen=True, omit_defaults=True):
    """What admission answered between "resolved to a digest" and "run", and what it was based on.

    *level*: the least that the image may run at; *segment*: where it has to run (label ``casemate/segment``);
    *repository*: by which the rule was chosen; *counts*: findings by severity; *running*: what the policy wants done
    with a container that runs and would not be admitted so (*quarantine*: the segment for that).
    """

    answer: str
    reason: str
    policy: str = ""
    at: str = ""
    digest: str = ""
    repository: str = ""
    level: str = ""
    segment: str = ""
    running: str = ""
    quarantine: str = ""
    dry_run: bool = False
    steps: tuple[AdmissionStep, ...] = ()
    warnings: tuple[str, ...] = ()
    signers: tuple[str, ...] = ()
    packages: int = 0
    counts: dict[str, int] = {}
    distribution: str = ""
    feeds: tuple[str, ...] = ()


class SystemCalls(Value, frozen=True):
    """What of the host's kernel the container's level can ask for."""

    #: Whose calls these are, and by which filter.
    of: str
    #: How many are allowed; None where no list of ours stands in the way, or another program's does.
    allowed: int | None = None
    #: Their names, sorted.
    names: tuple[str, ...] = ()


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
    #: What serves its level on this host now: runtime, version, accelerator, guest kernel.
    level_detail: str = ""
    #: What its machine begins as, by the setting and what was asked; empty at the other levels.
    template: str = ""
    system_calls: SystemCalls | None = None


class ContainerList(Value, frozen=True):
    containers: tuple[ContainerSummary, ...]
    #: Pass as ``after`` for the next page; empty at the end.
    next_after: str = ""


class StopRequest(Value, frozen=True):
    #: None: the container's own, then the setting runtime.stop_timeout.
    timeout: Seconds | None = None
    signal: Annotated[str, Meta(max_length=32)] | None = None


class RestartRequest(Value, frozen=True):
    """``POST .../restart``. *hold*: new connections wait meanwhile, at most *hold_for_s* and *hold_connections*.

    *hold_ports*: TCP ports that must be listened at again; empty: those that were before. *hold_open*: open connections
    to the pod's kept ports are held too; what is under way has *hold_drain_s* to come to its end before the stop.
    """

    timeout: Seconds | None = None
    signal: Annotated[str, Meta(max_length=32)] | None = None
    hold: bool = False
    hold_for_s: Annotated[int, Meta(ge=1, le=600)] = 30
    hold_connections: Annotated[int, Meta(ge=1, le=65_536)] = 16_384
    hold_ports: Annotated[tuple[Port, ...], Meta(max_length=256)] = ()
    hold_open: bool = False
    hold_drain_s: Annotated[int, Meta(ge=0, le=600)] = 5


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
    #: With the exit code: the kernel killed a process of the container for want of memory.
    oom_killed: bool = False
    #: With the exit code: why it ended, where the end was not the process's own (its micro-VM's, its supervisor's).
    reason: str = ""
    problem: dict[str, object] | None = None
    #: The server says this once the process runs (so that a client of ``run`` knows it started).
    started: bool = False
    #: With *started*: limits that had to be lowered, and the like.
    warnings: tuple[str, ...] = ()


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
