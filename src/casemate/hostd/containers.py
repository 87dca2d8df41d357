"""Containers: made, started, ended, taken away.

As with pods, :func:`discard` takes away whatever is there and can be repeated. What is recorded before which effect
stands in docs/decisions/0034.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import stat
import time
from pathlib import Path

import msgspec

from casemate.host import cgroups, pidfd
from casemate.hostd import checks, inputs, machinefiles, machinelimits, mounting, pods
from casemate.hostd.context import Context
from casemate.hostd.errors import WrongState
from casemate.hostd.grants import Caller
from casemate.hostd.housekeeping import keep_generation
from casemate.hostd.records import ContainerRecord, ProcessRecord, remove_small
from casemate.hostd.state import Container, Pod, changed
from casemate.hostd.watching import forget, wait_ended, watch
from casemate.isolation import conmon
from casemate.isolation.bundle import BundleInput
from casemate.isolation.level import IsolationLevel, LevelLacks, Runtime, is_lone
from casemate.network import links
from casemate.spec.errors import CasemateError, ProgramFailed, TimedOut
from casemate.spec.workload import ContainerSpec, Resources

#: After KILL a process is gone at once, or waits for a device.
_KILL_WAIT_S = 10.0
#: conmon rotates at half of the log's bound: two generations are kept (see housekeeping). The least that it takes.
_LEAST_LOG_BYTES = 4096


async def create(context: Context, pod: Pod, spec: ContainerSpec, caller: Caller) -> tuple[Container, list[str]]:
    """Make the container; nothing of its image has run. The caller holds the pod's lock. Undone when it fails."""
    checks.check_container(spec, pod.record.spec, caller, context.state, context.layers.has)
    if pod.record.phase != "ready":
        raise WrongState(f"pod {pod.id[:12]} is {pod.record.phase}", pod=pod.id)
    if pod.record.id_shift != context.id_shift:
        # Its layers would be mounted in one way, and were converted for the other.
        raise WrongState(
            f"pod {pod.record.spec.name} was made when userns.idmap, or the kernel, was another",
            remedy="Make the pod anew; the containers that it has can be started.",
            pod=pod.id,
        )
    # The bound of now, recorded: what a container is made of must not change with the settings.
    bound = spec.writable_bytes or context.settings.number("limits.writable_bytes")
    spec = msgspec.structs.replace(spec, writable_bytes=bound)
    record = ContainerRecord(spec, "creating", context.boot_id, caller=caller.record())
    container = context.state.add_container(pod, record)
    try:
        context.records.write_container(record)
        context.step("container.recorded")
        warnings = await prepare(context, pod, container)
    except BaseException:
        await discard(context, pod, container)
        raise
    return container, warnings


async def prepare(context: Context, pod: Pod, container: Container) -> list[str]:
    """Mounts, bundle, cgroup, conmon and the runtime's ``create``: for a new container and for one that exited.

    What an earlier start left is taken away first. Afterwards the phase is ``created``.
    """
    level = context.levels.find(pod.record.spec.level)
    spec = container.record.spec
    await machinefiles.keep(context, pod, container)
    await retire(context, pod, container)
    machinelimits.free(context, pod, container)
    warnings: list[str] = []
    if level.inside is not None:
        # Before the link is looked at: a machine that was kept ready and does not fit takes its tap along.
        warnings += await level.inside.prepare(pod.record.spec, spec)
    if not pods.is_built(context, pod):
        warnings += await pods.build(context, pod, spec)
        pods.set_phase(context, pod, "ready")
    _check_alone(pod, container, level)
    if level.features.takes_address and pod.record.spec.network.mode == "pod" and not _has_sandbox(level, pod):
        await links.give_address(pods.link(context, pod))
    binds, said = await mounting.mount(context, pod, container)
    # Mounted for a reader until now, perhaps: from here on it is the container's.
    container.lent = False
    warnings += said
    given = BundleInput(
        pod=pod.record.spec,
        container=spec,
        sandbox=pods.boundary(context, pod),
        rootfs=str(context.folders.rootfs(spec.id)),
        facts=context.facts,
        binds=tuple(binds),
        devices=mounting.device_nodes(spec.devices),
        writable=await machinefiles.writable(context, pod, container),
    )
    plan = level.bundle(given)
    warnings += plan.warnings
    (context.folders.bundle(spec.id) / "config.json").write_bytes(json.dumps(plan.config).encode())
    context.step("container.bundle")
    if level.inside is not None:
        await level.inside.enter(given)
        context.step("container.entered")
    runtime = dataclasses.replace(level.runtime, before=plan.before) if plan.before else level.runtime
    await _supervise(context, container, runtime)
    if level.inside is not None:
        await level.inside.created(spec)
    warnings += _limit(context, pod, container, level)
    warnings += machinelimits.hold(context, pod, container, spec.resources)
    context.step("container.limited")
    return list(warnings)


def _has_sandbox(level: IsolationLevel, pod: Pod) -> bool:
    """Whether a sandbox that containers join runs, which has the pod's address."""
    return level.inside is not None and level.inside.knows(pod.id)


def _limit(context: Context, pod: Pod, container: Container, level: IsolationLevel) -> list[str]:
    # After the runtime has joined the cgroup: crun 1.8 takes v1's memory limits away when it does. Nothing of the
    # image runs before the start, so nothing has run without its limits.
    spec, warnings = container.record.spec, []
    if level.features.in_cgroup(pod.record.spec, spec):
        path = f"{context.pod_cgroup(pod.id)}/{spec.id}"
        warnings += context.cgroups.set_limits(path, pods.limits(spec.resources, level.features))
    if spec.resources.pids != context.settings.number("limits.pids"):
        warnings += about_pids(level, pod, container, spec.resources)
    return warnings


def about_pids(level: IsolationLevel, pod: Pod, container: Container, wanted: Resources) -> list[str]:
    """A warning where a limit on processes is none on processes alone."""
    if level.features.pids_limit or wanted.pids in (None, -1):
        return []
    if not level.features.in_cgroup(pod.record.spec, container.record.spec):
        return [f"pids: at level {level.name} a pod's containers share one sandbox: limit the pod instead"]
    return [
        f"pids: at level {level.name} a sandbox that runs more than {wanted.pids} processes is ended as a whole, "
        f"by a limit of {level.features.tasks(wanted.pids)} tasks on the host"
    ]


def _check_alone(pod: Pod, container: Container, level: IsolationLevel) -> None:
    """Refuse a second container where it would be behind a wall of its own, without the network."""
    if level.features.shares_sandbox == "all":
        return
    for other in _alive(pod, container):
        if level.features.shares_sandbox == "none" or is_lone(pod.record.spec, other.record.spec):
            raise LevelLacks(
                f"pod {pod.record.spec.name} runs container {other.record.spec.name}, "
                f"and at level {level.name} that one runs alone",
                remedy="Make a pod for several: casemate pod create --isolation LEVEL NAME (needs casemate-vm).",
            )


def _alive(pod: Pod, container: Container) -> list[Container]:
    """The other containers of *pod* that run or can be started."""
    return [
        one for one in pod.containers.values() if one is not container and one.record.phase in ("created", "running")
    ]


async def _supervise(context: Context, container: Container, runtime: Runtime) -> None:
    spec = container.record.spec
    folder = str(context.folders.bundle(spec.id))
    plan = conmon.ConmonPlan(
        program=context.conmon,
        runtime=runtime,
        container=spec.id,
        unique=spec.id,
        bundle=folder,
        folder=folder,
        exit_folder=str(context.folders.exits),
        log_path=str(context.folders.log(spec.pod, spec.id)) if spec.log.keep else "",
        log_max_bytes=max(spec.log.max_bytes // 2, _LEAST_LOG_BYTES),
        terminal=spec.process.terminal,
        stdin=spec.process.stdin,
    )
    supervised = await context.launcher(runtime).supervise(plan)
    try:
        context.step("container.conmon")
        conmon_pid = supervised.child.pid
        pid = await supervised.pid()
        begun, conmon_begun = pidfd.start_ticks(pid), pidfd.start_ticks(conmon_pid)
        if begun is None or conmon_begun is None:
            await supervised.end()
            raise ProgramFailed(f"container {spec.id[:12]} ended while it was created", program=runtime.name)
    finally:
        supervised.close()
    container.ended.clear()
    record = changed(
        container,
        phase="created",
        boot_id=context.boot_id,
        conmon=ProcessRecord(conmon_pid, conmon_begun),
        process=ProcessRecord(pid, begun),
        exit_code=None,
        oom_killed=False,
        finished_at=0.0,
        reason="",
    )
    context.records.write_container(record)
    watch(context, container)
    if spec.log.keep:
        keep_generation(context, container)
    context.step("container.created")


async def revive(context: Context, pod: Pod, container: Container) -> None:
    """Prepare an exited container anew: afterwards it is ``created``, or ``exited`` as before when that fails."""
    try:
        await prepare(context, pod, container)
    except BaseException:
        await retire(context, pod, container)
        raise


async def start(context: Context, pod: Pod, container: Container) -> None:
    """Start a created container. The caller holds the pod's lock."""
    phase = container.record.phase
    if phase != "created":
        raise WrongState(f"container {container.record.spec.name} is {phase}, not created or exited", phase=phase)
    level = context.levels.find(pod.record.spec.level)
    try:
        mounting.demand_sources(context, container)
        # Nothing is awaited from here to the record: a firewall made anew publishes what is recorded as running.
        await pods.open_ports(context, pod)
        # Recorded before: a crash in between leaves "running", which the next start of hostd compares with the kernel.
        context.records.write_container(changed(container, phase="running", started_at=time.time()))
        context.step("container.starting")
        await context.launcher(level.runtime, starting=True).run(level.runtime.start(container.id))
    except CasemateError:
        await end(context, container)
        raise
    context.step("container.started")


async def end(context: Context, container: Container) -> None:
    """KILL what runs of *container* and wait until its exit is recorded."""
    if container.record.phase not in ("created", "running") or container.record.process is None:
        return
    process = container.record.process
    path = f"{context.pod_cgroup(container.record.spec.pod)}/{container.id}"
    await _kill_in_sandbox(context, container)
    pidfd.send_signal(process.pid, process.start_ticks, signal.SIGKILL)
    with contextlib.suppress(CasemateError, OSError):
        # A frozen process dies when it is thawed.
        context.cgroups.freeze(path, False)
    try:
        await wait_ended(container, _KILL_WAIT_S)
    except TimedOut:
        # conmon itself hangs: what it supervises is dead, so nothing is lost with it.
        context.cgroups.kill(path)
        if container.record.conmon is not None:
            one = container.record.conmon
            pidfd.send_signal(one.pid, one.start_ticks, signal.SIGKILL)
        await wait_ended(container, _KILL_WAIT_S)


async def _kill_in_sandbox(context: Context, container: Container) -> None:
    """KILL what a container has in a sandbox that others share: there, the death of what stands for it is not its."""
    pod = context.state.pods[container.record.spec.pod]
    level = context.levels.get(pod.record.spec.level)
    if level is None or not level.features.shared_cgroup:
        return
    if level.features.in_cgroup(pod.record.spec, container.record.spec):
        return
    with contextlib.suppress(CasemateError):  # it, or the sandbox, has ended
        await context.launcher(level.runtime).run(level.runtime.kill(container.id, signal.SIGKILL, every=True))


async def retire(context: Context, pod: Pod, container: Container) -> None:
    """Take away what is only of a running container: the runtime's state, its cgroup, exit file and sockets."""
    level, spec = context.levels.get(pod.record.spec.level), pod.record.spec
    if level is None:
        pass  # the level is gone from this host, and what it had with it
    else:
        shared = not level.features.in_cgroup(spec, container.record.spec)
        if (level.inside is None or level.inside.knows(container.id)) and (shared or not level.features.state_is_files):
            await context.launcher(level.runtime).run(level.runtime.delete(container.id))
        if level.features.state_is_files:
            for path in level.runtime.state_files(container.id, spec.id if shared else ""):
                remove_small(Path(path))
    await cgroups.end(context.cgroups, f"{context.pod_cgroup(pod.id)}/{container.id}")
    if level is not None and level.inside is not None and not _alive(pod, container):
        await level.inside.leave(spec, context.pod_cgroup(pod.id))
    context.folders.exit_file(container.id).unlink(missing_ok=True)
    folder = context.folders.bundle(container.id)
    for name in ("attach", "ctl", "winsz", "oom", "pid", "config.json"):
        (folder / name).unlink(missing_ok=True)
    remove_small(folder / "e")


async def leave_machine(context: Context, pod: Pod, container: Container) -> None:
    """Keep what an ended container wrote, and take it out of its machine."""
    try:
        await machinefiles.keep(context, pod, container)
    finally:
        await retire(context, pod, container)


async def remove(context: Context, pod: Pod, container: Container, *, force: bool) -> None:
    """Take the container away; one that runs only with *force*. The caller holds the pod's lock."""
    if container.record.phase == "running" and not force:
        raise WrongState(f"container {container.record.spec.name} runs", remedy="Stop it first, or use --force.")
    context.records.write_container(_removing(container))
    context.step("container.removing")
    await discard(context, pod, container)


def _removing(container: Container) -> ContainerRecord:
    """The record to be written before a removal; the phase in memory stays, :func:`end` goes by it."""
    return msgspec.structs.replace(container.record, phase="removing")


async def discard(context: Context, pod: Pod, container: Container) -> None:
    """End and take away whatever there is of *container*, its record last. May be repeated."""
    await end(context, container)
    forget(container)
    if container.record.phase == "running":
        changed(container, phase="removing")
    pods.close_ports(context, pod)
    await retire(context, pod, container)
    context.step("container.retired")
    mounting.unmount(context, pod, container)
    context.step("container.unmounted")
    remove_small(context.folders.bundle(container.id))
    context.records.forget(context.folders.container_record(pod.id, container.id))
    throw(context, pod.id, container.id)
    context.state.remove_container(pod, container)
    context.step("container.gone")


def throw(context: Context, pod: str, container: str) -> None:
    """The container's state folder goes in one step; what it wrote is deleted later."""
    if context.trash.throw(context.folders.container_state(pod, container)):
        context.trash_waits.set()


def attach(context: Context, container: Container) -> int:
    """A connection to the container's conmon, for the peer."""
    connection = attach_socket(context.folders.bundle(container.id))
    try:
        inputs.hold(container.held, container.record.spec.process, connection.fileno(), context.peer)
    except BaseException:
        connection.close()
        raise
    return connection.detach()


def attach_socket(folder: Path) -> socket.socket:
    """A connection to the conmon that serves *folder*; through the folder's descriptor, since a socket's path may
    have no more than 107 bytes (unix(7))."""
    number = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{number}/attach")
    except OSError as error:
        connection.close()
        raise WrongState(f"conmon does not answer: {error.strerror}") from error
    finally:
        os.close(number)
    return connection


def resize(folder: Path, rows: int, columns: int) -> None:
    """Tell conmon the size of the terminal through its control FIFO; type 1 of its messages."""
    control(folder, f"1 {rows} {columns}\n")


def control(folder: Path, line: str) -> None:
    """Write one line to conmon's control FIFO; raises :class:`WrongState` when nobody reads it."""
    try:
        number = os.open(folder / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if not stat.S_ISFIFO(os.fstat(number).st_mode):
                raise WrongState("conmon's control file is no FIFO")
            os.write(number, line.encode())
        finally:
            os.close(number)
    except OSError as error:
        raise WrongState(f"conmon does not take messages: {error.strerror}") from error
