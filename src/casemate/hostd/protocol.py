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
from casemate.hostd.protocol_containers import ContainerAnswer, ContainerEvent, ContainerOperation
from casemate.hostd.protocol_containers import ContainerArchive as ContainerArchive
from casemate.hostd.protocol_containers import ContainerAttach as ContainerAttach
from casemate.hostd.protocol_containers import ContainerCreate as ContainerCreate
from casemate.hostd.protocol_containers import ContainerDiff as ContainerDiff
from casemate.hostd.protocol_containers import ContainerExited as ContainerExited
from casemate.hostd.protocol_containers import ContainerExtract as ContainerExtract
from casemate.hostd.protocol_containers import ContainerKill as ContainerKill
from casemate.hostd.protocol_containers import ContainerLog as ContainerLog
from casemate.hostd.protocol_containers import ContainerOom as ContainerOom
from casemate.hostd.protocol_containers import ContainerPause as ContainerPause
from casemate.hostd.protocol_containers import ContainerReadFile as ContainerReadFile
from casemate.hostd.protocol_containers import ContainerRemove as ContainerRemove
from casemate.hostd.protocol_containers import ContainerResize as ContainerResize
from casemate.hostd.protocol_containers import ContainerRun as ContainerRun
from casemate.hostd.protocol_containers import ContainerStart as ContainerStart
from casemate.hostd.protocol_containers import ContainerStats as ContainerStats
from casemate.hostd.protocol_containers import ContainerTop as ContainerTop
from casemate.hostd.protocol_containers import ContainerUnpause as ContainerUnpause
from casemate.hostd.protocol_containers import ContainerUpdate as ContainerUpdate
from casemate.hostd.protocol_containers import ContainerUsage as ContainerUsage
from casemate.hostd.protocol_containers import Created as Created
from casemate.hostd.protocol_containers import ExecEnded as ExecEnded
from casemate.hostd.protocol_containers import ExecKill as ExecKill
from casemate.hostd.protocol_containers import ExecStart as ExecStart
from casemate.hostd.protocol_containers import Processes as Processes
from casemate.hostd.protocol_containers import ProcessRow as ProcessRow
from casemate.hostd.protocol_containers import Signal as Signal
from casemate.hostd.protocol_containers import Started as Started
from casemate.hostd.protocol_containers import Stats as Stats
from casemate.hostd.protocol_firewall import FirewallAnswers, FirewallEvent, FirewallOperation
from casemate.hostd.protocol_keeping import KeepingAnswer, KeepingOperation
from casemate.hostd.protocol_kernels import KernelAdopt as KernelAdopt
from casemate.hostd.protocol_kernels import KernelList as KernelList
from casemate.hostd.protocol_kernels import KernelOperation
from casemate.hostd.protocol_kernels import KernelRemove as KernelRemove
from casemate.hostd.protocol_kernels import Kernels as Kernels
from casemate.hostd.protocol_kernels import KernelUse as KernelUse
from casemate.hostd.protocol_visibility import VisibilityOperation
from casemate.spec.workload import (
    Hex,
    Id,
    Name,
    PodSpec,
    Project,
    Resources,
    Value,
)

MAX_MESSAGE_BYTES = 192 << 10  # below net.core.wmem_default (212,992) with room for the kernel's overhead
MAX_DESCRIPTORS = 8
PROTOCOL_VERSION = 1

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
    """Answers :class:`Findings`: checks of the host, and what a crash left.

    *pods* are all pods that casemated knows, so that others are named; None: they are not.
    """

    pods: Annotated[tuple[Id, ...], Meta(max_length=2000)] | None = None


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
    | ContainerOperation
    | FirewallOperation
    | KernelOperation
    | VisibilityOperation
    | KeepingOperation
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


AnyAnswer = (
    Done
    | Failed
    | Warnings
    | Welcome
    | PodReady
    | Observed
    | Layers
    | Volumes
    | Findings
    | ContainerAnswer
    | FirewallAnswers
    | KeepingAnswer
    | Kernels
)


# --- events -----------------------------------------------------------------------------------------------------


AnyEvent = ContainerEvent | FirewallEvent


# --- frames -----------------------------------------------------------------------------------------------------


class Request(Value, frozen=True):
    """*number* comes back with the answer; 0 is for what casemated only tells (TOLD), and no answer comes."""

    number: Annotated[int, Meta(ge=0, le=1 << 62)]
    operation: AnyOperation


class Reply(Value, frozen=True):
    number: int
    answer: AnyAnswer


class Notice(Value, frozen=True):
    event: AnyEvent
