"""What this host can do: small functions that look and answer, for ``system doctor`` and for choosing a way.

None changes anything that lasts; each answers a :class:`Probe` and raises nothing. Words are for a person:
*value* is what was seen, *remedy* what to do when it is not *ok*.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from casemate.host import hierarchy, loop, mounts, nft, programs, userns
from casemate.spec.errors import CasemateError

#: Debian 12's kernel; openat2, pidfd, mount_setattr and overlay on idmapped layers (5.19) are all older.
MIN_KERNEL = (5, 19)
#: A range in which no one is: only used for the moment of a probe.
_PROBE_FIRST_ID = 3_999_000_000
#: Below this the two daemons and one container are already a tight fit.
_MIN_MEMORY_BYTES = 512 << 20
_MIN_KEYS = 200


@dataclass(frozen=True, slots=True)
class Probe:
    """One answer: the *name* of the check, whether all is well, what was seen, and what to do otherwise."""

    name: str
    ok: bool
    value: str
    remedy: str = ""
    #: Casemate works without it, less well; otherwise it does not work at all.
    optional: bool = False


def kernel() -> Probe:
    """The kernel's version."""
    release = platform.release()
    found = mounts.kernel_version(release)
    wanted = ".".join(map(str, MIN_KERNEL))
    return Probe("kernel", found >= MIN_KERNEL, release, f"run Linux {wanted} or newer")


def file_system(kind: str) -> Probe:
    """Whether the kernel has the file system *kind* (overlay, squashfs) now; a module counts once it is loaded."""
    listed = _words("/proc/filesystems")
    return Probe(kind, kind in listed, "in the kernel" if kind in listed else "not there", f"modprobe {kind}")


def user_namespaces() -> Probe:
    """Whether a user namespace with a map can be made."""
    try:
        os.close(userns.userns_fd(_PROBE_FIRST_ID, 65536))
    except (CasemateError, OSError) as error:
        return Probe("user namespaces", False, str(error), "sysctl user.max_user_namespaces=65536")
    return Probe("user namespaces", True, "can be made")


def idmapped_squashfs(scratch: Path) -> Probe:
    """Whether layers' owners can be mapped while they are mounted; tried on an empty one, mounted below *scratch*."""
    remedy = "run Linux 6.2 or newer; until then layers are stored with the owners of one range that all pods share"
    try:
        number = userns.userns_fd(_PROBE_FIRST_ID, 65536)
        try:
            able = mounts.supports_idmapped_squashfs(number, scratch)
        finally:
            os.close(number)
    except (CasemateError, OSError) as error:
        return Probe("idmapped layers", False, str(error), remedy, optional=True)
    return Probe("idmapped layers", able, "yes" if able else "the kernel refuses", remedy, optional=True)


def can_map_layers(scratch: Path) -> bool:
    """Whether the kernel maps the owners of squashfs; True also where squashfs cannot be mounted, which the doctor
    tells by itself."""
    number = userns.userns_fd(_PROBE_FIRST_ID, 65536)
    try:
        return mounts.supports_idmapped_squashfs(number, scratch)
    except CasemateError:
        return True
    finally:
        os.close(number)


def idmapped_folder(folder: Path) -> Probe:
    """Whether volumes on the file system of *folder* can be bound with mapped owners."""
    try:
        number = userns.userns_fd(_PROBE_FIRST_ID, 65536)
        try:
            able = mounts.supports_idmap(folder, number)
        finally:
            os.close(number)
    except (CasemateError, OSError) as error:
        return Probe("idmapped volumes", False, str(error), "keep the state on ext4, xfs or btrfs")
    return Probe("idmapped volumes", able, str(folder), "keep the state on ext4, xfs or btrfs (paths.host_state)")


def overlay(folder: Path) -> Probe:
    """Whether an overlay can write to the file system of *folder*: mounts one and takes it away."""
    remedy = "keep the state on ext4, xfs (ftype=1) or btrfs (paths.host_state)"
    try:
        with tempfile.TemporaryDirectory(prefix=".probe-", dir=folder) as name:
            lower, upper, work = (Path(name) / part for part in ("lower", "upper", "work"))
            for one in (lower, upper, work):
                one.mkdir()
            os.close(mounts.overlay(None, [lower], upper, work))
    except (CasemateError, OSError) as error:
        return Probe("overlay", False, str(error), remedy)
    return Probe("overlay", True, f"writes to {folder}")


def loop_devices() -> Probe:
    """Whether a loop device can be had."""
    number = os.memfd_create("probe", os.MFD_CLOEXEC)
    try:
        os.truncate(number, 4096)
        device, path = loop.attach(number)
        os.close(device)
    except (CasemateError, OSError) as error:
        return Probe("loop devices", False, str(error), "modprobe loop")
    finally:
        os.close(number)
    return Probe("loop devices", True, f"{path} and more")


def cgroup_flavour() -> Probe:
    """Which control group hierarchy is used, and which controllers are missing."""
    try:
        found = hierarchy.detect()
    except CasemateError as error:
        return Probe("control groups", False, error.detail, error.remedy)
    if found.version == 2:
        have = _words("/sys/fs/cgroup/cgroup.controllers")
        missing = [name for name in ("cpu", "memory", "pids") if name not in have]
        value = f"version 2{', without ' + ', '.join(missing) if missing else ''}"
        return Probe("control groups", not missing, value, "enable the controllers at boot or in the parent")
    return Probe("control groups", True, "version 1 (or hybrid): crun may refuse it, runc works")


def nftables() -> Probe:
    """Whether the kernel's nftables and the library are there."""
    try:
        value = f"generation {nft.generation()}"
        # Nothing is listed: the library begins anew each time that somebody changes a rule meanwhile.
        nft.Nft()
    except (CasemateError, OSError) as error:
        return Probe("nftables", False, str(error), "apt-get install nftables")
    return Probe("nftables", True, value)


def forwarding() -> Probe:
    """Whether the host forwards packets (Casemate switches it on with the first pod)."""
    value = _text("/proc/sys/net/ipv4/ip_forward")
    return Probe("ip forwarding", value == "1", f"net.ipv4.ip_forward={value}", "sysctl net.ipv4.ip_forward=1", True)


def memory() -> Probe:
    """The host's memory."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Probe("memory", total >= _MIN_MEMORY_BYTES, f"{total >> 20} MiB", "512 MiB are the least", optional=True)


def keys() -> Probe:
    """Kernel keyrings: a runtime takes one a container unless told not to; 200 is a common bound."""
    value = _text("/proc/sys/kernel/keys/maxkeys") or "0"
    enough = value.isdigit() and int(value) > _MIN_KEYS
    remedy = "sysctl kernel.keys.maxkeys=20000 (a runtime started with --no-new-keyring needs none)"
    return Probe("session keyrings", enough, f"kernel.keys.maxkeys={value}", remedy, optional=True)


def program(name: str, package: str, *, optional: bool = False) -> Probe:
    """Whether the program *name* is installed."""
    try:
        return Probe(name, True, programs.find_program(name), optional=optional)
    except CasemateError as error:
        return Probe(name, False, error.detail, f"apt-get install {package}", optional)


def process_ids() -> Probe:
    """How many processes the host can have: each container takes at least two (itself and its supervisor)."""
    value = _text("/proc/sys/kernel/pid_max") or "0"
    enough = value.isdigit() and int(value) >= 65536
    return Probe("process ids", enough, f"kernel.pid_max={value}", "sysctl kernel.pid_max=4194304", optional=True)


def all_probes(host_state: Path) -> list[Callable[[], Probe]]:
    """Every check that needs no argument but the state folder; the caller runs them and adds its own."""
    return [
        kernel,
        lambda: file_system("overlay"),
        lambda: file_system("squashfs"),
        user_namespaces,
        loop_devices,
        lambda: overlay(host_state),
        lambda: idmapped_folder(host_state),
        cgroup_flavour,
        nftables,
        forwarding,
        memory,
        keys,
        process_ids,
        lambda: program("conmon", "conmon"),
        lambda: program("tar2sqfs", "squashfs-tools-ng"),
        lambda: program("mkfs.ext4", "e2fsprogs", optional=True),
        lambda: program("catatonit", "catatonit", optional=True),
        lambda: program("iptables", "iptables", optional=True),
    ]


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _words(path: str) -> list[str]:
    return _text(path).split()
