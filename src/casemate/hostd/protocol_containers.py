"""The operations on containers and what is executed in them, their answers and their events.

A part of :mod:`casemate.hostd.protocol`, which says what ``caller`` is.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from casemate.hostd.protocol_base import Answer, Event, Operation
from casemate.spec.workload import Bytes, ContainerSpec, Id, PathText, PodSpec, Process, Resources, Value

Signal = Annotated[int, Meta(ge=1, le=64)]


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


ContainerOperation = (
    ContainerCreate
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
)


# --- answers ----------------------------------------------------------------------------------------------------


class Created(Answer, frozen=True, tag="created"):
    pid: int
    conmon_pid: int
    first_id: int
    warnings: tuple[str, ...] = ()


class Started(Answer, frozen=True, tag="started"):
    pid: int


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


ContainerAnswer = Created | Started | Stats | Processes


# --- events -----------------------------------------------------------------------------------------------------


class ContainerExited(Event, frozen=True, tag="exited"):
    container: str
    exit_code: int
    oom_killed: bool
    finished_at: float
    #: Why, where it was no end of its own: conmon's was lost, or its micro-VM's end (with an error's code).
    reason: str = ""


class ContainerOom(Event, frozen=True, tag="oom"):
    """The kernel killed a process of the container for want of memory; the container may live on."""

    container: str


class ExecEnded(Event, frozen=True, tag="exec_ended"):
    container: str
    exec_id: str
    exit_code: int


ContainerEvent = ContainerExited | ContainerOom | ExecEnded
