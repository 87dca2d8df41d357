"""The typed operations of casemate-hostd, and the events that it sends.

One SOCK_SEQPACKET unix socket, one peer. A message is one msgpack value of at most :data:`MAX_MESSAGE_BYTES`;
descriptors travel beside it (SCM_RIGHTS). Requests carry a number that the answer repeats; answers may come in
any order. Events carry no request number. Unknown operations and unknown fields are refused.

``caller`` descriptor: operations that may touch host paths, devices, capabilities or host namespaces take the
*accepted API socket of the person who asks* as their first descriptor. hostd reads SO_PEERCRED and SO_PEERGROUPS
from it, so casemated cannot claim to speak for root: it can only forward a connection that root has open. With no
such descriptor (TLS clients) nothing that needs a grant is allowed. What was granted at creation is kept in
hostd's own record, so that restarts need no caller.
"""

# ruff: noqa: PLC0414 - what stands here by "as" is a part of this protocol

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from casemate.hostd.protocol_base import Answer as Answer
from casemate.hostd.protocol_base import Event as Event
from casemate.hostd.protocol_base import Operation as Operation
from casemate.hostd.protocol_firewall import FirewallAnswers, FirewallEvent, FirewallOperation
from casemate.hostd.protocol_kernels import KernelAdopt as KernelAdopt
from casemate.hostd.protocol_kernels import KernelList as KernelList
from casemate.hostd.protocol_kernels import KernelRemove as KernelRemove
from casemate.hostd.protocol_kernels import Kernels as Kernels
from casemate.hostd.protocol_kernels import KernelUse as KernelUse
from casemate.hostd.protocol_visibility import VisibilityOperation
from casemate.spec.workload import (
    Bytes,
    ContainerSpec,
    Hex,
    Id,
    Name,
    PathText,
    PodSpec,
    Process,
    Project,
    Resources,
    Value,
)

MAX_MESSAGE_BYTES = 192 << 10  # below net.core.wmem_default (212,992) with room for the kernel's overhead
MAX_DESCRIPTORS = 8
PROTOCOL_VERSION = 1

Signal = Annotated[int, Meta(ge=1, le=64)]
ContainerState = Literal["created", "running", "paused", "exited", "broken"]


# --- host -------------------------------------------------------------------------------------------------------


class Hello(Operation, frozen=True, tag="hello"):
    """Answers :class:`Welcome`. Must be the first operation; another protocol version is refused."""

    version: int = PROTOCOL_VERSION


class Observe(Operation, frozen=True, tag="observe"):
    """Answers :class:`Observed`: a page of what hostd has, read from the kernel, not from memory."""

    after_pod: str = ""
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


class Doctor(Operation, frozen=True, tag="doctor"):
    """Answers :class:`Findings`: checks of the host, and what a crash left."""


class Prune(Operation, frozen=True, tag="prune"):
    """Removes what a crash left and nobody owns; answers :class:`Findings` with what was removed.

    *pods* are all pods that casemated knows, when it wants unknown ones removed as well; None keeps those.
    """

    pods: Annotated[tuple[Id, ...], Meta(max_length=2000)] | None = None
    dry_run: bool = False
    #: The templates of micro-VMs too, which are made anew when one is started.
    templates: bool = False


# --- layers and volumes -----------------------------------------------------------------------------------------


class LayerAdopt(Operation, frozen=True, tag="layer.adopt"):
    """Takes ``<state>/staging/<hex>.sqfs`` over (no writer left, hashed again, owned by root). Answers Done."""

    layer: Hex


class LayerList(Operation, frozen=True, tag="layer.list"):
    """Answers :class:`Layers`."""

    after: str = ""


class LayerRemove(Operation, frozen=True, tag="layer.remove"):
    """Removes a layer that no pod uses (Conflict otherwise). Answers Done."""

    layer: Hex


class VolumeCreate(Operation, frozen=True, tag="volume.create"):
    project: Project
    name: Name


class VolumeRemove(Operation, frozen=True, tag="volume.remove"):
    """Conflict while a container uses it."""

    project: Project
    name: Name


class VolumeList(Operation, frozen=True, tag="volume.list"):
    """Answers :class:`Volumes`; with *sizes* counted, which takes a walk through all of their files."""

    project: Project
    sizes: bool = False


# --- pods -------------------------------------------------------------------------------------------------------


class PodCreate(Operation, frozen=True, tag="pod.create"):
    """Makes the sandbox: ids, cgroup, namespaces, interface, ports. Takes ``caller``. Answers :class:`PodReady`."""

    pod: PodSpec


class PodRemove(Operation, frozen=True, tag="pod.remove"):
    """Removes a pod; its containers must be gone unless *force*. Removing what is not there is Done."""

    pod: Id
    force: bool = False


class PodUpdate(Operation, frozen=True, tag="pod.update"):
    pod: Id
    resources: Resources


# --- containers -------------------------------------------------------------------------------------------------


class ContainerCreate(Operation, frozen=True, tag="container.create"):
    """Root file system, bundle, conmon and the runtime's ``create``. Takes ``caller``. Answers :class:`Created`.

    Nothing of the image has run yet. The pod must exist.
    """

    container: ContainerSpec


class ContainerRun(Operation, frozen=True, tag="container.run"):
    """PodCreate (when *pod* is given), ContainerCreate and, when *start*, ContainerStart in one operation.

    What fails is undone in reverse. With *attach*, the connected attach socket of conmon comes back as a
    descriptor, connected before the start, so that no output is missed. Takes ``caller``.
    Answers :class:`Created`.
    """

    pod: PodSpec | None
    container: ContainerSpec
    start: bool = True
    attach: bool = False


class ContainerStart(Operation, frozen=True, tag="container.start"):
    """Starts a created container; an exited one is prepared anew (same record) and started.

    What a reboot, or the end of the pod's last container, took away (mounts, namespaces, interface) is made
    anew from hostd's own record, which also keeps what was granted: no caller is needed.

    With *attach* as in ContainerRun. Answers :class:`Started`.
    """

    container: Id
    attach: bool = False


class ContainerKill(Operation, frozen=True, tag="container.kill"):
    """Sends *signal* to the first process (or, *all_processes*, to every one). Answers Done."""

    container: Id
    signal: Signal
    all_processes: bool = False


class ContainerPause(Operation, frozen=True, tag="container.pause"):
    container: Id


class ContainerUnpause(Operation, frozen=True, tag="container.unpause"):
    container: Id


class ContainerRemove(Operation, frozen=True, tag="container.remove"):
    """Removes a stopped container with its root file system and log; *force* kills it first. Idempotent.

    With *pod*, the pod goes too when this was its last container.
    """

    container: Id
    force: bool = False
    pod: bool = True


class ContainerUpdate(Operation, frozen=True, tag="container.update"):
    """Live limits. Answers :class:`Warnings`."""

    container: Id
    resources: Resources


class ContainerStats(Operation, frozen=True, tag="container.stats"):
    """Answers :class:`Stats`; containers that do not run are left out."""

    containers: Annotated[tuple[Id, ...], Meta(min_length=1, max_length=200)]


class ContainerTop(Operation, frozen=True, tag="container.top"):
    """Answers :class:`Processes`."""

    container: Id


class ContainerAttach(Operation, frozen=True, tag="container.attach"):
    """Answers Done and one descriptor: a SOCK_SEQPACKET connection to conmon's attach socket.

    Each message from conmon begins with one byte: 2 is standard output, 3 standard error (conmon's own form).
    """

    container: Id


class ContainerResize(Operation, frozen=True, tag="container.resize"):
    container: Id
    rows: Annotated[int, Meta(ge=1, le=65_535)]
    columns: Annotated[int, Meta(ge=1, le=65_535)]
    exec_id: Id | None = None


class ContainerLog(Operation, frozen=True, tag="container.log"):
    """Answers Done and descriptors, open for reading only: the older rotated file if there is one, then the log.

    The form is that of Kubernetes: ``RFC3339Nano stream F|P text``.
    """

    container: Id


class ContainerReadFile(Operation, frozen=True, tag="container.read_file"):
    """Answers Done and a descriptor for a regular file inside the root file system, resolved beneath it."""

    container: Id
    path: PathText


class ContainerArchive(Operation, frozen=True, tag="container.archive"):
    """Streams a tar of *path* into the descriptor (its second is for the child's error text). Answers Done at the end.

    The work is done by a confined child inside the pod's user namespace.
    """

    container: Id
    path: PathText
    #: True for the whole root file system (``export``).
    whole: bool = False


class ContainerExtract(Operation, frozen=True, tag="container.extract"):
    """Unpacks the tar read from the descriptor below *path*; answers Done. Confined as ContainerArchive."""

    container: Id
    path: PathText
    no_overwrite_dir_with_file: bool = True
    max_bytes: Bytes = 64 << 30


class ContainerDiff(Operation, frozen=True, tag="container.diff"):
    """Writes lines ``A|C|D path`` (NUL-terminated) into the descriptor; answers Done."""

    container: Id


# --- exec -------------------------------------------------------------------------------------------------------


class ExecStart(Operation, frozen=True, tag="exec.start"):
    """Runs *process* in a running container under its own conmon. Answers :class:`Started`.

    With *attach*, a connected descriptor comes back as in ContainerAttach. Its end is an :class:`ExecEnded` event.
    """

    container: Id
    exec_id: Id
    process: Process
    privileged: bool = False
    attach: bool = True


class ExecKill(Operation, frozen=True, tag="exec.kill"):
    container: Id
    exec_id: Id
    signal: Signal


AnyOperation = (
    Hello
    | Observe
    | Doctor
    | Prune
    | LayerAdopt
    | LayerList
    | LayerRemove
    | VolumeCreate
    | VolumeRemove
    | VolumeList
    | PodCreate
    | PodRemove
    | PodUpdate
    | ContainerCreate
    | ContainerRun
    | ContainerStart
    | ContainerKill
    | ContainerPause
    | ContainerUnpause
    | ContainerRemove
    | ContainerUpdate
    | ContainerStats
    | ContainerTop
    | ContainerAttach
    | ContainerResize
    | ContainerLog
    | ContainerReadFile
    | ContainerArchive
    | ContainerExtract
    | ContainerDiff
    | ExecStart
    | ExecKill
    | FirewallOperation
    | KernelAdopt
    | KernelList
    | KernelUse
    | KernelRemove
    | VisibilityOperation
)


# --- answers ----------------------------------------------------------------------------------------------------


class Done(Answer, frozen=True, tag="done"):
    pass


class Failed(Answer, frozen=True, tag="failed"):
    """The problem document of the error (:meth:`casemate.spec.errors.CasemateError.to_problem`)."""

    problem: dict[str, Any]


class Warnings(Answer, frozen=True, tag="warnings"):
    warnings: tuple[str, ...] = ()


class Welcome(Answer, frozen=True, tag="welcome"):
    version: int
    boot_id: str
    levels: dict[str, str]  #: level -> the runtime that serves it, or why it cannot
    host: dict[str, str]  #: facts: kernel, cgroup flavour, idmapped mounts, ...
    calls: dict[str, tuple[str, ...]] = field(default_factory=dict)  #: casemate.hostd.calls.offered


class PodReady(Answer, frozen=True, tag="pod"):
    first_id: int
    address: str
    interface: str
    warnings: tuple[str, ...] = ()


class Created(Answer, frozen=True, tag="created"):
    pid: int
    conmon_pid: int
    first_id: int
    warnings: tuple[str, ...] = ()


class Started(Answer, frozen=True, tag="started"):
    pid: int


class ObservedContainer(Value, frozen=True):
    id: str
    state: ContainerState
    pid: int = 0
    exit_code: int | None = None
    oom_killed: bool = False
    started_at: float = 0.0  #: seconds since the epoch
    finished_at: float = 0.0
    reason: str = ""


class ObservedPod(Value, frozen=True):
    id: str
    address: str
    first_id: int
    containers: tuple[ObservedContainer, ...]


class Observed(Answer, frozen=True, tag="observed"):
    pods: tuple[ObservedPod, ...]
    #: Pass as ``after_pod`` for the next page; empty at the end.
    next_after: str = ""


class Layers(Answer, frozen=True, tag="layers"):
    layers: tuple[tuple[str, int], ...]  #: (hex, bytes)
    next_after: str = ""


class Volumes(Answer, frozen=True, tag="volumes"):
    volumes: tuple[tuple[str, int], ...]  #: (name, bytes used or -1 when not counted)


class Finding(Value, frozen=True):
    """One line of the doctor: *severity* ok, note, warning, error; *left_over* when ``prune`` can remove it."""

    check: str
    severity: Literal["ok", "note", "warning", "error"]
    detail: str
    remedy: str = ""
    left_over: bool = False


class Findings(Answer, frozen=True, tag="findings"):
    findings: tuple[Finding, ...]


class ContainerUsage(Value, frozen=True):
    id: str
    cpu_ns: int
    memory_bytes: int
    memory_limit_bytes: int
    pids: int
    pids_limit: int
    read_bytes: int
    write_bytes: int
    rx_bytes: int
    tx_bytes: int


class Stats(Answer, frozen=True, tag="stats"):
    at_ns: int
    containers: tuple[ContainerUsage, ...]


class ProcessRow(Value, frozen=True):
    pid: int  #: as the host sees it
    ppid: int
    uid: int  #: inside the pod
    cpu_ns: int
    started_at: float
    tty: str
    command: str


class Processes(Answer, frozen=True, tag="processes"):
    processes: tuple[ProcessRow, ...]


AnyAnswer = (
    Done
    | Failed
    | Warnings
    | Welcome
    | PodReady
    | Created
    | Started
    | Observed
    | Layers
    | Volumes
    | Findings
    | Stats
    | Processes
    | FirewallAnswers
    | Kernels
)


# --- events -----------------------------------------------------------------------------------------------------


class ContainerExited(Event, frozen=True, tag="exited"):
    container: str
    exit_code: int
    oom_killed: bool
    finished_at: float


class ContainerOom(Event, frozen=True, tag="oom"):
    """The kernel killed a process of the container for want of memory; the container may live on."""

    container: str


class ExecEnded(Event, frozen=True, tag="exec_ended"):
    container: str
    exec_id: str
    exit_code: int


AnyEvent = ContainerExited | ContainerOom | ExecEnded | FirewallEvent


# --- frames -----------------------------------------------------------------------------------------------------


class Request(Value, frozen=True):
    number: Annotated[int, Meta(ge=1, le=1 << 62)]
    operation: AnyOperation


class Reply(Value, frozen=True):
    number: int
    answer: AnyAnswer


class Notice(Value, frozen=True):
    event: AnyEvent
