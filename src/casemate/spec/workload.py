"""What a pod and a container are, as values: the words that API, store, hostd and the isolation levels share.

They are ``msgspec`` structs and not dataclasses because the same value crosses three edges (API, store, hostd's
socket) and unknown fields must be refused at each; see docs/decisions/0003. Types bound what a single field may
hold; what needs two fields or the host's state is checked by hostd (:mod:`casemate.hostd.checks`).

Sizes are bytes, times seconds, cpu is in thousandths of one cpu. Addresses are text as ``ipaddress`` prints it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Level = Literal["namespace", "gvisor", "microvm"]
LEVELS: tuple[Level, ...] = ("namespace", "gvisor", "microvm")

#: What a micro-VM begins as: a clone of the template that all share, of its project's own, or a cold boot.
Template = Literal["shared", "project", "none"]
#: From the least apart to the most.
TEMPLATES: tuple[Template, ...] = ("shared", "project", "none")

#: Bounds of single fields. ARG_MAX of Linux is 2 MiB for argv and envp together, 128 KiB for one string.
Id = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Hex = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z", description="sha256 of a squashfs file, without prefix")]
Name = Annotated[str, Meta(pattern=r"\A[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}\Z")]
Project = Annotated[str, Meta(pattern=r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")]
Text = Annotated[str, Meta(max_length=131_072)]
PathText = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"\A/[^\x00]*\Z")]
Uid = Annotated[int, Meta(ge=0, le=65_535, description="inside the pod's range of 65,536 ids")]
Bytes = Annotated[int, Meta(ge=0, le=1 << 60)]
Millis = Annotated[int, Meta(ge=0, le=100_000_000)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Capability = Annotated[str, Meta(pattern=r"\ACAP_[A-Z_]{2,40}\Z")]


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of every value that crosses a process boundary."""


class User(Value, frozen=True):
    """Who a process runs as, as numbers inside the pod's user namespace (names are resolved by casemated)."""

    uid: Uid = 0
    gid: Uid = 0
    groups: Annotated[tuple[Uid, ...], Meta(max_length=64)] = ()
    umask: Annotated[int, Meta(ge=0, le=0o777)] = 0o022


class Rlimit(Value, frozen=True):
    """A POSIX resource limit; *name* without ``RLIMIT_``, lower case. -1 is unlimited."""

    name: Annotated[str, Meta(pattern=r"\A[a-z]{2,12}\Z")]
    soft: Annotated[int, Meta(ge=-1, le=1 << 62)]
    hard: Annotated[int, Meta(ge=-1, le=1 << 62)]


class Process(Value, frozen=True):
    """What is executed: the first process of a container, or an exec."""

    args: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=8192)]
    env: Annotated[tuple[Text, ...], Meta(max_length=8192)] = ()
    cwd: PathText = "/"
    user: User = User()
    terminal: bool = False
    #: Keep a pipe (or the terminal) open for standard input; otherwise it is /dev/null.
    stdin: bool = False
    rlimits: Annotated[tuple[Rlimit, ...], Meta(max_length=32)] = ()


class Resources(Value, frozen=True):
    """Limits; None leaves the kernel's own. For a pod as a whole, or for one container."""

    memory_bytes: Bytes | None = None
    memory_reservation_bytes: Bytes | None = None
    #: Memory and swap together, as the field counts it; -1 is unlimited.
    memory_swap_bytes: Annotated[int, Meta(ge=-1, le=1 << 60)] | None = None
    cpu_millis: Millis | None = None
    cpu_shares: Annotated[int, Meta(ge=2, le=262_144)] | None = None
    cpuset: Annotated[str, Meta(pattern=r"\A[0-9,-]{1,256}\Z")] | None = None
    pids: Annotated[int, Meta(ge=-1, le=4_194_304)] | None = None
    io_weight: Annotated[int, Meta(ge=10, le=1000)] | None = None
    oom_score_adj: Annotated[int, Meta(ge=-1000, le=1000)] | None = None


class VolumeMount(Value, frozen=True, tag="volume"):
    """A named volume; *copy_up* fills an empty one from the image's content at *target*."""

    volume: Name
    target: PathText
    read_only: bool = False
    copy_up: bool = True


class BindMount(Value, frozen=True, tag="bind"):
    """A host path; needs the grant ``host_paths``, and is opened with the caller's rights."""

    source: PathText
    target: PathText
    read_only: bool = False
    recursive: bool = True
    propagation: Literal["private", "rslave", "rshared"] = "private"
    #: Make the source folder when it is missing (what ``-v`` does and ``--mount`` does not).
    create: bool = False


class TmpfsMount(Value, frozen=True, tag="tmpfs"):
    target: PathText
    size_bytes: Bytes | None = None
    mode: Annotated[int, Meta(ge=0, le=0o7777)] = 0o1777
    read_only: bool = False
    exec: bool = False


Mount = VolumeMount | BindMount | TmpfsMount


class Device(Value, frozen=True):
    """A host device passed in; needs the grant ``devices``."""

    source: PathText
    target: PathText
    access: Annotated[str, Meta(pattern=r"\A[rwm]{1,3}\Z")] = "rwm"


class Sysctl(Value, frozen=True):
    """A namespaced kernel setting (net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*)."""

    name: Annotated[str, Meta(pattern=r"\A[a-z0-9_.-]{3,128}\Z")]
    value: Annotated[str, Meta(max_length=256)]


class Security(Value, frozen=True):
    """What a container may do beyond, or short of, the default."""

    capabilities: Annotated[tuple[Capability, ...], Meta(max_length=64)] = ()
    #: Those among *capabilities* that the default set does not hold: each needs the grant ``capabilities``.
    no_new_privileges: bool = True
    seccomp: Literal["default", "unconfined"] = "default"
    #: No masking, every capability of the pod's own user namespace; needs the grant ``privileged``.
    privileged: bool = False


class Log(Value, frozen=True):
    max_bytes: Bytes = 10 << 20
    #: False keeps nothing (``--log-driver none``).
    keep: bool = True


class ContainerSpec(Value, frozen=True):
    """One container of a pod, with everything resolved: digests, numbers, paths."""

    id: Id
    pod: Id
    name: Name
    layers: Annotated[tuple[Hex, ...], Meta(max_length=500)]
    process: Process
    project: Project = "default"
    mounts: Annotated[tuple[Mount, ...], Meta(max_length=256)] = ()
    devices: Annotated[tuple[Device, ...], Meta(max_length=64)] = ()
    resources: Resources = Resources()
    security: Security = Security()
    sysctls: Annotated[tuple[Sysctl, ...], Meta(max_length=64)] = ()
    read_only: bool = False
    writable_bytes: Bytes = 0
    #: Removed at its end (``--rm``): what it writes need not outlive anything.
    volatile: bool = False
    #: Run the command below ``catatonit``, which reaps and forwards signals.
    init: bool = False
    shm_bytes: Bytes = 64 << 20
    log: Log = Log()


class PublishedPort(Value, frozen=True):
    """A port of the host that leads to a port of the pod."""

    container_port: Port
    host_port: Port
    host_address: Annotated[str, Meta(max_length=15)] = "0.0.0.0"  # noqa: S104 - the default of Docker and Podman
    protocol: Literal["tcp", "udp"] = "tcp"


class KeptPort(Value, frozen=True):
    """A TCP port of the pod whose open connections outlive a restart, through a relay (decision 0115)."""

    port: Port
    #: Bytes that were not answered may be sent to the new process again: doing twice what they ask does no harm.
    replay: bool = False


class HostEntry(Value, frozen=True):
    """A line for /etc/hosts."""

    address: Annotated[str, Meta(max_length=45)]
    name: Annotated[str, Meta(max_length=253)]


class NetworkSpec(Value, frozen=True):
    """The one network identity of a pod."""

    #: ``pod``: an interface of its own; ``none``: loopback only; ``host``: the host's (grant ``host_namespaces``).
    mode: Literal["pod", "none", "host"] = "pod"
    address: Annotated[str, Meta(max_length=15)] = ""
    ports: Annotated[tuple[PublishedPort, ...], Meta(max_length=1024)] = ()
    kept: Annotated[tuple[KeptPort, ...], Meta(max_length=16)] = ()
    dns: Annotated[tuple[str, ...], Meta(max_length=8)] = ()
    dns_search: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    dns_options: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    hosts: Annotated[tuple[HostEntry, ...], Meta(max_length=256)] = ()


class PodSpec(Value, frozen=True):
    """A sandbox: one isolation boundary, one network identity, one range of user ids."""

    id: Id
    name: Name
    hostname: Annotated[str, Meta(min_length=1, max_length=64)]
    project: Project = "default"
    level: Level = "namespace"
    network: NetworkSpec = NetworkSpec()
    resources: Resources = Resources()
    host_pid: bool = False
    host_ipc: bool = False
    #: Of level microvm: how far apart at least, beside what the setting microvm.template says.
    template: Template | None = None


def furthest(*kinds: Template | None) -> Template:
    """The one of *kinds* that keeps machines the furthest apart; ``shared`` where none is named."""
    named: list[Template] = [one for one in kinds if one is not None]
    return max(named, key=TEMPLATES.index) if named else "shared"
