"""Further processes in a running container, each below a conmon of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path

from casemate.host import pidfd
from casemate.hostd import containers, inputs, watching
from casemate.hostd.context import Context
from casemate.hostd.errors import ExecMissing, WrongState
from casemate.hostd.protocol import AnyAnswer, ExecEnded, ExecStart, Started
from casemate.hostd.records import remove_small
from casemate.hostd.state import Container, Exec, Pod
from casemate.isolation import conmon
from casemate.isolation.launcher import Supervised
from casemate.isolation.level import Runtime
from casemate.isolation.process import process
from casemate.spec.errors import Conflict, LimitExceeded, ProgramFailed

#: Bound on execs at a time in one container: each is a conmon of 1 MiB.
MAX_EXECS = 64
#: How casemate-vm says that the container has ended, which its conmon has perhaps not told yet.
_GONE = "container not running"


async def start(context: Context, pod: Pod, container: Container, operation: ExecStart) -> tuple[AnyAnswer, list[int]]:
    """Run the process; with *attach* the connection comes back as a descriptor. The caller holds the lock."""
    if container.record.phase != "running":
        raise WrongState(f"container {container.record.spec.name} does not run", phase=container.record.phase)
    if operation.exec_id in container.execs:
        raise Conflict(f"exec {operation.exec_id[:12]} exists", exec_id=operation.exec_id)
    if len(container.execs) >= MAX_EXECS:
        raise LimitExceeded(f"{MAX_EXECS} execs run in container {container.record.spec.name}", limit=MAX_EXECS)
    security = container.record.spec.security
    # Only what the container itself was granted: an exec takes no caller.
    if operation.privileged and not security.privileged:
        raise WrongState(
            f"container {container.record.spec.name} is not privileged, so no exec in it can be",
            remedy="Run the container with --privileged, which needs a grant.",
        )
    folder = context.folders.exec(container.id, operation.exec_id)
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700)
    body, _warnings = process(operation.process, security, context.facts)
    (folder / "process.json").write_bytes(json.dumps(body).encode())
    one = Exec(operation.exec_id, container.id)
    container.execs[one.exec_id] = one
    try:
        return await _launch(context, pod, container, one, folder, operation=operation)
    except BaseException as error:
        container.execs.pop(one.exec_id, None)
        remove_small(folder)
        if isinstance(error, ProgramFailed) and _GONE in error.detail:
            raise WrongState(f"container {container.record.spec.name} has ended", phase="exited") from error
        raise


async def _launch(
    context: Context, pod: Pod, container: Container, one: Exec, folder: Path, *, operation: ExecStart
) -> tuple[AnyAnswer, list[int]]:
    level = context.levels.find(pod.record.spec.level)
    plan = conmon.ConmonPlan(
        program=context.conmon,
        runtime=_runtime(context, pod, level.runtime, operation),
        container=container.id,
        unique=one.exec_id,
        bundle=str(folder),
        folder=str(folder),
        exit_folder=str(folder),
        terminal=operation.process.terminal,
        stdin=operation.process.stdin,
        exec_spec=str(folder / "process.json"),
        exec_attach=operation.attach,
    )
    supervised = await context.launcher(level.runtime).supervise(plan)
    connection = None
    try:
        if operation.attach:
            connection = await _attach(supervised, folder)
            inputs.hold(one.held, operation.process, connection, context.peer)
        one.pid = await supervised.pid()
        one.conmon_pid = supervised.child.pid
        # An exec may be over by now; its exit file tells.
        one.start_ticks = pidfd.start_ticks(one.pid) or 0
        number = pidfd.open_pidfd(one.conmon_pid)
        if number is None:
            _ended(context, container, one, folder)
        else:
            watching.on_end(number, lambda: _ended(context, container, one, folder))
    except BaseException:
        inputs.drop(one.held)
        if connection is not None:
            os.close(connection)
        raise
    finally:
        supervised.close()
    return Started(one.pid), [] if connection is None else [connection]


def _runtime(context: Context, pod: Pod, runtime: Runtime, operation: ExecStart) -> Runtime:
    """The level's runtime; at level ``namespace`` started by casemate-vm, which gives conmon's pipes to the process's
    user: /dev/stdout could be written to and not be opened (a container's first process has it from the runtime)."""
    shim, user = context.settings.text("microvm.shim"), operation.process.user
    if pod.record.spec.level != "namespace" or operation.process.terminal or not os.access(shim, os.X_OK):
        return runtime
    owner = f"{pod.record.first_id + user.uid}:{pod.record.first_id + user.gid}"
    return dataclasses.replace(runtime, program=shim, before=("stdio", owner, runtime.program, *runtime.before))


async def _attach(supervised: Supervised, folder: Path) -> int:
    """conmon waits twice: before it makes its socket, and until the client has connected to that."""
    supervised.go()
    try:
        await supervised.attach_ready()
        connection = containers.attach_socket(folder)
    except BaseException:
        await supervised.end()
        raise
    supervised.go()
    return connection.detach()


def _ended(context: Context, container: Container, one: Exec, folder: Path) -> None:
    inputs.drop(one.held)
    code, _finished, _reason = watching.read_exit(folder / container.id)
    container.execs.pop(one.exec_id, None)
    remove_small(folder)
    context.emit(ExecEnded(container.id, one.exec_id, code))


def kill(container: Container, exec_id: str, number: int) -> None:
    """Send a signal to an exec's process; raises :class:`ExecMissing`."""
    one = find(container, exec_id)
    if not one.pid or not pidfd.send_signal(one.pid, one.start_ticks, number):
        raise ExecMissing(f"exec {exec_id[:12]} has ended", exec_id=exec_id)


def find(container: Container, exec_id: str) -> Exec:
    """Raises :class:`ExecMissing`."""
    one = container.execs.get(exec_id)
    if one is None:
        raise ExecMissing(f"exec {exec_id[:12]} is not in container {container.record.spec.name}", exec_id=exec_id)
    return one


def adopt(context: Context, container: Container) -> None:
    """After a restart of hostd: watch the execs that go on, tell the end of those that ended meanwhile."""
    place = context.folders.bundle(container.id) / "e"
    for name in _names(place):
        folder = place / name
        one = Exec(name, container.id)
        container.execs[name] = one
        with contextlib.suppress(OSError, ValueError):
            one.pid = int((folder / "pid").read_text())
            one.start_ticks = pidfd.start_ticks(one.pid) or 0
        number = _conmon_of(one.pid) if one.start_ticks else None
        if number is None:
            _ended(context, container, one, folder)
        else:
            watching.on_end(number, _ender(context, container, one, folder))


def _ender(context: Context, container: Container, one: Exec, folder: Path) -> object:
    return lambda: _ended(context, container, one, folder)


def _conmon_of(pid: int) -> int | None:
    """A pidfd of the parent of *pid*, when that is a conmon."""
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
        parent = int(data[data.rindex(b")") + 2 :].split()[1])
        if Path(f"/proc/{parent}/comm").read_text().strip() != "conmon":
            return None
    except (OSError, ValueError):
        return None
    return pidfd.open_pidfd(parent)


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(one.name for one in folder.iterdir() if len(one.name) == 64)
    return []
