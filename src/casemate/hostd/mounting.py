"""A container's root file system and what is mounted into it, made by hostd and handed to the runtime as paths.

Host paths: opened with the caller's rights, and mounted from that descriptor, so nothing can be exchanged in
between. Who owns their files (decision 0033): for root, whose grant is the whole host, the ids pass through (host
uid N is N in the container); for anybody else their own uid and gid appear as the container's root, whatever the
container does is done as them, and every other owner appears as nobody.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import AsyncGenerator
from pathlib import Path

from casemate.host import mounts, safe_path, syscalls, userns
from casemate.hostd.context import Context
from casemate.hostd.grants import Caller, from_record
from casemate.hostd.state import Container, Pod
from casemate.isolation.bundle import BindSource, DeviceNode
from casemate.isolation.oci import bind_source
from casemate.network import names
from casemate.spec.errors import InvalidArgument, NotFound
from casemate.spec.resolvers import host_search, reachable_resolvers
from casemate.spec.workload import BindMount, Device, VolumeMount
from casemate.storage import confined, rootfs

_PROPAGATION = {
    "private": syscalls.MS_PRIVATE,
    "rslave": syscalls.MS_SLAVE | syscalls.MS_REC,
    "rshared": syscalls.MS_SHARED | syscalls.MS_REC,
}
_RESOLV_FILES = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
_MAX_RESOLV_BYTES = 64 << 10
_DEVICES_BYTES = 64 << 10


def plan(context: Context, pod: Pod, container: Container) -> rootfs.RootfsPlan:
    """Where the root file system of *container* lies."""
    spec = container.record.spec
    return rootfs.plan(
        spec.id,
        spec.layers,
        target=context.folders.rootfs(spec.id),
        writable=context.folders.container_state(pod.id, spec.id),
        first_id=pod.record.first_id,
        writable_bytes=spec.writable_bytes,
    )


def make_bundle_folder(context: Context, pod: Pod, container: Container) -> Path:
    """The bundle's folder: the pod's root may pass through it, nobody else (a set-uid file of an image would be
    a way for the host's users into the pod)."""
    folder = context.folders.bundle(container.id)
    folder.mkdir(mode=0o710, exist_ok=True)
    os.chown(folder, 0, pod.record.first_id)
    folder.chmod(0o710)
    return folder


async def mount(context: Context, pod: Pod, container: Container) -> tuple[list[BindSource], list[str]]:
    """Mount root, volumes, host paths, devices and /etc files; the binds for the runtime, and warnings.

    What is there from an earlier start is taken away first, but for the root. The caller undoes it by
    :func:`unmount`.
    """
    folder = make_bundle_folder(context, pod, container)
    unmount_binds(folder)
    level = context.levels.find(pod.record.spec.level)
    number = userns_of(context, pod)
    try:
        if level.features.rootfs:
            layers_map = None if pod.record.id_shift else number
            await rootfs.apply(plan(context, pod, container), context.layers, layers_map)
        else:
            for layer in plan(context, pod, container).layers:
                context.layers.hold(layer, container.id)
        context.step("container.rootfs")
        (folder / "binds").mkdir(mode=0o711, exist_ok=True)
        binds, warnings = _etc(context, pod, container, folder), []
        for index, one in enumerate(container.record.spec.mounts):
            place = folder / "binds" / str(index)
            if isinstance(one, VolumeMount):
                await _volume(context, container, one, place, number)
                binds.append(bind_source(str(place), one.target, read_only=one.read_only))
            elif isinstance(one, BindMount):
                warnings += await _host_path(pod, container, one, place, number)
                made = bind_source(str(place), one.target, read_only=one.read_only, propagation=one.propagation)
                binds.append(made)
        binds += _devices(container.record.spec.devices, folder, pod.record.first_id)
        context.step("container.binds")
        return binds, warnings
    finally:
        os.close(number)


def demand_sources(context: Context, container: Container) -> None:
    """That what was bound when *container* was created was not removed since.

    The mount would go on with the removed folder, which nobody else sees. Raises :class:`NotFound`; the next start
    opens the path anew.
    """
    folder = context.folders.bundle(container.id) / "binds"
    for index, one in enumerate(container.record.spec.mounts):
        if not isinstance(one, BindMount | VolumeMount):
            continue
        bound = (folder / str(index)).stat()
        if bound.st_nlink == 0 and not (isinstance(one, BindMount) and _is_at(one.source, bound)):
            what = (
                f"host path {one.source[:300]!r}"
                if isinstance(one, BindMount)
                else f"the folder of volume {one.volume}"
            )
            raise NotFound(
                f"{what} was removed or replaced after the container was created",
                remedy="Put it back, and start the container again.",
            )


def _is_at(path: str, status: os.stat_result) -> bool:
    """Whether *path* is that file: some file systems in user space count no links at all."""
    with contextlib.suppress(OSError):
        return os.path.samestat(Path(path).stat(), status)
    return False


def userns_of(context: Context, pod: Pod) -> int:
    """A descriptor of the pod's user namespace, or of one like it where the pod is a machine; the caller closes it."""
    pins = context.folders.pins(pod.record.spec)
    if "user" in pins:
        return os.open(pins["user"], os.O_RDONLY | os.O_CLOEXEC)
    return userns.userns_fd(pod.record.first_id, 65_536)


async def _volume(context: Context, container: Container, one: VolumeMount, place: Path, userns_fd: int) -> None:
    volume = context.volumes.find(container.record.spec.project, one.volume)
    if one.copy_up and context.volumes.is_empty(volume):
        source = context.volumes.clone_fd(volume, userns_fd)
        try:
            async with _image_root(context, container, userns_fd) as root:
                with contextlib.suppress(NotFound):
                    await confined.copy_up(root, userns_fd, one.target, source)
        finally:
            os.close(source)
    context.volumes.bind(volume, place, userns_fd, read_only=one.read_only)


@contextlib.asynccontextmanager
async def _image_root(context: Context, container: Container, userns_fd: int) -> AsyncGenerator[Path]:
    """The container's root as the host sees it; a machine's is mounted for this long, of the image alone."""
    pod = context.state.pods[container.record.spec.pod]
    wanted = plan(context, pod, container)
    if context.levels.find(pod.record.spec.level).features.rootfs:
        yield wanted.target
        return
    try:
        await rootfs.apply(wanted, context.layers, None if pod.record.id_shift else userns_fd)
        yield wanted.target
    finally:
        rootfs.unmount(wanted, context.layers)
        for layer in wanted.layers:
            context.layers.hold(layer, container.id)


async def _host_path(pod: Pod, container: Container, one: BindMount, place: Path, pod_userns: int) -> list[str]:
    caller = from_record(container.record.caller)
    number = await _open(caller, one)
    try:
        _make_place(place, os.fstat(number).st_mode)
        attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
        propagation = _PROPAGATION[one.propagation]
        with contextlib.ExitStack() as stack:
            mapping = pod_userns
            if caller.uid != 0:
                first = pod.record.first_id
                mapping = userns.single_user_fd(caller.uid, caller.gid, first)
                stack.callback(os.close, mapping)
            for idmap in (mapping, None):
                try:
                    mounts.bind(
                        number,
                        place,
                        read_only=one.read_only,
                        recursive=one.recursive,
                        idmap_fd=idmap,
                        propagation=propagation,
                        attributes=attributes,
                    )
                except mounts.IdmapUnsupported:
                    continue
                if idmap is None:
                    said = "its file system cannot map owners: they appear as nobody"
                    return [f"{one.source} at {one.target}: {said}"]
                return []
    finally:
        os.close(number)
    raise AssertionError("a bind without a map does not raise IdmapUnsupported")


async def _open(caller: Caller, one: BindMount) -> int:
    try:
        return await safe_path.open_as(caller.uid, caller.gid, caller.groups, one.source)
    except NotFound:
        if not one.create or caller.uid != 0:
            raise
    # Only for root: to make folders for somebody else takes their rights in every parent, which we do not have.
    os.makedirs(one.source, mode=0o755, exist_ok=True)  # noqa: PTH103 - one call on a local path, as all mounting is
    return await safe_path.open_as(0, 0, (), one.source)


def _make_place(place: Path, mode: int) -> None:
    """An empty folder or file to mount on."""
    if stat.S_ISDIR(mode):
        place.mkdir(mode=0o755, exist_ok=True)
    else:
        place.touch(mode=0o644, exist_ok=True)


def _devices(devices: tuple[Device, ...], folder: Path, first_id: int) -> list[BindSource]:
    """Nodes of our own for the granted devices: the host's belong to ids that the pod does not have."""
    if not devices:
        return []
    place = folder / "devices"
    place.mkdir(mode=0o711, exist_ok=True)
    # Not mounts.tmpfs: that one is without devices, as /run often is too.
    options = f"size={_DEVICES_BYTES},mode=711"
    syscalls.mount("casemate", place, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, options)
    found = []
    for index, device in enumerate(devices):
        status = _device_status(device)
        node = place / str(index)
        os.mknod(node, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev)
        os.chown(node, first_id, first_id)
        node.chmod(0o660)
        found.append(BindSource(str(node), device.target, ("bind", "rw", "nosuid", "noexec")))
    return found


def device_nodes(devices: tuple[Device, ...]) -> tuple[DeviceNode, ...]:
    """The devices for the cgroup's device rules."""
    found = []
    for device in devices:
        status = _device_status(device)
        kind = "b" if stat.S_ISBLK(status.st_mode) else "c"
        rdev = status.st_rdev
        found.append(DeviceNode(device.target, kind, os.major(rdev), os.minor(rdev), device.access))  # type: ignore[arg-type]
    return tuple(found)


def _device_status(device: Device) -> os.stat_result:
    try:
        status = Path(device.source).stat()
    except OSError as error:
        raise NotFound(f"device {device.source[:200]!r}: {error.strerror}", remedy="ls -l /dev") from error
    if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        raise InvalidArgument(f"{device.source[:200]!r} is not a device")
    return status


def _etc(context: Context, pod: Pod, container: Container, folder: Path) -> list[BindSource]:
    """hosts, hostname and resolv.conf, owned by the pod's root; not those that the user mounts."""
    spec = pod.record.spec
    network = spec.network
    hosts = [(one.address, one.name) for one in network.hosts]
    text = {
        "hosts": names.hosts_file(spec.hostname, network.address or None, hosts),
        "hostname": names.hostname_file(spec.hostname),
        "resolv.conf": _resolv(context, pod),
    }
    taken = {one.target.rstrip("/") for one in container.record.spec.mounts}
    found = []
    for name, content in text.items():
        if f"/etc/{name}" in taken:
            continue
        place = folder / name
        place.unlink(missing_ok=True)
        place.write_text(content)
        place.chmod(0o644)
        os.chown(place, pod.record.first_id, pod.record.first_id)
        options = ("bind", "ro" if container.record.spec.read_only else "rw", "nosuid", "nodev", "noexec")
        found.append(BindSource(str(place), f"/etc/{name}", options))
    return found


def _resolv(context: Context, pod: Pod) -> str:
    network = pod.record.spec.network
    texts = [_read(path) for path in _RESOLV_FILES]
    if network.mode == "host" and not network.dns:
        return texts[0]
    resolvers = list(network.dns or context.settings.texts("network.dns"))
    for text in texts:
        resolvers = resolvers or reachable_resolvers(text)
    search = network.dns_search or host_search(texts[0])
    return names.resolv_file(resolvers, search, network.dns_options)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_RESOLV_BYTES)
    except OSError:
        return ""


def unmount_binds(folder: Path) -> None:
    """Take away what is mounted for a container beside its root. Listed by our own names, not by mountinfo, whose
    length grows with the host."""
    for place in (*_entries(folder / "binds"), folder / "devices"):
        while mounts.unmount(place, detach=True):
            pass


def unmount(context: Context, pod: Pod, container: Container) -> None:
    """Take every mount of *container* away. May be repeated."""
    unmount_binds(context.folders.bundle(container.id))
    rootfs.unmount(plan(context, pod, container), context.layers)


def _entries(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return sorted(folder.iterdir())
    return []
