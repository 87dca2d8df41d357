"""Files of containers in machines: copied by the guest's agent; and their writable layers, kept between two starts.

What a container in a machine wrote lies on its scratch device, a file of hostd's, or in its guest's memory, which goes
with the machine. That is saved when the container has ended, as a file that only a guest reads again, and put back at
its next start. A stopped container's files are reached through a machine that is made for that one copy.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path

from casemate.hostd import pods, protocol, scratch
from casemate.hostd.context import Context
from casemate.hostd.errors import WrongState
from casemate.hostd.state import Container, Pod
from casemate.isolation.level import LevelUnavailable, is_lone
from casemate.isolation.microvm import bundles, copying, kernel
from casemate.isolation.microvm.driver import MicrovmLevel
from casemate.isolation.microvm.errors import ScratchUnfit
from casemate.isolation.microvm.machine import Machine
from casemate.isolation.microvm.machines import Machines
from casemate.spec.errors import CasemateError, DiskFull

Streamed = protocol.ContainerArchive | protocol.ContainerExtract | protocol.ContainerDiff
#: A tar with nothing in it.
_EMPTY_BYTES = 1024
#: A layer of the guest's memory and the tar's headers: no more than twice the machine.
_LARGER = 2


def kept(context: Context, pod: Pod, container: Container) -> Path:
    """Where the writable layer that lay in memory is kept; there is no file where nothing was written."""
    return context.folders.container_state(pod.id, container.id) / "writable.tar"


async def writable(context: Context, pod: Pod, container: Container) -> str:
    """The file that the container's writable layer is, or was kept in; made where it is to have one. Empty: neither.

    Raises :class:`~casemate.isolation.microvm.errors.ScratchUnfit`, :class:`DiskFull`.
    """
    if not pods.is_machine(pod.record.spec):
        return ""
    tar = kept(context, pod, container)
    if tar.exists():
        return str(tar)
    path = tar.with_name(scratch.NAME)
    if not path.exists():
        size = _scratch_bytes(context, pod, container)
        if not size:
            return ""
        await scratch.make(context.folders.state / "templates", path, size)
    return str(path)


def _scratch_bytes(context: Context, pod: Pod, container: Container) -> int:
    """How large the container's scratch file is to be; 0 for a writable layer in memory.

    A pod that others join has one machine and one scratch device, so its containers' layers stay in memory. So does
    that of a container that is removed at its end: mounting a file system takes an emulated guest 60 ms.
    """
    spec = container.record.spec
    if not is_lone(pod.record.spec, spec):
        return 0
    size = spec.writable_bytes or (0 if spec.volatile else context.settings.number("microvm.scratch_bytes"))
    if size and "ext4" in kernel.chosen(context.folders.state / "kernels").lacks:
        if spec.writable_bytes:
            raise ScratchUnfit("the guest kernel has no ext4, so that no writable layer can lie on disk")
        return 0
    return size


async def keep(context: Context, pod: Pod, container: Container) -> None:
    """Save what *container* wrote, which has ended and still is in its machine. The caller holds the pod's lock."""
    machine = None if context.machines is None else context.machines.find(container.id)
    one = None if machine is None else machine.container(container.id)
    if machine is None or one is None or one.status != "stopped" or machine.monitor.ended.is_set():
        return
    if machine.record.scratch:
        await machine.sync()
    else:
        await _save(machine, container.id, kept(context, pod, container))


async def _save(machine: Machine, container: str, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    number = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        await copying.save(machine, container, number, _LARGER * machine.record.memory_bytes)
        _put(number, temporary, path)
    except OSError as error:
        raise DiskFull(f"what the container wrote cannot be kept: {error.strerror}", path=str(path)) from error
    finally:
        os.close(number)
        temporary.unlink(missing_ok=True)


async def stream(context: Context, pod: Pod, container: Container, operation: Streamed, data: int) -> None:
    """Do the copy or the comparison in the guest. Raises what :func:`copying.copy` raises.

    It is counted before anything else may happen to the machine (:func:`is_copied`).
    """
    machines = _machines(context)
    work, path = _work(operation)
    machine = machines.find(container.id)
    if machine is None or container.record.phase == "exited":
        # Its machine is gone, or may be about to be taken away, which is done under the lock.
        async with pod.lock:
            machine = machines.find(container.id)
            if machine is None:
                await _in_lent(context, machines, pod, container, (work, path, data))
                return
            machine.copies[container.id] += 1
    else:
        machine.copies[container.id] += 1
    try:
        await copying.copy(machine, container.id, work, path, data)
    finally:
        machine.copies[container.id] -= 1


def is_copied(context: Context, container: Container) -> bool:
    """Whether files are being copied out of or into the machine of *container*, which has perhaps ended meanwhile.

    Only who is told to (start it anew, remove it) takes the machine away from beneath a copy.
    """
    machine = None if context.machines is None else context.machines.find(container.id)
    return machine is not None and machine.copies[container.id] > 0


async def _in_lent(
    context: Context, machines: Machines, pod: Pod, container: Container, copy: tuple[copying.Work, str, int]
) -> None:
    work, path, data = copy
    if container.record.phase not in ("created", "exited"):
        raise WrongState(f"container {container.record.spec.name} has just changed; try again")
    async with _lent(context, machines, pod, container) as lent:
        await copying.copy(lent, container.id, work, path, data)
        if work == "extract" and lent.record.scratch:
            await lent.sync()
        elif work == "extract":
            await _save(lent, container.id, kept(context, pod, container))


def _put(number: int, temporary: Path, path: Path) -> None:
    """Let what was saved take the place of what was kept before; nothing of it where nothing was written."""
    if os.fstat(number).st_size <= _EMPTY_BYTES:
        path.unlink(missing_ok=True)
    else:
        temporary.rename(path)


def _work(operation: Streamed) -> tuple[copying.Work, str]:
    match operation:
        case protocol.ContainerArchive(whole=True):
            return "export", "/"
        case protocol.ContainerArchive():
            return "archive", operation.path
        case protocol.ContainerExtract():
            return "extract", operation.path
        case protocol.ContainerDiff():
            return "diff", "/"


def _machines(context: Context) -> Machines:
    if context.machines is None:
        raise LevelUnavailable(context.levels.describe().get("microvm", "the service of the micro-VMs does not run"))
    return context.machines


@contextlib.asynccontextmanager
async def _lent(context: Context, machines: Machines, pod: Pod, container: Container) -> AsyncGenerator[Machine]:
    """A machine with the container's root and nothing that runs in it, for as long as it is needed."""
    path = await writable(context, pod, container)
    on_disk = path.endswith(bundles.SCRATCH_SUFFIX)
    number = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW) if path else -1
    try:
        machine = await _lend(context, machines, pod, container, number if on_disk else None)
    except BaseException:
        if number >= 0:
            os.close(number)
        raise
    try:
        if path and not on_disk:
            await copying.copy(machine, container.id, "restore", "/", number)
        yield machine
    finally:
        if number >= 0:
            os.close(number)
        with contextlib.suppress(CasemateError):
            await machines.end(machine)


async def _lend(
    context: Context, machines: Machines, pod: Pod, container: Container, scratch_fd: int | None
) -> Machine:
    level = context.levels.find("microvm")
    assert isinstance(level, MicrovmLevel)
    spec = container.record.spec
    layers = [context.layers.file(layer) for layer in dict.fromkeys(reversed(spec.layers))]
    return await machines.create(
        container.id,
        layers,
        hostname="copy",
        memory_bytes=level.memory_bytes(pod.record.spec, spec),
        origin=level.origin(pod.record.spec),
        scratch_fd=scratch_fd,
    )
