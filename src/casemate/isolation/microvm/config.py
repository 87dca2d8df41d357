"""An OCI runtime configuration as the fields of the agent's CREATE and EXEC. Pure.

The configuration comes from a process of root's (an engine, or hostd's own bundle). What a micro-VM cannot do is
refused by name (:class:`BundleUnsupported`), never silently left out. Source: OCI runtime-spec 1.0.2.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from casemate.isolation.microvm import devicerules, execution, frames, mountflags, seccomp_oci
from casemate.isolation.microvm.errors import BundleUnsupported
from casemate.isolation.microvm.frames import Field, Tag
from casemate.isolation.microvm.oci import Config, Device, Mount, Process
from casemate.spec import capabilities

NO_NEW_PRIVS, TERMINAL, STDIN, READ_ONLY_ROOT, ALL_PROCESSES = 1, 2, 4, 8, 16
#: Those of ipc and uts are the machine's own, which a pod's containers share; the host name is set with its addresses.
_CLONE = {"pid": 0x2000_0000, "mount": 0x0002_0000, "cgroup": 0x0200_0000}
#: What an exec joins: setns(2) by the first process's pidfd.
EXEC_NAMESPACES = 0x2000_0000 | 0x0800_0000 | 0x0400_0000 | 0x0002_0000 | 0x0200_0000
_RLIMIT_NAMES = (
    *("CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE"),
    *("MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"),
)
_RLIMITS = {name: number for number, name in enumerate(_RLIMIT_NAMES)}
_UNLIMITED = (1 << 64) - 1
_MS_REC = 16384
_TYPES = frozenset(("proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"))
_DEVICES = (("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9))
_UNIFIED = re.compile(r"[a-z]{2,20}(\.[A-Za-z0-9_]{1,40}){1,3}\Z")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
#: A small file of the host (resolv.conf, hosts) is copied into the guest at the start.
MAX_FILE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Content:
    """A file that is copied: its path in the container, mode and bytes."""

    path: str
    mode: int
    data: bytes


def check_id(text: str) -> str:
    if not _ID.match(text):
        raise BundleUnsupported(
            f"container ID {text[:80]!r}: invalid character, or too long; allowed are letters, digits, '_', '.', '-', "
            "at most 64, with a letter or a digit first"
        )
    return text


def create_fields(
    config: Config,
    container: str,
    channel: int,
    *,
    contents: Sequence[Content],
    seccomp: bytes,
    shared: Mapping[int, str] | None = None,
    join_pids: str = "",
    stdin: bool = True,
) -> list[Field]:
    """The fields of CREATE. *contents* stand for bind mounts of files, which the caller has read; *shared* names the
    share that stands for the bind mount of this index; *join_pids* the container of the machine whose processes it
    shares; without *stdin* it has ``/dev/null`` there."""
    found = process_fields(config.process, channel, read_only=config.root.readonly, stdin=stdin)
    found += execution.personality(config.linux.personality)
    found.append(frames.text(Tag.CONTAINER, check_id(container)))
    copied = {one.path for one in contents}
    for index, mount in enumerate(config.mounts):
        if shared is not None and index in shared:
            found.append(share_field(mount, shared[index]))
        elif mount.destination not in copied:
            found.append(mount_field(mount))
    for one in contents:
        name = one.path.encode()
        found.append(Field(Tag.FILE, struct.pack("<II", one.mode, len(name)) + name + one.data))
    linux = config.linux
    flags = 0
    for namespace in linux.namespaces:
        flags |= _CLONE.get(namespace.type, 0)
    if join_pids:
        flags &= ~_CLONE["pid"]
        found.append(frames.text(Tag.JOIN_PIDS, join_pids))
    if propagation := _root_propagation(linux.rootfs_propagation):
        found.append(frames.u32(Tag.PROPAGATION, propagation))
    found.append(frames.u32(Tag.NAMESPACES, flags | _CLONE["mount"]))
    found += frames.texts(Tag.MASKED, linux.masked)
    found += frames.texts(Tag.READ_ONLY, linux.read_only)
    found += [frames.text(Tag.SYSCTL, f"{name}={value}") for name, value in _sysctls(config).items()]
    found += [_device(f"/dev/{name}", 0o20666, (1, minor)) for name, minor in _DEVICES]
    found.append(_device("/dev/tty", 0o20666, (5, 0)))
    found += [_wanted_device(device) for device in linux.devices]
    found += limit_fields(config)
    found += devicerules.fields(linux.resources.devices)
    if seccomp:
        found += seccomp_fields(linux.seccomp, seccomp)
    return found


def _sysctls(config: Config) -> dict[str, str]:
    """Kernel settings, and the domain name. :class:`BundleUnsupported` when that is said twice, and not alike."""
    named = {"kernel.domainname": config.domainname} if config.domainname else {}
    given = {name.replace("/", "."): value for name, value in config.linux.sysctl.items()}
    if named and given.get("kernel.domainname", config.domainname) != config.domainname:
        raise BundleUnsupported("the sysctl kernel.domainname and the bundle's `domainname` do not agree")
    return dict(config.linux.sysctl) | named


def seccomp_fields(profile: Mapping[str, Any] | None, program: bytes) -> list[Field]:
    """The filter as the agent sets it, with the profile's flags."""
    flags = seccomp_oci.flags(profile or {})
    found = [Field(Tag.SECCOMP, program)]
    return [*found, frames.u32(Tag.SECCOMP_FLAGS, flags)] if flags else found


def _root_propagation(word: str) -> int:
    """As flags of mount(2); 0 for what every root is. :class:`BundleUnsupported`."""
    if word and word not in mountflags.PROPAGATION:
        raise BundleUnsupported(
            f"rootfsPropagation {word[:40]!r}; allowed are {', '.join(sorted(mountflags.PROPAGATION))}"
        )
    flags = mountflags.PROPAGATION.get(word, 0)
    return flags & 0xFFFF_FFFF | (_MS_REC if word.startswith("r") and flags else 0)


def process_fields(process: Process, channel: int, *, read_only: bool = False, stdin: bool = True) -> list[Field]:
    """What CREATE and EXEC have in common."""
    if not process.args:
        raise BundleUnsupported("process.args is empty")
    found = [frames.u32(Tag.CHANNEL, channel), *frames.texts(Tag.ARG, process.args)]
    found += frames.texts(Tag.ENV, process.env)
    found.append(frames.text(Tag.CWD, process.cwd))
    user = process.user
    found += [frames.u32(Tag.UID, user.uid), frames.u32(Tag.GID, user.gid)]
    found += [frames.u32(Tag.GROUP, group) for group in user.groups]
    found.append(frames.u32(Tag.UMASK, 0o022 if user.umask is None else user.umask))
    flags = NO_NEW_PRIVS if process.no_new_privileges else 0
    flags |= (TERMINAL if process.terminal else 0) | (STDIN if stdin else 0) | (READ_ONLY_ROOT if read_only else 0)
    found.append(frames.u32(Tag.FLAGS, flags))
    found.append(capability_field(process.capabilities))
    for limit in process.rlimits:
        number = _RLIMITS.get(limit.type.removeprefix("RLIMIT_"))
        if number is None:
            raise BundleUnsupported(f"rlimit {limit.type[:40]!r} is not one of setrlimit(2)")
        found.append(
            Field(Tag.RLIMIT, struct.pack("<IQQ", number, *(min(v, _UNLIMITED) for v in (limit.soft, limit.hard))))
        )
    if process.oom_score_adj is not None:
        found.append(frames.u32(Tag.OOM_ADJ, process.oom_score_adj))
    found += execution.fields(process)
    if process.console_size is not None:
        found.append(Field(Tag.WINDOW, struct.pack("<HH", process.console_size.height, process.console_size.width)))
    return found


def capability_field(sets: Mapping[str, Sequence[str]] | None) -> Field:
    """Bounding, effective, inheritable, permitted, ambient as bit masks; no sets at all means none."""
    masks = []
    for name in ("bounding", "effective", "inheritable", "permitted", "ambient"):
        mask = 0
        for capability in (sets or {}).get(name, ()):
            # One that is newer than our table is one that the guest's kernel has not either.
            if capability in capabilities.ALL:
                mask |= 1 << capabilities.ALL.index(capability)
        masks.append(mask)
    return Field(Tag.CAPABILITIES, struct.pack("<5Q", *masks))


def mount_field(mount: Mount) -> Field:
    """One mount that the guest makes by itself; binds are the caller's to replace. :class:`BundleUnsupported`."""
    kind = {"cgroup": "cgroup2"}.get(mount.type, mount.type)
    if mount.type not in _TYPES:
        raise BundleUnsupported(
            f"mount of type {mount.type[:40]!r} at {mount.destination[:200]}", target=mount.destination
        )
    flags, data = mountflags.parse(mount.options)
    if kind in ("sysfs", "cgroup2", "mqueue"):
        data = ""
    parts = (mount.destination, kind, mount.source or kind, data)
    if any("\0" in part for part in parts):
        raise BundleUnsupported(f"mount at {mount.destination[:200]!r} holds a null byte")
    return Field(Tag.MOUNT, struct.pack("<Q", flags) + b"\0".join(part.encode() for part in parts))


def share_field(mount: Mount, name: str) -> Field:
    """A bind mount of the share *name*. What the host refuses (read-only, set-uid, programs) the guest shows too."""
    flags, _ = mountflags.parse(mount.options)
    flags |= mountflags.BIND
    parts = (mount.destination, "bind", name, "")
    if any("\0" in part for part in parts):
        raise BundleUnsupported(f"mount at {mount.destination[:200]!r} holds a null byte")
    # The name ends as the host's folder does, which need not be text.
    return Field(Tag.MOUNT, struct.pack("<Q", flags) + b"\0".join(os.fsencode(part) for part in parts))


def _device(path: str, mode: int, number: tuple[int, int], owner: tuple[int, int] = (0, 0)) -> Field:
    return Field(Tag.DEVICE, struct.pack("<5I", mode, *number, *owner) + path.encode())


def _wanted_device(device: Device) -> Field:
    kinds = {"c": 0o020000, "u": 0o020000, "b": 0o060000, "p": 0o010000}
    if device.type not in kinds or "\0" in device.path:
        raise BundleUnsupported(f"device {device.path[:200]!r} of type {device.type[:10]!r}")
    mode = kinds[device.type] | (0o666 if device.mode is None else device.mode) & 0o7777
    return _device(device.path.rstrip("/"), mode, (device.major, device.minor), (device.uid or 0, device.gid or 0))


def cpu_weight(shares: int) -> int:
    """cgroup v2's weight (1..10000) for v1's shares (2..262144): the formula of runc and crun."""
    return 1 + (min(max(shares, 2), 262_144) - 2) * 9999 // 262_142


def unified(wanted: Mapping[str, str]) -> list[tuple[str, str]]:
    """Files of cgroup v2, which the guest's kernel has, whatever the host has. :class:`BundleUnsupported` for what is
    no controller's."""
    for name, value in wanted.items():
        if not _UNIFIED.match(name) or name.startswith("cgroup.") or "\0" in value:
            raise BundleUnsupported(f"unified: {name[:80]!r} is no controller's file of cgroup v2")
    return list(wanted.items())


def limit_fields(config: Config) -> list[Field]:
    """The limits of cgroup v2 inside the guest, one (file, value) each."""
    found: list[tuple[str, str]] = []
    resources = config.linux.resources
    if resources.pids is not None and resources.pids.limit > 0:
        found.append(("pids.max", str(resources.pids.limit)))
    if resources.memory is not None and resources.memory.limit is not None and resources.memory.limit > 0:
        found.append(("memory.max", str(resources.memory.limit)))
    if resources.memory is not None and resources.memory.reservation is not None and resources.memory.reservation > 0:
        found.append(("memory.low", str(resources.memory.reservation)))
    cpu = resources.cpu
    if cpu is not None and cpu.shares:
        found.append(("cpu.weight", str(cpu_weight(cpu.shares))))
    if cpu is not None and cpu.quota is not None and cpu.quota > 0:
        found.append(("cpu.max", f"{cpu.quota} {cpu.period or 100_000}"))
    return file_fields([*found, *unified(resources.unified)])


def file_fields(files: Sequence[tuple[str, str]]) -> list[Field]:
    """Files of cgroup v2 and their values as limits of the guest's."""
    return [Field(Tag.LIMIT, f"{name}\0{value}".encode()) for name, value in files]
