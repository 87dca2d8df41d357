"""The OCI runtime configuration of one container (runtime-spec 1.0, config.md and config-linux.md): pure.

Limits on memory, cpu, pids and io do not stand here: hostd sets them on the container's cgroup between create and
start, by the same code that changes them live, which also says what this host cannot do.
"""

from __future__ import annotations

import re
from typing import Any

from casemate.isolation import seccomp
from casemate.isolation.bundle import BindSource, BundleInput, BundlePlan, DeviceNode
from casemate.isolation.process import INIT_PATH, process
from casemate.spec import capabilities
from casemate.spec.errors import HostLacks, InvalidArgument
from casemate.spec.targets import check_target

OCI_VERSION = "1.0.2"

#: Files that tell of the host's hardware, memory or timing, or that crash or slow it (each was once a finding).
MASKED_PATHS = (
    "/proc/acpi",  # switches of the firmware
    "/proc/asound",  # sound devices of the host
    "/proc/interrupts",  # keystroke timing
    "/proc/kcore",  # the kernel's memory
    "/proc/keys",  # names of keys of every user
    "/proc/latency_stats",
    "/proc/sched_debug",  # every process of the host
    "/proc/scsi",  # CVE-2017-16539: removing disks
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",  # PLATYPUS: secrets by power measurement
    "/sys/firmware",
)
#: Switches for the whole host.
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

#: Settings that belong to a namespace of the pod's own (kernel's namespaces; the list of Docker and Podman).
_SYSCTL_IPC = re.compile(r"kernel\.(shm(all|max|mni|_rmid_forced)|msg(max|mnb|mni)|sem)\Z|fs\.mqueue\.[a-z_]+\Z")
_SYSCTL_NET = re.compile(r"net\.[a-z0-9_.-]+\Z")


class SysctlRefused(InvalidArgument):
    code = "isolation.sysctl_refused"
    title = "This kernel setting belongs to the host, or to a namespace that the pod shares with it"
    remedy = "Only net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.* can be set for a container."


class InitMissing(HostLacks):
    code = "isolation.init_missing"
    title = "catatonit, which --init needs, is not installed"
    remedy = "apt-get install catatonit"


def configuration(given: BundleInput) -> BundlePlan:
    """The whole configuration. Raises :class:`InvalidArgument` and its kinds, :class:`InitMissing`."""
    container, security = given.container, given.container.security
    if container.init and not given.facts.catatonit:
        raise InitMissing("--init was asked for, and there is no catatonit")
    body, warnings = process(
        container.process,
        security,
        given.facts,
        init=container.init,
        oom_score_adj=container.resources.oom_score_adj,
    )
    names = capabilities.ALL if security.privileged else security.capabilities
    linux: dict[str, Any] = {
        "namespaces": _namespaces(given),
        "uidMappings": _mapping(given),
        "gidMappings": _mapping(given),
        "cgroupsPath": f"/{given.sandbox.cgroup}/{container.id}",
        "resources": {"devices": _device_rules(given.devices)},
        "devices": [_device(node) for node in given.devices],
        "sysctl": sysctls(given),
        "maskedPaths": [] if security.privileged else list(MASKED_PATHS),
        "readonlyPaths": [] if security.privileged else list(READONLY_PATHS),
        "rootfsPropagation": "private",
    }
    if security.seccomp == "default" and not security.privileged:
        linux["seccomp"] = seccomp.profile(frozenset(names), given.facts.machine)
    config: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": body,
        "root": {"path": given.rootfs, "readonly": container.read_only},
        "mounts": mounts(given),
        "linux": linux,
    }
    if "uts" in given.sandbox.namespaces:
        config["hostname"] = given.pod.hostname
    return BundlePlan(config, tuple(warnings))


def _namespaces(given: BundleInput) -> list[dict[str, str]]:
    found = [{"type": "mount"}, {"type": "cgroup"}]
    if not given.pod.host_pid:
        found.insert(0, {"type": "pid"})
    for kind in ("user", "network", "ipc", "uts"):
        if kind in given.sandbox.namespaces:
            found.append({"type": kind, "path": given.sandbox.namespaces[kind]})
    return found


def _mapping(given: BundleInput) -> list[dict[str, int]]:
    """Written beside the path of the user namespace too: runc wants to know it, and compares."""
    return [{"containerID": 0, "hostID": given.sandbox.first_id, "size": given.sandbox.ids}]


def sysctls(given: BundleInput) -> dict[str, str]:
    """The checked kernel settings of the user's; ours are set by ``network``. Raises :class:`SysctlRefused`."""
    own_network, own_ipc = "network" in given.sandbox.namespaces, "ipc" in given.sandbox.namespaces
    found: dict[str, str] = {}
    for one in given.container.sysctls:
        own = (own_ipc and _SYSCTL_IPC.match(one.name)) or (own_network and _SYSCTL_NET.match(one.name))
        if not own or ".." in one.name or "\n" in one.value or "\0" in one.value:
            raise SysctlRefused(f"sysctl {one.name}={one.value[:60]!r}", sysctl=one.name)
        found[one.name] = one.value
    return found


def mounts(given: BundleInput) -> list[dict[str, Any]]:
    """The mounts in their order: the kernel's file systems, then ours, the outer before the inner."""
    container, privileged = given.container, given.container.security.privileged
    own = given.sandbox.namespaces
    found = [_kernel_proc(given), _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=64k")]
    # gid 5 is the group tty in every distribution; grantpt(3) is then not needed.
    options = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
    found.append(_mount("/dev/pts", "devpts", "devpts", *options))
    if "ipc" in own:
        size = f"size={container.shm_bytes}"
        found.append(_mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", size))
        found.append(_mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"))
    else:
        found.append(_bind("/dev/shm", "/dev/shm"))
        found += [_bind("/dev/mqueue", "/dev/mqueue")] if given.facts.mqueue else []
    if "network" in own:
        found.append(_mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "rw" if privileged else "ro"))
    else:
        # sysfs can be mounted only by who owns the network namespace that it shows.
        found.append(_bind("/sys", "/sys", "rbind", "ro", "nosuid", "noexec", "nodev"))
    found.append(_mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"))
    if container.init:
        found.append(_bind(given.facts.catatonit, INIT_PATH, "bind", "ro", "nosuid", "nodev"))
    rest = [_mount(one.target, "bind", one.source, *one.options) for one in given.binds]
    for one in container.mounts:
        if one.__struct_config__.tag == "tmpfs":
            rest.append(_tmpfs(one))
    rest.sort(key=lambda one: str(one["destination"]).count("/"))
    for entry in rest:
        check_target(entry["destination"])
    return found + rest


def _kernel_proc(given: BundleInput) -> dict[str, Any]:
    if given.pod.host_pid:
        # A fresh proc of the host's pid namespace cannot be mounted from inside a user namespace.
        return _bind("/proc", "/proc", "rbind", "nosuid", "noexec", "nodev")
    return _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev")


def _tmpfs(one: Any) -> dict[str, Any]:
    options = ["nosuid", "nodev", f"mode={one.mode:o}"]
    options += [] if one.exec else ["noexec"]
    options += ["ro"] if one.read_only else []
    options += [f"size={one.size_bytes}"] if one.size_bytes is not None else []
    return _mount(one.target, "tmpfs", "tmpfs", *options)


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _bind(source: str, destination: str, *options: str) -> dict[str, Any]:
    return _mount(destination, "bind", source, *(options or ("rbind", "nosuid", "nodev")))


def bind_source(source: str, target: str, *, read_only: bool, propagation: str = "private") -> BindSource:
    """A prepared bind: recursive, since what lies below it was prepared too."""
    return BindSource(source, target, ("rbind", "ro" if read_only else "rw", f"r{propagation.lstrip('r')}"))


def _device_rules(devices: tuple[DeviceNode, ...]) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for node in devices:
        rules.append(
            {"allow": True, "type": node.kind, "major": node.major, "minor": node.minor, "access": node.access}
        )
    return rules


def _device(node: DeviceNode) -> dict[str, Any]:
    return {
        "path": node.target,
        "type": node.kind,
        "major": node.major,
        "minor": node.minor,
        "fileMode": node.mode,
        "uid": 0,
        "gid": 0,
    }
