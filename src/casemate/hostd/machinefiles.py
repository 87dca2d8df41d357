"""Files of containers in machines: copied by the guest's agent; and their writable layers, kept between two starts.

What a container in a machine wrote lies in its guest's memory, which goes with the machine. So it is saved when the
container has ended, as a file that only a guest reads again, and put back at its next start. A stopped container's
files are reached through a machine that is made for that one copy.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path

from casemate.hostd import protocol
from casemate.hostd.context import Context
from casemate.hostd.errors import WrongState
from casemate.hostd.state import Container, Pod
from casemate.isolation.level import LevelUnavailable
from casemate.isolation.microvm import copying
from casemate.isolation.microvm.driver import MicrovmLevel
from casemate.isolation.microvm.machine import Machine
from casemate.isolation.microvm.machines import Machines
from casemate.spec.errors import CasemateError, DiskFull

Streamed = protocol.ContainerArchive | protocol.ContainerExtract | protocol.ContainerDiff
#: A tar with nothing in it.
_EMPTY_BYTES = 1024
#: A layer of the guest's memory and the tar's headers: no more than twice the machine.
_LARGER = 2


def kept(context: Context, pod: Pod, container: Container) -> Path:
    """Where the writable layer of a container is that does not run; there is no file where nothing was written."""
    return context.folders.container_state(pod.id, container.id) / "writable.tar"


def kept_text(context: Context, pod: Pod, container: Container) -> str:
    """The same as text; empty where there is no such file."""
    path = kept(context, pod, container)
    return str(path) if path.exists() else ""


async def keep(context: Context, pod: Pod, container: Container) -> None:
    """Save what *container* wrote, which has ended and still is in its machine. The caller holds the pod's lock."""
    machine = None if context.machines is None else context.machines.find(container.id)
    one = None if machine is None else machine.container(container.id)
    if machine is None or one is None or one.status != "stopped" or machine.monitor.ended.is_set():
        return
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
    """Do the copy or the comparison in the guest. Raises what :func:`copying.copy` raises."""
    machines = _machines(context)
    work, path = _work(operation)
    machine = machines.find(container.id)
    if machine is not None:
        await copying.copy(machine, container.id, work, path, data)
        return
    async with pod.lock:
        if container.record.phase not in ("created", "exited"):
            raise WrongState(f"container {container.record.spec.name} has just changed; try again")
        async with _lent(context, machines, pod, container) as lent:
            await copying.copy(lent, container.id, work, path, data)
            if work == "extract":
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
    level = context.levels.find("microvm")
    assert isinstance(level, MicrovmLevel)
    spec = container.record.spec
    layers = [context.layers.file(layer) for layer in dict.fromkeys(reversed(spec.layers))]
    machine = await machines.create(
        container.id,
        layers,
        hostname="copy",
        memory_bytes=level.memory_bytes(pod.record.spec, spec),
        origin=level.origin(pod.record.spec),
    )
    try:
        with contextlib.ExitStack() as stack:
            path = kept(context, pod, container)
            if path.exists():
                number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                stack.callback(os.close, number)
                await copying.copy(machine, container.id, "restore", "/", number)
        yield machine
    finally:
        with contextlib.suppress(CasemateError):
            await machines.end(machine)
