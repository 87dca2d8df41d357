"""What a bundle on disk brings: its configuration, its layers, and the small files that are copied into the guest."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from casemate.host import durable
from casemate.isolation.microvm import mountflags, tap
from casemate.isolation.microvm.config import MAX_FILE_BYTES, Content
from casemate.isolation.microvm.errors import BundleUnsupported
from casemate.isolation.microvm.oci import MAX_CONFIG_BYTES, Config, Mount, read_config
from casemate.isolation.microvm.records import Ids
from casemate.isolation.microvm.shares import MAX_SHARES, Rows, Share, root_name
from casemate.isolation.microvm.tap import GuestNetwork
from casemate.spec.errors import LimitExceeded

#: Layers as squashfs files, the uppermost first, separated by colons: what our own driver writes.
LAYERS = "org.casemate.layers"
#: The pod: containers that name the same one share a machine.
POD = "org.casemate.pod"
#: Bytes of guest memory.
MEMORY = "org.casemate.memory"
#: The pod's tap and the guest's end of it (:func:`casemate.isolation.microvm.tap.parse`); without it: loopback alone.
NETWORK = "org.casemate.network"
#: Folders of the cgroup on the host that the machine joins, separated by colons.
CGROUPS = "org.casemate.cgroups"
#: How a root that is a folder of the host is written to: ``direct`` (what engines expect), or ``overlay``.
ROOT = "org.casemate.rootfs"
#: Of a machine's memory, what kernel and agent take (40 MiB) and what must be left beside the user's limit: with
#: less the guest reads its programs' pages again and again and does not come to kill what reached the limit.
GUEST_OVERHEAD_BYTES = 96 << 20
#: Machines come in few sizes, since each size is a template of its own.
LEAST_MEMORY_BYTES, MOST_MEMORY_BYTES, _FINER_BYTES = 128 << 20, 64 << 30, 1 << 30
#: ``struct page``: 64 bytes for each 4 KiB.
_PAGE_TABLE_SHARE = 64
#: "1": other containers of the pod will join the machine.
MORE = "org.casemate.more"
#: A file of hostd's with what the container wrote before it was stopped; put back before anything of it runs.
WRITABLE = "org.casemate.writable"
#: A file of hostd's with a file system, which is the container's writable layer; the machine is the container's alone.
SCRATCH = "org.casemate.scratch"
SCRATCH_SUFFIX = ".ext4"
#: Bound on the writable layer in a machine's memory, in bytes.
UPPER = "org.casemate.upper_bytes"
#: Limits of the whole pod in the guest: files of cgroup v2, ``name=value`` separated by commas.
POD_LIMITS = "org.casemate.pod_limits"
#: What the machine begins as (:mod:`casemate.isolation.microvm.origin`); without it: as the setting says.
TEMPLATE = "org.casemate.template"
POD_FILES = frozenset(("memory.max", "memory.low", "pids.max", "cpu.max", "cpu.weight"))
MAX_LAYERS = 127
#: As in shim/shim.h.
MAX_MAP_ROWS = 16
#: What our own driver writes for each container.
_COPIED = frozenset(("/etc/hosts", "/etc/resolv.conf", "/etc/hostname"))


def document(bundle: Path, name: str = "") -> bytes:
    """The bundle's configuration as text: its file *name*, else ``config.json``. :class:`BundleUnsupported`."""
    path = bundle / (name or "config.json")
    try:
        return durable.read_bounded(path, MAX_CONFIG_BYTES)
    except (OSError, ValueError, LimitExceeded) as error:
        raise BundleUnsupported(f"{path}: {error}") from error


def read(bundle: Path, name: str = "") -> Config:
    """The bundle's configuration. :class:`BundleUnsupported`."""
    return read_config(document(bundle, name))


def keep(folder: Path, container: str, text: bytes) -> None:
    """Keep an engine's configuration in its machine's *folder*: what is changed after create changes nothing
    (runtime.md, "Lifecycle")."""
    durable.write_atomic(_kept(folder, container), text, sync=False)


def forget(folder: Path, container: str) -> None:
    """Of a container that is removed from a machine that goes on."""
    _kept(folder, container).unlink(missing_ok=True)


def of(folder: Path, container: str, bundle: str) -> Config:
    """The configuration that *container* was made by; of our own, its bundle's file. :class:`BundleUnsupported`."""
    kept = _kept(folder, container)
    return read(folder, kept.name) if kept.exists() else read(Path(bundle))


def _kept(folder: Path, container: str) -> Path:
    return folder / f"config.{container}.json"


def layers(config: Config) -> tuple[Path, ...]:
    """The container's layers, uppermost first; none where the root is a folder of the host. Opened by the caller."""
    text = config.annotations.get(LAYERS, "")
    found = tuple(Path(part) for part in text.split(":") if part)
    if len(found) > MAX_LAYERS or not all(path.is_absolute() for path in found):
        raise BundleUnsupported(f"{LAYERS}: {len(found)} layers, allowed are {MAX_LAYERS} absolute paths")
    return found


def root_is_below(config: Config) -> bool:
    """Whether what is written goes to a layer in the guest's memory, and never to the host's folder."""
    text = config.annotations.get(ROOT, "direct")
    if text not in ("direct", "overlay"):
        raise BundleUnsupported(f"{ROOT}={text[:40]!r}; allowed are direct and overlay")
    return text == "overlay"


def ids(config: Config) -> Ids | None:
    """The users of the guest on the host, when the bundle maps them; its first row must be that of uid 0."""
    linux = config.linux
    if not linux.uid_mappings and not linux.gid_mappings:
        return None
    found = []
    for rows in (linux.uid_mappings, linux.gid_mappings):
        if not rows or len(rows) > MAX_MAP_ROWS:
            raise BundleUnsupported(f"{len(rows)} id mappings; allowed are 1 to {MAX_MAP_ROWS}, for users and groups")
        found.append(tuple(sorted((row.container, row.host, row.size) for row in rows)))
    if all(inside == outside for rows in found for inside, outside, _ in rows):
        # Everybody is who they are, as without a map.
        return None
    if found[0][0][0] or found[1][0][0] or not found[0][0][1]:
        raise BundleUnsupported("id mappings that leave out root, or make it root on the host")
    return Ids(found[0], found[1])


def cgroups(config: Config) -> tuple[str, ...]:
    """The folders that monitor and QEMU join; one for each hierarchy."""
    found = tuple(part for part in config.annotations.get(CGROUPS, "").split(":") if part)
    if len(found) > 16 or not all(part.startswith("/sys/fs/cgroup/") and ".." not in part for part in found):
        raise BundleUnsupported(f"{CGROUPS}: {len(found)} folders, allowed are 16 below /sys/fs/cgroup")
    return found


def upper_bytes(config: Config) -> int:
    """The bound on a writable layer in memory; 0: half of it."""
    text = config.annotations.get(UPPER, "")
    return int(text) if text.isdigit() and len(text) < 16 else 0


def pod_limits(config: Config) -> list[tuple[str, str]]:
    """(file, value) of each limit of the whole pod. :class:`BundleUnsupported`."""
    found = []
    for part in filter(None, config.annotations.get(POD_LIMITS, "").split(",")):
        name, equals, value = part.partition("=")
        if not equals or name not in POD_FILES or "\0" in value:
            raise BundleUnsupported(f"{POD_LIMITS}: {part[:80]!r}")
        found.append((name, value))
    return found


def memory(config: Config, default_bytes: int) -> int:
    """The machine's memory: what our own driver says, else room for the container's limit."""
    text = config.annotations.get(MEMORY, "")
    if text.isdigit() and len(text) < 16:
        return int(text)
    limit = config.linux.resources.memory
    return machine_memory((limit.limit if limit is not None else 0) or 0, default_bytes)


def machine_memory(limit_bytes: int, default_bytes: int) -> int:
    """A machine's memory for a limit (0 or less: none): the limit and the guest's own part, as a power of two up to
    1 GiB, and above it as one of four sizes up to the next: beside large limits the next power is half for nobody."""
    if limit_bytes <= 0:
        return default_bytes
    wanted = limit_bytes + guest_own_bytes(limit_bytes)
    size = max(LEAST_MEMORY_BYTES, 1 << (wanted - 1).bit_length())
    if size > _FINER_BYTES:
        step = size // 8
        size = -(-wanted // step) * step
    return min(size, MOST_MEMORY_BYTES)


def guest_own_bytes(limit_bytes: int) -> int:
    """What a guest takes beside what its containers may: its kernel's table of pages grows with them."""
    return GUEST_OVERHEAD_BYTES + max(0, limit_bytes - _FINER_BYTES) // _PAGE_TABLE_SHARE


def network(config: Config) -> GuestNetwork | None:
    """The guest's network, when the bundle names one. :class:`BundleUnsupported`."""
    text = config.annotations.get(NETWORK, "")
    return tap.parse(text) if text else None


def is_bind(mount: Mount) -> bool:
    """Engines write the type ``bind``, or ``none``, or nothing, with the option."""
    return mount.type == "bind" or "bind" in mount.options or "rbind" in mount.options


def contents(config: Config, bundle: Path) -> list[Content]:
    """The files that are copied, not shared: those of our own making over layers, for which no 9p need be mounted."""
    if not config.annotations.get(LAYERS):
        return []
    found = [one for one in config.mounts if is_bind(one) and one.destination in _COPIED]
    return [_content(bundle / one.source, one.destination) for one in found]


def shared(config: Config, bundle: Path, container: str) -> tuple[list[Share], dict[int, str]]:
    """What the guest gets by 9p: the root, if it is a folder, and each bind; and which mount is which of them."""
    found, names = [], {}
    copied = {one.path for one in contents(config, bundle)}
    for index, mount in enumerate(config.mounts):
        if is_bind(mount) and mount.destination not in copied:
            source = bundle / mount.source
            names[index] = f"{container}.{index}/{source.name}".rstrip("/")
            found.append(Share(names[index], source, mount.options, _idmap(config, mount)))
    if not config.annotations.get(LAYERS):
        found.append(Share(root_name(container), bundle / config.root.path, ("rbind",)))
    if len(found) > MAX_SHARES:
        raise BundleUnsupported(f"{len(found)} bind mounts; allowed are {MAX_SHARES}")
    return found, names


def _idmap(config: Config, mount: Mount) -> tuple[Rows, Rows] | None:
    """The map of the owners of what *mount* shows: its own, else the container's. :class:`BundleUnsupported`."""
    given = (mount.uid_mappings, mount.gid_mappings)
    if not any(given) and mountflags.IDMAPS.isdisjoint(mount.options):
        return None
    maps = given if any(given) else (config.linux.uid_mappings, config.linux.gid_mappings)
    if not all(0 < len(rows) <= MAX_MAP_ROWS for rows in maps):
        raise BundleUnsupported(
            f"mount at {mount.destination[:200]}: {len(maps[0])} and {len(maps[1])} id mappings; allowed are 1 to "
            f"{MAX_MAP_ROWS}, for users and groups"
        )
    users, groups = (tuple((row.container, row.host, row.size) for row in rows) for rows in maps)
    return users, groups


def _content(source: Path, target: str) -> Content:
    try:
        number = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BundleUnsupported(f"bind mount of {source} at {target}: {error.strerror}") from error
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            what = "is larger than 64 KiB" if stat.S_ISREG(status.st_mode) else "is no regular file"
            raise BundleUnsupported(f"bind mount at {target}: {source} {what}")
        return Content(target, stat.S_IMODE(status.st_mode), os.read(number, MAX_FILE_BYTES))
    finally:
        os.close(number)
