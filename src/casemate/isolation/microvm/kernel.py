"""Guest kernels: a distribution's package taken apart, never installed, into a kernel and a small initramfs.

The initramfs holds the agent as /init, the modules that a guest needs, and their order. Both files and the
manifest with their digests lie below ``<state>/kernels/<version>``.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from casemate.host import durable, programs
from casemate.isolation.microvm.cpio import CHARACTER, FILE, FOLDER, Entry, archive
from casemate.isolation.microvm.errors import KernelMissing, KernelUnfit

#: In the order in which they are loaded: virtio_ring before virtio. Those of None may be missing (built in, or a
#: feature less); a module that is built in counts as there.
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
)
#: What a guest can do without: volumes come over 9p.
OPTIONAL = frozenset(("failover", "net_failover", "netfs", "fscache", "9pnet", "9pnet_virtio", "9p"))
_VERSION = re.compile(r"[0-9][A-Za-z0-9.+~_-]{0,63}\Z")
_PACKAGE = re.compile(r"linux-image-[0-9][a-z0-9.+-]*-amd64\Z")
_MAX_MODULE_BYTES, _MAX_KERNEL_BYTES = 8 << 20, 64 << 20
_APT_TIMEOUT_S, _EXTRACT_TIMEOUT_S = 300.0, 120.0


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """A kernel that is ready: its *version*, files, and their SHA-256."""

    version: str
    kernel: Path
    initramfs: Path
    digest: str
    #: Modules that this kernel does not have; the features that need them are refused.
    lacks: tuple[str, ...] = ()


async def install_from_apt(kernels: Path, agent: Path) -> GuestKernel:
    """Fetch the kernel that ``linux-image-amd64`` stands for, and prepare it. Nothing is installed on the host."""
    shown = await programs.run(["apt-cache", "depends", "linux-image-amd64"], timeout_s=60)
    names = [word for word in shown.stdout.decode().split() if _PACKAGE.match(word)]
    if not names:
        raise KernelMissing("apt knows no package linux-image-amd64", remedy="Run `apt-get update`.")
    with tempfile.TemporaryDirectory(prefix="casemate-kernel-") as folder:
        await programs.run(["apt-get", "download", names[0]], timeout_s=_APT_TIMEOUT_S, cwd=folder)
        return await install_from_package(kernels, _only(Path(folder), "linux-image-*.deb"), agent)


async def install_from_package(kernels: Path, package: Path, agent: Path) -> GuestKernel:
    """Take a Debian kernel package apart and prepare its kernel below *kernels*. :class:`KernelUnfit`."""
    with tempfile.TemporaryDirectory(prefix="casemate-kernel-") as folder:
        await programs.run(["dpkg-deb", "-x", str(package), folder], timeout_s=_EXTRACT_TIMEOUT_S)
        image = _only(Path(folder, "boot"), "vmlinuz-*")
        version = image.name.removeprefix("vmlinuz-")
        return prepare(kernels, version, image, Path(folder, "lib/modules", version), agent)


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise KernelUnfit(f"{len(found)} files are called {pattern}, needed is one")
    return found[0]


def prepare(kernels: Path, version: str, image: Path, modules: Path, agent: Path) -> GuestKernel:
    """Write ``<kernels>/<version>``, whole or not at all; one that is there is replaced."""
    if not _VERSION.match(version):
        raise KernelUnfit(f"kernel version {version[:80]!r}")
    files, lacks = find_modules(modules)
    initramfs = build_initramfs(durable.read_bounded(agent, 16 << 20), files)
    kernel = durable.read_bounded(image, _MAX_KERNEL_BYTES)
    kernels.mkdir(parents=True, exist_ok=True, mode=0o755)
    target, temporary = kernels / version, kernels / f".{version}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o755)
    durable.write_atomic(temporary / "vmlinuz", kernel, mode=0o444)
    durable.write_atomic(temporary / "initramfs", initramfs, mode=0o444)
    manifest = {
        "version": version,
        "kernel": hashlib.sha256(kernel).hexdigest(),
        "initramfs": hashlib.sha256(initramfs).hexdigest(),
        "lacks": list(lacks),
    }
    durable.write_atomic(temporary / "manifest.json", json.dumps(manifest).encode(), mode=0o444)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    durable.sync_folder(kernels)
    return load(kernels, version)


def find_modules(modules: Path) -> tuple[list[tuple[str, bytes]], tuple[str, ...]]:
    """The modules in load order, and which optional ones are missing. :class:`KernelUnfit` for the others."""
    built_in = modules / "modules.builtin"
    inside = {Path(line).stem for line in built_in.read_text().splitlines()} if built_in.is_file() else set()
    there = {path.name.removesuffix(".ko"): path for path in modules.rglob("*.ko")}
    found: list[tuple[str, bytes]] = []
    lacks: list[str] = []
    for name in MODULES:
        if name in there:
            found.append((name, durable.read_bounded(there[name], _MAX_MODULE_BYTES)))
        elif name in OPTIONAL:
            lacks.append(name) if name not in inside else None
        elif name not in inside:
            raise KernelUnfit(f"the kernel has no module {name}; a cloud kernel often lacks some", module=name)
    return found, tuple(lacks)


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


def load(kernels: Path, version: str) -> GuestKernel:
    """The prepared kernel *version*; :class:`KernelMissing` when there is none, or it is damaged."""
    folder = kernels / version
    try:
        manifest = json.loads(durable.read_bounded(folder / "manifest.json", 64 << 10))
        digests = {name: hashlib.sha256((folder / file).read_bytes()).hexdigest() for name, file in _FILES}
        if any(manifest[name] != digest for name, digest in digests.items()):
            raise KernelMissing(f"kernel {version}: its files do not have the digests of its manifest")
        digest = hashlib.sha256("".join(digests.values()).encode()).hexdigest()
        return GuestKernel(version, folder / "vmlinuz", folder / "initramfs", digest, tuple(manifest["lacks"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KernelMissing(f"kernel {version}: {error}") from error


_FILES = (("kernel", "vmlinuz"), ("initramfs", "initramfs"))


def installed(kernels: Path) -> list[str]:
    """The versions below *kernels*, the one that was prepared last first."""
    folders = [one for one in kernels.glob("*/manifest.json") if not one.parent.name.startswith(".")]
    return [one.parent.name for one in sorted(folders, key=lambda one: one.stat().st_mtime_ns, reverse=True)]


def use(kernels: Path, version: str) -> GuestKernel:
    """Let *version* be the kernel of machines that are made from now on. :class:`KernelMissing`."""
    found = load(kernels, version)
    durable.write_atomic(kernels / _CHOSEN, version.encode(), mode=0o444)
    return found


def remove(kernels: Path, version: str) -> None:
    """Remove *version*; machines that run keep it. :class:`KernelMissing`."""
    if not _VERSION.match(version) or not (kernels / version).is_dir():
        raise KernelMissing(f"kernel {version[:80]!r} is not installed", remedy="`casemate system kernel ls`")
    shutil.rmtree(kernels / version)
    if _read_chosen(kernels) == version:
        (kernels / _CHOSEN).unlink(missing_ok=True)


def chosen(kernels: Path) -> GuestKernel:
    """The kernel of new machines: the one that :func:`use` named, else the one prepared last. :class:`KernelMissing`."""
    versions = installed(kernels)
    if not versions:
        raise KernelMissing("no guest kernel is installed")
    named = _read_chosen(kernels)
    version = named if named in versions else versions[0]
    key = tuple(_identity(kernels / version / file) for file in ("manifest.json", "vmlinuz", "initramfs"))
    # Hashing 11 MB for each start would be a tenth of it; what is hashed once is known by its inodes and times.
    if key not in _KNOWN:
        _KNOWN.clear()
        _KNOWN[key] = load(kernels, version)
    return _KNOWN[key]


_CHOSEN = "chosen"
_KNOWN: dict[tuple[tuple[str, int, int, int], ...], GuestKernel] = {}


def _identity(path: Path) -> tuple[str, int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise KernelMissing(f"{path}: {error.strerror}") from error
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns


def _read_chosen(kernels: Path) -> str:
    try:
        return durable.read_bounded(kernels / _CHOSEN, 200).decode("ascii", "replace").strip()
    except OSError:
        return ""
