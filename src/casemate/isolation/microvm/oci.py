"""The part of an OCI runtime configuration that a micro-VM uses, as values; sizes bounded by the edge that reads it.

Unknown members are passed over, as the specification demands of a runtime (config.md, "Extensibility").
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from casemate.isolation.microvm.errors import BundleUnsupported

T = TypeVar("T")
#: An engine's configuration is below 100 KiB; its arguments and environment may be large.
MAX_CONFIG_BYTES = 4 << 20
U32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
#: Up to 2**64 - 1, which msgspec cannot bound; the conversion to fields does.
U64 = Annotated[int, Meta(ge=0)]


class User(Struct, frozen=True):
    uid: U32 = 0
    gid: U32 = 0
    umask: Annotated[int, Meta(ge=0, le=0o7777)] | None = None
    groups: tuple[U32, ...] = field(default=(), name="additionalGids")


class Rlimit(Struct, frozen=True):
    type: str
    soft: U64
    hard: U64


class Size(Struct, frozen=True):
    height: Annotated[int, Meta(ge=0, le=65_535)] = 0
    width: Annotated[int, Meta(ge=0, le=65_535)] = 0


class Scheduler(Struct, frozen=True):
    """config.md, "Scheduler"; times in nanoseconds."""

    policy: str
    nice: Annotated[int, Meta(ge=-20, le=19)] = 0
    priority: U32 = 0
    flags: tuple[str, ...] = ()
    runtime: U64 | None = None
    deadline: U64 | None = None
    period: U64 | None = None


class IoPriority(Struct, frozen=True):
    kind: str = field(name="class")
    priority: Annotated[int, Meta(ge=0, le=7)] = 0


class Process(Struct, frozen=True):
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str = "/"
    terminal: bool = False
    user: User = User()
    capabilities: dict[str, tuple[str, ...]] | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = field(default=False, name="noNewPrivileges")
    oom_score_adj: Annotated[int, Meta(ge=-1000, le=1000)] | None = field(default=None, name="oomScoreAdj")
    console_size: Size | None = field(default=None, name="consoleSize")
    scheduler: Scheduler | None = None
    io_priority: IoPriority | None = field(default=None, name="ioPriority")


class Root(Struct, frozen=True):
    path: str = "rootfs"
    readonly: bool = False


class Mount(Struct, frozen=True):
    destination: str
    type: str = "bind"
    source: str = ""
    options: tuple[str, ...] = ()


class Namespace(Struct, frozen=True):
    type: str
    path: str = ""


class Device(Struct, frozen=True):
    path: str
    type: str
    major: U32 = 0
    minor: U32 = 0
    mode: U32 | None = field(default=None, name="fileMode")
    uid: U32 | None = None
    gid: U32 | None = None


class Pids(Struct, frozen=True):
    limit: int = 0


class MemoryLimit(Struct, frozen=True):
    limit: int | None = None
    reservation: int | None = None
    swappiness: Annotated[int, Meta(ge=0, le=100)] | None = None
    disable_oom_killer: bool = field(default=False, name="disableOOMKiller")


#: A list of numbers, as the kernel has it of cpus and of memory nodes.
Numbers = Annotated[str, Meta(max_length=4096, pattern=r"^[0-9,\- \n]*$")]


class Cpu(Struct, frozen=True):
    quota: int | None = None
    period: int | None = None
    shares: int | None = None
    cpus: Numbers = ""
    mems: Numbers = ""


class ThrottleDevice(Struct, frozen=True):
    major: U32
    minor: U32
    rate: U64


class BlockIo(Struct, frozen=True):
    weight: Annotated[int, Meta(ge=0, le=1000)] | None = None
    read_bps: tuple[ThrottleDevice, ...] = field(default=(), name="throttleReadBpsDevice")
    write_bps: tuple[ThrottleDevice, ...] = field(default=(), name="throttleWriteBpsDevice")
    read_iops: tuple[ThrottleDevice, ...] = field(default=(), name="throttleReadIOPSDevice")
    write_iops: tuple[ThrottleDevice, ...] = field(default=(), name="throttleWriteIOPSDevice")


class DeviceRule(Struct, frozen=True):
    """config-linux.md, "Device whitelist"; what is not there, and a number below 0, means every one."""

    allow: bool
    type: str = "a"
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"


class NetworkClass(Struct, frozen=True):
    class_id: U32 | None = field(default=None, name="classID")
    priorities: tuple[dict[str, Any], ...] = ()


class Resources(Struct, frozen=True):
    network: NetworkClass | None = None
    devices: tuple[DeviceRule, ...] = ()
    pids: Pids | None = None
    memory: MemoryLimit | None = None
    cpu: Cpu | None = None
    block_io: BlockIo | None = field(default=None, name="blockIO")
    #: Files of cgroup v2 and their values.
    unified: dict[str, Annotated[str, Meta(max_length=4096)]] = {}


class Personality(Struct, frozen=True):
    domain: str = "LINUX"
    flags: tuple[str, ...] = ()


class IdMapping(Struct, frozen=True):
    container: U32 = field(name="containerID")
    host: U32 = field(name="hostID")
    size: U32


class Linux(Struct, frozen=True):
    namespaces: tuple[Namespace, ...] = ()
    masked: tuple[str, ...] = field(default=(), name="maskedPaths")
    read_only: tuple[str, ...] = field(default=(), name="readonlyPaths")
    sysctl: dict[str, str] = {}
    devices: tuple[Device, ...] = ()
    resources: Resources = Resources()
    seccomp: dict[str, Any] | None = None
    uid_mappings: tuple[IdMapping, ...] = field(default=(), name="uidMappings")
    gid_mappings: tuple[IdMapping, ...] = field(default=(), name="gidMappings")
    cgroups_path: str = field(default="", name="cgroupsPath")
    rootfs_propagation: str = field(default="", name="rootfsPropagation")
    personality: Personality | None = None
    #: What a virtual machine has not: named, so that it is refused.
    net_devices: dict[str, Any] = field(default={}, name="netDevices")
    memory_policy: dict[str, Any] | None = field(default=None, name="memoryPolicy")
    intel_rdt: dict[str, Any] | None = field(default=None, name="intelRdt")


class Hook(Struct, frozen=True):
    path: str
    args: tuple[str, ...] = ()
    #: None: casemate-vm's own, as the field's runtimes understand what is not there.
    env: tuple[str, ...] | None = None
    timeout: Annotated[int, Meta(ge=0, le=3600)] | None = None


class Hooks(Struct, frozen=True):
    """config.md, "POSIX-platform Hooks"; *prestart* is the older name of two of them."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = field(default=(), name="createRuntime")
    create_container: tuple[Hook, ...] = field(default=(), name="createContainer")
    start_container: tuple[Hook, ...] = field(default=(), name="startContainer")
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


class Config(Struct, frozen=True):
    process: Process
    version: str = field(default="", name="ociVersion")
    root: Root = Root()
    mounts: tuple[Mount, ...] = ()
    hostname: str = ""
    domainname: Annotated[str, Meta(max_length=64)] = ""
    annotations: dict[str, str] = {}
    hooks: Hooks | None = None
    linux: Linux = Linux()


_CONFIG, _PROCESS = msgspec.json.Decoder(Config), msgspec.json.Decoder(Process)


def read_config(data: bytes) -> Config:
    """The configuration in *data*; :class:`BundleUnsupported` says what is wrong with it."""
    return _decode(_CONFIG, data, "config.json")


def read_process(data: bytes) -> Process:
    """A process document (``exec --process``)."""
    return _decode(_PROCESS, data, "the process")


def _decode(decoder: msgspec.json.Decoder[T], data: bytes, what: str) -> T:
    if len(data) > MAX_CONFIG_BYTES:
        raise BundleUnsupported(f"{what} has {len(data)} bytes, allowed are {MAX_CONFIG_BYTES}")
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BundleUnsupported(f"{what}: {error}") from error
