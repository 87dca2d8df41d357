"""Start, stop, kill, wait: what a container does between its record and its removal."""

from __future__ import annotations

import asyncio
import sqlite3

import msgspec

from casemate.hostd.client import HostdAway, HostdMismatch, ask
from casemate.hostd.protocol import (
    ContainerKill,
    ContainerPause,
    ContainerRun,
    ContainerStart,
    ContainerUnpause,
    Created,
    Done,
    Started,
    VolumeCreate,
)
from casemate.node import audit, events, images, journal, lookup, pods, ports, removal, resolve
from casemate.node.containers import until
from casemate.node.core import Caller, Core
from casemate.node.errors import ContainerNotFound, ContainerNotRunning, ContainerState
from casemate.node.rows import ALIVE, ContainerRow, PodRow, VolumeRow, encode, select, update
from casemate.node.signals import KILL, TERM, exit_reason, signal_number
from casemate.node.trust.rechecks import recheck, refuse_release, released
from casemate.spec.api import KillRequest, StopRequest, WaitAnswer
from casemate.spec.errors import CasemateError, TimedOut
from casemate.spec.workload import PodSpec

#: A start may have to mount a hundred layers on a loaded host.
START_TIMEOUT_S = 120.0
#: How long a process may take to be gone after KILL (uninterruptible I/O) before the API says so.
KILL_GRACE_S = 30.0


async def start(
    core: Core, reference: str, project: str, caller: Caller, *, attach: bool = False
) -> tuple[ContainerRow, int | None]:
    """Start a container; with *attach*, conmon's attach socket comes back, connected before the start.

    One that runs already is left alone (as in Docker). Raises what hostd refuses, :class:`PortTaken`,
    :class:`ContainerState`.
    """
    row = await core.db.read(lambda db: lookup.container(db, reference, project))
    async with core.lock(row.id):
        return await start_locked(core, row.id, caller, attach=attach)


async def start_or_remove(core: Core, reference: str, project: str, caller: Caller) -> None:
    """:func:`start`; a container with ``--rm`` that cannot be started is removed, as in Docker."""
    row = await core.db.read(lambda db: lookup.container(db, reference, project))
    try:
        await start(core, row.id, project, caller)
    except (HostdAway, TimedOut):
        raise
    except CasemateError:
        if row.auto_remove:
            await removal.remove_ended(core, row.id)
        raise


async def start_locked(core: Core, id_: str, caller: Caller, *, attach: bool) -> tuple[ContainerRow, int | None]:
    """:func:`start`, for who holds the container's lock."""
    row, pod = await core.db.read(lambda db: row_and_pod(db, id_))
    if row.status in ("running", "paused", "stopping"):
        return row, None
    if row.status in ("removing", "broken", "starting"):
        raise ContainerState(f"container {row.name} is {row.status}", status=row.status)
    row, pod = await recheck(core, row, pod, caller)
    listening = await asyncio.to_thread(ports.listening) if pod.the_request().network.ports else frozenset()
    intent_at = core.clock()
    spec = await core.db.write(lambda db: _begin(db, core, row, pod, listening=listening, at=intent_at))
    started = core.starting[id_] = asyncio.get_running_loop().create_future()
    try:
        return await _start(core, row, pod, spec, caller, attach=attach)
    finally:
        del core.starting[id_]
        started.set_result(None)
        core.changes.tell(id_)
        core.events.wake()


async def _start(
    core: Core, row: ContainerRow, pod: PodRow, spec: PodSpec, caller: Caller, *, attach: bool
) -> tuple[ContainerRow, int | None]:
    try:
        await _make_volumes(core, row)
        # Before the link comes up: nothing passes that policy has not seen.
        await core.policy.pod_up(row.pod)
        if core.keeping is not None:
            core.keeping.note(spec)
        if row.made:
            answered = await core.hostd.call(ContainerStart(row.id, attach=attach), timeout_s=START_TIMEOUT_S)
        else:
            wanted = row.the_spec()
            layers = await images.layers_now(core, row.image_digest, wanted.layers)
            wanted = msgspec.structs.replace(wanted, layers=layers)
            operation = ContainerRun(None if pod.made else spec, wanted, start=True, attach=attach)
            answered = await core.hostd.call(operation, descriptors=caller.descriptors(), timeout_s=START_TIMEOUT_S)
    except (HostdAway, TimedOut):
        raise  # nobody knows whether it started: the journal's entry stays, and the reconcile loop finds out
    except CasemateError as error:
        await _failed(core, row, error, caller)
        raise
    answer = answered.answer
    if not isinstance(answer, (Created, Started)):
        raise HostdMismatch(f"a start was answered by {type(answer).__name__}")
    descriptors = answered.take()
    row = await core.db.write(lambda db: _record_start(db, core, row, answer, caller))
    return row, descriptors[0] if descriptors else None


def row_and_pod(db: sqlite3.Connection, id_: str) -> tuple[ContainerRow, PodRow]:
    """The container and its pod; raises :class:`ContainerNotFound`."""
    found = select(db, ContainerRow, "WHERE id=?", id_)
    if not found:
        raise ContainerNotFound(f"container {id_[:12]} is not there", reference=id_)
    return found[0], pods.of(db, found[0])


def _begin(
    db: sqlite3.Connection, core: Core, row: ContainerRow, pod: PodRow, *, listening: ports.Listening, at: float
) -> PodSpec:
    """The intent, and the pod's specification with its ports."""
    spec = pod.the_spec()
    wanted = pod.the_request().network.ports
    if wanted and not pods.alive(db, pod.id, but=row.id):

        def pick(count: int) -> int:
            return int.from_bytes(core.random_bytes(4), "big") % count

        # What was chosen at the first start stays: hostd has it in its record.
        chosen = ports.reserve(db, pod.id, ports.chosen(spec) if pod.made else wanted, listening, pick)
        if not pod.made:
            spec = pods.with_ports(spec, resolve.published(chosen))
            db.execute("UPDATE pods SET spec=? WHERE id=?", (encode(spec), pod.id))
    journal.begin(db, "container.start", row.id, at)
    update(
        db, ContainerRow, row.id, status="starting", desired="running", intent_at=at, restart_at=0.0, reason="",
        oom_killed=0,
    )  # fmt: skip
    return spec


def _record_start(
    db: sqlite3.Connection, core: Core, row: ContainerRow, answer: Created | Started, caller: Caller
) -> ContainerRow:
    at = core.clock()
    update(
        db, ContainerRow, row.id, status="running", made=1, pid=answer.pid, started_at=at, finished_at=0.0,
        exit_code=None,
    )  # fmt: skip
    if isinstance(answer, Created):
        update(db, ContainerRow, row.id, conmon_pid=answer.conmon_pid)
        db.execute("UPDATE pods SET made=1, first_id=? WHERE id=?", (answer.first_id, row.pod))
        if answer.warnings:
            update(db, ContainerRow, row.id, warnings=encode((*row.the_warnings(), *answer.warnings)))
    journal.end_all(db, row.id)
    events.add(db, at, "container", row.id, "start", project=row.project, name=row.name, image=row.image)
    request = row.the_request()
    audit.append(
        db, at, caller.who, "container.start", row.id, name=row.name, grants=list(resolve.grants_needed(request)),
        uses=list(resolve.privileges(request)),
    )  # fmt: skip
    return row_and_pod(db, row.id)[0]


async def _failed(core: Core, row: ContainerRow, error: CasemateError, caller: Caller) -> None:
    """The start was refused or undone by hostd: back to where it was, with the reason."""
    problem = error.to_problem()
    code = problem.get("exit_code", 125)

    def work(db: sqlite3.Connection) -> None:
        at = core.clock()
        update(
            db, ContainerRow, row.id, status="exited" if row.made else "created", desired="stopped",
            exit_code=code if isinstance(code, int) else 125, reason=str(problem.get("detail", ""))[:2000],
            finished_at=at if row.made else 0.0,
        )  # fmt: skip
        journal.end_all(db, row.id)
        answer = "refused" if problem.get("status") == 403 else "failed"
        audit.append(
            db, at, caller.who, "container.start", row.id, answer=answer, name=row.name, code=problem.get("code"),
            grants=list(resolve.grants_needed(row.the_request())),
            uses=list(resolve.privileges(row.the_request())),
        )  # fmt: skip

    await core.db.write(work)


async def _make_volumes(core: Core, row: ContainerRow) -> None:
    """Make the volumes that hostd does not have yet."""
    query = "WHERE made=0 AND (project, name) IN (SELECT project, volume FROM container_volumes WHERE container=?)"
    for volume in await core.db.read(lambda db: select(db, VolumeRow, query, row.id)):
        await ask(core.hostd, VolumeCreate(volume.project, volume.name), Done)
        done = (volume.project, volume.name)
        await core.db.write(lambda db, done=done: _volume_made(db, done))  # type: ignore[misc]


def _volume_made(db: sqlite3.Connection, volume: tuple[str, str]) -> None:
    db.execute("UPDATE volumes SET made=1 WHERE project=? AND name=?", volume)


async def stop(core: Core, reference: str, project: str, request: StopRequest, caller: Caller) -> None:
    """Send the stop signal, wait, KILL. A container that does not run is left alone (as in Docker)."""
    row = await core.db.read(lambda db: lookup.container(db, reference, project))
    async with core.lock(row.id):
        stopped = await stop_locked(core, row.id, request, caller)
    if stopped and row.auto_remove:
        await until(core, row.id, lambda now: now is None, KILL_GRACE_S)


async def stop_locked(core: Core, id_: str, request: StopRequest, caller: Caller) -> bool:
    """:func:`stop`, for who holds the container's lock; False when nothing ran."""
    number = signal_number(request.signal) if request.signal else 0

    def begin(db: sqlite3.Connection) -> ContainerRow | None:
        row, _ = row_and_pod(db, id_)
        if row.status == "restarting":
            update(db, ContainerRow, id_, status="exited", desired="stopped", restart_at=0.0)
            return None
        if row.status not in ALIVE:
            return None
        update(db, ContainerRow, id_, status="stopping", desired="stopped")
        audit.append(db, core.clock(), caller.who, "container.stop", id_, name=row.name)
        return row

    row = await core.db.write(begin)
    core.changes.tell(id_)
    if row is None:
        return False
    timeout_s = request.timeout if request.timeout is not None else row.stop_timeout
    if row.status == "paused":
        await ask(core.hostd, ContainerUnpause(id_), Done)
    await _signal(core, id_, number or row.stop_signal)
    try:
        await until(core, id_, _is_over, timeout_s)
    except TimeoutError:
        await _signal(core, id_, KILL)
        try:
            await until(core, id_, _is_over, KILL_GRACE_S)
        except TimeoutError as error:
            raise TimedOut(f"container {row.name} still runs {KILL_GRACE_S:g} s after KILL") from error
    await core.db.write(lambda db: _told_stop(db, core, row))
    core.events.wake()
    return True


def _told_stop(db: sqlite3.Connection, core: Core, row: ContainerRow) -> None:
    events.add(db, core.clock(), "container", row.id, "stop", project=row.project, name=row.name)


def _is_over(row: ContainerRow | None) -> bool:
    return row is None or row.status not in ALIVE


async def _signal(core: Core, id_: str, number: int) -> None:
    """Send a signal; a process that is gone already is as good."""
    try:
        await ask(core.hostd, ContainerKill(id_, number), Done)
    except CasemateError as error:
        if error.to_problem().get("status") not in (404, 409):
            raise


async def kill(core: Core, reference: str, project: str, request: KillRequest, caller: Caller) -> None:
    """Send a signal to a running container's first process."""
    number = signal_number(request.signal)

    def begin(db: sqlite3.Connection) -> ContainerRow:
        row = lookup.container(db, reference, project)
        if row.status not in ALIVE:
            raise ContainerNotRunning(f"container {row.name} is {row.status}", status=row.status)
        if number in (KILL, TERM, row.stop_signal):
            update(db, ContainerRow, row.id, desired="stopped")
        at = core.clock()
        events.add(db, at, "container", row.id, "kill", project=project, name=row.name, signal=number)
        audit.append(db, at, caller.who, "container.kill", row.id, name=row.name, signal=number)
        return row

    row = await core.db.write(begin)
    core.events.wake()
    # hostd thaws a paused one that is to be killed.
    await ask(core.hostd, ContainerKill(row.id, number), Done)


async def restart(core: Core, reference: str, project: str, request: StopRequest, caller: Caller) -> None:
    """Stop, then start."""
    row = await core.db.read(lambda db: lookup.container(db, reference, project))
    async with core.lock(row.id):
        await stop_locked(core, row.id, request, caller)
        await start_locked(core, row.id, caller, attach=False)
        await core.db.write(lambda db: _told_restart(db, core, row))
    core.events.wake()


def _told_restart(db: sqlite3.Connection, core: Core, row: ContainerRow) -> None:
    events.add(db, core.clock(), "container", row.id, "restart", project=row.project, name=row.name)


async def pause(core: Core, reference: str, project: str, caller: Caller, *, frozen: bool) -> None:
    """Freeze or thaw every process of the container."""
    before, after = ("running", "paused") if frozen else ("paused", "running")
    row = await core.db.read(lambda db: lookup.container(db, reference, project))
    async with core.lock(row.id):
        row = (await core.db.read(lambda db: row_and_pod(db, row.id)))[0]
        if row.status != before:
            raise (ContainerNotRunning if frozen else ContainerState)(
                f"container {row.name} is {row.status}, not {before}", status=row.status
            )
        if not frozen:
            refuse_release(row, caller)
        await ask(core.hostd, ContainerPause(row.id) if frozen else ContainerUnpause(row.id), Done)

        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE containers SET status=? WHERE id=? AND status=?", (after, row.id, before))
            verb = "pause" if frozen else "unpause"
            if not frozen:
                released(db, row)
            at = core.clock()
            events.add(db, at, "container", row.id, verb, project=project, name=row.name)
            audit.append(db, at, caller.who, f"container.{verb}", row.id, name=row.name)

        await core.db.write(work)
    core.changes.tell(row.id)
    core.events.wake()


async def wait(core: Core, reference: str, project: str, condition: str) -> WaitAnswer:
    """How the container ended: at once when it does not run (``exited``), at its next end, or once it is removed."""
    if reference in core.endings:
        return core.endings[reference]
    row = await core.db.read(lambda db: lookup.container(db, reference, project))
    begun = row.finished_at

    def holds(now: ContainerRow | None) -> bool:
        if now is None or condition == "removed":
            return now is None
        if condition == "next-exit":
            return now.finished_at > begun
        return now.status in ("exited", "created", "broken")

    return ending(core, row.id, await until(core, row.id, holds))


async def wait_for_run(core: Core, id_: str, intent_at: float) -> WaitAnswer:
    """How the run that was intended at *intent_at* ended; for --rm, once the container is gone."""

    def over(now: ContainerRow | None) -> bool:
        return now is None or (now.finished_at >= intent_at and not now.auto_remove) or now.intent_at > intent_at

    return ending(core, id_, await until(core, id_, over))


def ending(core: Core, id_: str, row: ContainerRow | None) -> WaitAnswer:
    """The answer that *row*, or what is remembered of a removed one, gives."""
    if row is None:
        return core.endings.get(id_, WaitAnswer(exit_code=137, reason="removed"))
    code = row.exit_code if row.exit_code is not None else 0
    return WaitAnswer(code, bool(row.oom_killed), row.reason or exit_reason(code))
