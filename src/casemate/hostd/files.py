"""Reading a container: its log, its files, its processes, its terminal. Nothing here changes hostd's state."""

from __future__ import annotations

import os

from casemate.host import safe_path
from casemate.hostd import containers, execs, observing, protocol
from casemate.hostd.context import Context
from casemate.hostd.errors import ProtocolViolated, WrongState
from casemate.hostd.housekeeping import keep_generation
from casemate.hostd.mounting import plan
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
            return observing.top(context, pod, container), []
        case protocol.ContainerAttach():
            _need_process(container)
            return Done(), [containers.attach_socket(context.folders.bundle(container.id)).detach()]
        case protocol.ContainerResize():
            folder = context.folders.bundle(container.id)
            if operation.exec_id is not None:
                execs.find(container, operation.exec_id)
                folder = context.folders.exec(container.id, operation.exec_id)
            containers.resize(folder, operation.rows, operation.columns)
            return Done(), []
        case protocol.ContainerLog():
            return Done(), _log(context, pod, container)
        case protocol.ContainerReadFile():
            return Done(), [_read_file(context, container, operation.path)]
        case protocol.ExecKill():
            execs.kill(container, operation.exec_id, operation.signal)
            return Done(), []
        case protocol.ContainerArchive() | protocol.ContainerExtract() | protocol.ContainerDiff():
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
    """Let a confined child stream; after a reboot the root may have to be mounted first, which takes the lock."""
    root = plan(context, pod, container)
    async with pod.lock:
        if not rootfs.is_mounted(root):
            raise WrongState(
                f"container {container.record.spec.name} was not started since the host came up",
                remedy="Start it once; then its files can be read.",
            )
    number = os.open(context.folders.pins(pod.record.spec)["user"], os.O_RDONLY | os.O_CLOEXEC)
    try:
        match operation:
            case protocol.ContainerArchive():
                await confined.archive(root.target, number, "/" if operation.whole else operation.path, data)
            case protocol.ContainerExtract():
                await confined.extract(
                    root.target,
                    number,
                    operation.path,
                    data,
                    keep_folders=operation.no_overwrite_dir_with_file,
                    max_bytes=operation.max_bytes,
                )
            case protocol.ContainerDiff():
                lower = rootfs.lower_fd(root, context.layers, None if pod.record.id_shift else number)
                try:
                    await confined.diff(root.target, number, lower, root.upper, data)
                finally:
                    os.close(lower)
    finally:
        os.close(number)
