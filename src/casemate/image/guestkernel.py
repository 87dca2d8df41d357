"""Guest kernels: a distribution's package taken apart, never installed, into a kernel and a small initramfs.

The work of casemated: a package is parsed here, by a process without privilege, and hostd gets two files as
descriptors. The initramfs holds the agent as /init, the modules that a guest needs, and their order.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import zstandard

from casemate.host import durable, programs
from casemate.image.cpio import CHARACTER, FILE, FOLDER, Entry, archive
from casemate.spec.errors import HostLacks, InvalidArgument, ProgramFailed

#: In the order in which they are loaded: virtio_ring before virtio. A module that is built in counts as there.
MODULES: tuple[str, ...] = (
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "failover",
    "net_failover",
    "virtio_net",
    "squashfs",
    "overlay",
    "netfs",
    "fscache",
    "9pnet",
    "9pnet_virtio",
    "9p",
    "crc32c_generic",
    "crc32c_intel",
    "crc16",
    "mbcache",
    "jbd2",
    "ext4",
)
#: What a guest can do without: volumes come over 9p, writable layers on disk are ext4.
OPTIONAL = frozenset(
    (
        *("failover", "net_failover", "netfs", "fscache", "9pnet", "9pnet_virtio", "9p"),
        *("crc32c_generic", "crc32c_intel", "crc16", "mbcache", "jbd2", "ext4"),
    )
)
#: The name of the file of a kernel in a package of Debian's.
PACKAGE = "linux-image-amd64"
VERSION = re.compile(r"[0-9][A-Za-z0-9.+~_-]{0,63}\Z")
_NAME = re.compile(r"linux-image-[0-9][a-z0-9.+-]*-amd64\Z")
_MAX_MODULE_BYTES, MAX_KERNEL_BYTES, MAX_INITRAMFS_BYTES, _MAX_AGENT_BYTES = 8 << 20, 64 << 20, 128 << 20, 16 << 20
#: A generic kernel's package unpacks to 400 MB in 5,000 files.
MAX_PACKAGE_BYTES, _MAX_FILES = 512 << 20, 50_000
_APT_TIMEOUT_S, _EXTRACT_TIMEOUT_S = 600.0, 300.0


class KernelUnfit(InvalidArgument):
    code = "microvm.kernel_unfit"
    title = "This kernel cannot run a micro-VM"
    remedy = "Take a generic kernel of a distribution: it needs virtio-mmio, -blk, -console, -net, squashfs, overlay."


class AgentMissing(HostLacks):
    code = "microvm.agent_missing"
    title = "The guest's agent is not installed"
    remedy = "`sudo make run` builds and installs it; the setting microvm.agent says where it is looked for."


class KernelPackageMissing(HostLacks):
    code = "microvm.kernel_package_missing"
    title = "The distribution's kernel package cannot be had"
    remedy = "apt-get update; or name a package file: casemate system kernel install FILE.deb"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A kernel ready to be taken over: its *version*, two files, and the optional modules that it lacks."""

    version: str
    kernel: Path
    initramfs: Path
    lacks: tuple[str, ...]
    #: SHA-256 of the agent in the initramfs.
    agent: str = ""


async def fetch(folder: Path) -> Path:
    """Download the package that :data:`PACKAGE` stands for into *folder*; apt checks its signature.

    Raises :class:`KernelPackageMissing`.
    """
    try:
        shown = await programs.run(["apt-cache", "depends", PACKAGE], timeout_s=60)
        names = [word for word in shown.stdout.decode("utf-8", "replace").split() if _NAME.match(word)]
        if not names:
            raise KernelPackageMissing(f"apt knows no package {PACKAGE}")
        await programs.run(["apt-get", "download", names[0]], timeout_s=_APT_TIMEOUT_S, cwd=str(folder))
    except (programs.ProgramMissing, ProgramFailed) as error:
        raise KernelPackageMissing(f"apt could not fetch {PACKAGE}: {error.detail}") from error
    return _only(folder, "linux-image-*.deb")


async def unpack(package: Path, folder: Path) -> tuple[str, Path, Path]:
    """Take a Debian kernel package apart below *folder*: the version, the kernel, the folder of its modules.

    Raises :class:`KernelUnfit`.
    """
    try:
        await programs.run(["dpkg-deb", "--extract", str(package), str(folder)], timeout_s=_EXTRACT_TIMEOUT_S)
    except ProgramFailed as error:
        # The upload's own name says nothing to who sent it.
        words = error.detail.replace(str(package), package.name if package.suffix == ".deb" else "the file")
        raise KernelUnfit(f"this is no whole Debian package: {words}") from error
    image = _only(folder / "boot", "vmlinuz-*")
    version = image.name.removeprefix("vmlinuz-")
    roots = (folder / "lib/modules" / version, folder / "usr/lib/modules" / version)
    modules = next((root for root in roots if root.is_dir()), None)
    if modules is None:
        raise KernelUnfit(f"the package holds no modules of {version[:80]}")
    return version, image, modules


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1 or found[0].is_symlink():
        raise KernelUnfit(f"{len(found)} files are called {pattern}, needed is one")
    return found[0]


def prepare(version: str, image: Path, modules: Path, agent: Path, folder: Path) -> Prepared:
    """Write the initramfs beside the kernel into *folder*. Raises :class:`KernelUnfit`, :class:`AgentMissing`."""
    if not VERSION.match(version):
        raise KernelUnfit(f"kernel version {version[:80]!r}")
    if image.stat().st_size > MAX_KERNEL_BYTES:
        raise KernelUnfit(f"the kernel has {image.stat().st_size} bytes, allowed are {MAX_KERNEL_BYTES}")
    files, lacks = find_modules(modules)
    try:
        init = durable.read_bounded(agent, _MAX_AGENT_BYTES)
    except OSError as error:
        raise AgentMissing(f"{agent}: {error.strerror}", path=str(agent)) from error
    initramfs = folder / "initramfs"
    initramfs.write_bytes(build_initramfs(init, files))
    return Prepared(version, image, initramfs, lacks, hashlib.sha256(init).hexdigest())


def find_modules(modules: Path) -> tuple[list[tuple[str, bytes]], tuple[str, ...]]:
    """The modules in load order, and which optional ones are missing. :class:`KernelUnfit` for the others."""
    built_in = modules / "modules.builtin"
    inside = {Path(line).stem for line in built_in.read_text().splitlines()} if built_in.is_file() else set()
    there = _modules_below(modules)
    found: list[tuple[str, bytes]] = []
    lacks: list[str] = []
    for name in MODULES:
        if name in there:
            found.append((name, _module(there[name])))
        elif name in inside:
            continue
        elif name in OPTIONAL:
            lacks.append(name)
        else:
            raise KernelUnfit(f"the kernel has no module {name}; a cloud kernel often lacks some", module=name)
    return found, tuple(lacks)


def _modules_below(folder: Path) -> dict[str, Path]:
    """Module names (with underscores, as the kernel has them) to files. A link could lead out of the package."""
    found: dict[str, Path] = {}
    count = 0
    for place, _folders, names in os.walk(folder):
        count += len(names)
        if count > _MAX_FILES:
            raise KernelUnfit(f"the package holds more than {_MAX_FILES} modules")
        for name in names:
            stem, dot, suffix = name.partition(".ko")
            path = Path(place, name)
            if dot and suffix in ("", ".xz", ".gz", ".zst") and not path.is_symlink():
                found[stem.replace("-", "_")] = path
    return found


def _module(path: Path) -> bytes:
    """The module at *path*, unpacked where the distribution packs them, bounded."""
    data = durable.read_bounded(path, _MAX_MODULE_BYTES)
    try:
        match path.suffix:
            case ".xz":
                data = lzma.LZMADecompressor().decompress(data, _MAX_MODULE_BYTES + 1)
            case ".gz":
                data = zlib.decompressobj(31).decompress(data, _MAX_MODULE_BYTES + 1)
            case ".zst":
                window = zstandard.ZstdDecompressor(max_window_size=_MAX_MODULE_BYTES)
                data = window.stream_reader(data).read(_MAX_MODULE_BYTES + 1)
            case _:
                pass
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise KernelUnfit(f"module {path.name}: {error}", module=path.name) from error
    if len(data) > _MAX_MODULE_BYTES:
        raise KernelUnfit(f"module {path.name} has more than {_MAX_MODULE_BYTES} bytes", module=path.name)
    return data


def build_initramfs(agent: bytes, modules: Iterable[tuple[str, bytes]]) -> bytes:
    """The archive: /init, a console for it, the modules and their order."""
    entries = [
        Entry("dev", FOLDER | 0o755),
        Entry("dev/console", CHARACTER | 0o600, device=(5, 1)),
        Entry("modules", FOLDER | 0o755),
        Entry("init", FILE | 0o755, agent),
    ]
    names = []
    for name, data in modules:
        entries.append(Entry(f"modules/{name}.ko", FILE | 0o644, data))
        names.append(f"/modules/{name}.ko")
    entries.append(Entry("modules/order", FILE | 0o644, "".join(f"{name}\n" for name in names).encode()))
    return archive(entries)
