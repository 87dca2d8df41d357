"""Reading a container: its log, its files, its processes, its terminal. Nothing here changes hostd's state."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Generator

from casemate.host import pidfd, safe_path, userns
from casemate.hostd import containers, execs, machinefiles, observing, pods, protocol
from casemate.hostd.context import Context
from casemate.hostd.errors import ContainerMissing, ProtocolViolated, WrongState
from casemate.hostd.housekeeping import keep_generation
from casemate.hostd.mounting import make_bundle_folder, plan
from casemate.hostd.protocol import AnyAnswer, Done
from casemate.hostd.state import Container, Pod
from casemate.spec.errors import InvalidArgument, NotFound
from casemate.storage import confined, rootfs

Asked = (
    protocol.ContainerTop
    | protocol.ContainerAttach
    | protocol.ContainerResize
    | protocol.ContainerLog
    | protocol.ContainerReadFile
    | protocol.ContainerArchive
    | protocol.ContainerExtract
    | protocol.ContainerDiff
    | protocol.ExecKill
)


async def handle(
    context: Context, pod: Pod, container: Container, operation: Asked, fds: list[int]
) -> tuple[AnyAnswer, list[int]]:
    """The answer, and descriptors for the peer."""
    match operation:
        case protocol.ContainerTop():
            return await observing.top(context, pod, container), []
        case protocol.ContainerAttach():
            _need_process(container)
            return Done(), [containers.attach(context, container)]
        case protocol.ContainerResize():
            folder = context.folders.bundle(container.id)
            if operation.exec_id is not None:
                execs.find(container, operation.exec_id)
                folder = context.folders.exec(container.id, operation.exec_id)
            containers.resize(folder, operation.rows, operation.columns)
            return Done(), []
        case protocol.ContainerLog():
            return Done(), _log(context, pod, container)
        case protocol.ContainerReadFile() if pods.is_machine(pod.record.spec):
            raise InvalidArgument("files of a container in a machine are copied out, not opened on the host")
        case protocol.ContainerReadFile():
            return Done(), [_read_file(context, container, operation.path)]
        case protocol.ExecKill():
            execs.kill(container, operation.exec_id, operation.signal)
            return Done(), []
        case protocol.ContainerArchive() | protocol.ContainerExtract() | protocol.ContainerDiff():
            if pods.is_machine(pod.record.spec):
                await machinefiles.stream(context, pod, container, operation, _one(fds))
            else:
                await _stream(context, pod, container, operation, _one(fds))
            return Done(), []


def _need_process(container: Container) -> None:
    if container.record.phase not in ("created", "running"):
        raise WrongState(f"container {container.record.spec.name} does not run", phase=container.record.phase)


def _one(fds: list[int]) -> int:
    if not 1 <= len(fds) <= 2:
        raise ProtocolViolated(f"{len(fds)} descriptors; this operation takes one for the data")
    return fds[0]


def _log(context: Context, pod: Pod, container: Container) -> list[int]:
    path = context.folders.log(pod.id, container.id)
    keep_generation(context, container)
    found: list[int] = []
    try:
        for one in (path.with_name("log.1"), path):
            try:
                found.append(os.open(one, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
            except FileNotFoundError:
                continue
    except BaseException:
        for number in found:
            os.close(number)
        raise
    return found


def _read_file(context: Context, container: Container, path: str) -> int:
    root = safe_path.open_root(context.folders.rootfs(container.id))
    try:
        number = safe_path.open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError as error:
        raise NotFound(f"{path[:200]!r} is not in container {container.record.spec.name}") from error
    except OSError as error:
        raise InvalidArgument(f"{path[:200]!r}: {error.strerror}") from error
    finally:
        os.close(root)
    if not safe_path.is_regular(number):
        os.close(number)
        raise InvalidArgument(f"{path[:200]!r} is not a regular file")
    return number


async def _stream(
    context: Context,
    pod: Pod,
    container: Container,
    operation: protocol.ContainerArchive | protocol.ContainerExtract | protocol.ContainerDiff,
    data: int,
) -> None:
    """Let a confined child stream. Copies see what a running container sees, with its volumes and binds; an export
    and a comparison see its root file system alone."""
    async with _root(context, pod, container) as (root, number):
        match operation:
            case protocol.ContainerArchive(whole=True):
                await confined.archive(root.target, number, "/", data)
            case protocol.ContainerArchive():
                with _view(context, pod, container) as view:
                    await confined.archive(root.target, number, operation.path, data, mount_namespace=view)
            case protocol.ContainerExtract():
                with _view(context, pod, container) as view:
                    await confined.extract(
                        root.target,
                        number,
                        operation.path,
                        data,
                        keep_folders=operation.no_overwrite_dir_with_file,
                        max_bytes=operation.max_bytes,
                        mount_namespace=view,
                    )
            case protocol.ContainerDiff():
                lower = rootfs.lower_fd(root, context.layers, None if pod.record.id_shift else number)
                try:
                    await confined.diff(root.target, number, lower, root.upper, data)
                finally:
                    os.close(lower)


@contextlib.contextmanager
def _view(context: Context, pod: Pod, container: Container) -> Generator[int | tuple[int, int] | None]:
    """A descriptor of the mount namespace of a container that runs, and one of the folder in it that is its root,
    where that is not the namespace's own; None for one that does not run."""
    process = container.record.process
    if container.record.phase not in ("created", "running") or process is None:
        yield None
        return
    level = context.levels.find(pod.record.spec.level)
    if level.inside is not None:
        with level.inside.files(container.id) as found:
            yield found
        return
    try:
        number = os.open(f"/proc/{process.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        number = -1
    # Looked at after opening: the descriptor is of that process, and of no later one with its number.
    if number >= 0 and not pidfd.is_alive(process.pid, process.start_ticks):
        os.close(number)
        number = -1
    try:
        yield None if number < 0 else number
    finally:
        if number >= 0:
            os.close(number)


@contextlib.asynccontextmanager
async def _root(context: Context, pod: Pod, container: Container) -> AsyncGenerator[tuple[rootfs.RootfsPlan, int]]:
    """Where the root file system is, and the pod's user namespace; after a reboot mounted for as long as it is read.

    The pod is not locked meanwhile: a start that comes in between takes the mount over, and then it stays.
    """
    root = plan(context, pod, container)
    async with pod.lock:
        if context.state.containers.get(container.id) is not container:
            raise ContainerMissing(f"container {container.id[:12]} is not on this host", container=container.id)
        number = userns.userns_fd(pod.record.first_id, pods.IDS)
        try:
            if not rootfs.is_mounted(root):
                make_bundle_folder(context, pod, container)
                await rootfs.apply(root, context.layers, None if pod.record.id_shift else number)
                container.lent = True
        except BaseException:
            os.close(number)
            raise
        container.readers += 1
    try:
        yield root, number
    finally:
        os.close(number)
        container.readers -= 1
        async with pod.lock:
            ours = container.lent and not container.readers
            if ours and container.record.phase == "exited" and container.id in context.state.containers:
                rootfs.unmount(root, context.layers)
                # What uses the layers is the container, mounted or not.
                for layer in root.layers:
                    context.layers.hold(layer, root.user)
            container.lent = container.lent and not ours
