"""From an operation of the protocol to who does it: one place, one match."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from casemate.host import pidfd
from casemate.hostd import (
    calls,
    checks,
    containers,
    execs,
    files,
    kernels,
    layers,
    leftovers,
    machinelimits,
    observing,
    pods,
    protocol,
    protocol_firewall,
    protocol_keeping,
    protocol_visibility,
)
from casemate.hostd.context import Context
from casemate.hostd.errors import ProtocolViolated, WrongState
from casemate.hostd.grants import NOBODY, Caller, caller_of
from casemate.hostd.protocol import AnyAnswer, AnyOperation, Created, Done, Started, Warnings, Welcome
from casemate.hostd.state import Container, Pod
from casemate.spec.errors import ProgramFailed

Answered = tuple[AnyAnswer, list[int]]
#: The name that casemated gives its API's socket below ``paths.run``.
API_SOCKET = "api.sock"
#: How runtimes (runsc of a process and of its sandbox, casemate-vm) say that who is to get a signal has ended, which
#: its conmon has perhaps not told yet.
_GONE = ("no such process", "sandbox is not running", "connecting to control server", "container not running")


class Operations:
    """Does the operations; locks the pod that each is about."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def handle(self, operation: AnyOperation, fds: list[int]) -> Answered:
        """The answer to *operation* and descriptors for the peer; what it takes of *fds* it removes there."""
        context = self._context
        match operation:
            case protocol.Hello():
                return self._hello(), []
            case protocol.Observe():
                return observing.observe(context, operation.after_pod, operation.limit), []
            case protocol.Doctor():
                return protocol.Findings(tuple(await leftovers.doctor(context, operation.pods))), []
            case protocol.Prune():
                return protocol.Findings(tuple(await leftovers.prune(context, operation))), []
            case (
                protocol.LayerAdopt()
                | protocol.LayerList()
                | protocol.LayerRemove()
                | protocol.VolumeCreate()
                | protocol.VolumeRemove()
                | protocol.VolumeList()
            ):
                return await layers.handle(context, operation), []
            case protocol.KernelAdopt() | protocol.KernelList() | protocol.KernelUse() | protocol.KernelRemove():
                return await kernels.handle(context, operation, fds), []
            case (
                protocol_firewall.FirewallReplace()
                | protocol_firewall.FirewallChange()
                | protocol_firewall.FirewallAnswer()
                | protocol_firewall.FirewallForget()
                | protocol_firewall.PodHold()
                | protocol_firewall.PodRelease()
                | protocol_firewall.FlowsCut()
                | protocol_firewall.FirewallObserve()
            ):
                return await context.firewall.handle(operation, fds), []
            case protocol_visibility.FlowsWatch() | protocol_visibility.ResolverListen():
                return await context.visibility.handle(operation)
            case protocol_keeping.RelayAttach():
                return Done(), [await context.keeping.relay.attach(anew=operation.anew)]
            case protocol_keeping.PodProbe():
                return await context.keeping.probe(operation), []
            case protocol.ContainerStats():
                return await observing.stats(context, operation.containers), []
            case _:
                return await self._on_pod(operation, fds)

    async def _on_pod(self, operation: AnyOperation, fds: list[int]) -> Answered:
        """Operations on a pod, and those that put a container into one."""
        context = self._context
        match operation:
            case protocol.PodCreate():
                pod, warnings = await pods.create(context, operation.pod, self._caller(fds))
                return pods.ready(context, pod, warnings), []
            case protocol.PodRemove():
                await self._pod_remove(operation)
                return Done(), []
            case protocol.PodUpdate():
                async with self._pod(operation.pod) as pod:
                    return Warnings(tuple(await machinelimits.update_pod(context, pod, operation.resources))), []
            case protocol.ContainerCreate():
                caller = self._caller(fds)
                async with self._pod(operation.container.pod) as pod:
                    container, warnings = await containers.create(context, pod, operation.container, caller)
                    return _created(pod, container, warnings), []
            case protocol.ContainerRun():
                return await self._run(operation, self._caller(fds))
            case _:
                return await self._on_container(operation, fds)

    async def _on_container(self, operation: AnyOperation, fds: list[int]) -> Answered:
        """Operations on one container that exists."""
        context = self._context
        match operation:
            case protocol.ContainerRemove():
                await self._container_remove(operation)
                return Done(), []
            case protocol.ContainerStart():
                async with self._container(operation.container) as (pod, container):
                    return await self._start(pod, container, operation.attach)
            case protocol.ContainerKill():
                return await self._kill(operation), []
            case protocol.ContainerPause() | protocol.ContainerUnpause():
                async with self._container(operation.container) as (pod, container):
                    await self._freeze(pod, container, isinstance(operation, protocol.ContainerPause))
                return Done(), []
            case protocol.ContainerUpdate():
                async with self._container(operation.container) as (pod, container):
                    return Warnings(tuple(await self._update(pod, container, operation))), []
            case protocol.ExecStart():
                async with self._container(operation.container) as (pod, container):
                    return await execs.start(context, pod, container, operation)
            case (
                protocol.ContainerTop()
                | protocol.ContainerAttach()
                | protocol.ContainerResize()
                | protocol.ContainerLog()
                | protocol.ContainerReadFile()
                | protocol.ContainerArchive()
                | protocol.ContainerExtract()
                | protocol.ContainerDiff()
                | protocol.ExecKill()
            ):
                pod, container = context.state.container(operation.container)
                return await files.handle(context, pod, container, operation, fds)
            case _:
                # Every other operation was taken before; a new one that nobody takes ends here.
                raise ProtocolViolated(f"operation {operation.__struct_config__.tag} is not served")

    def _hello(self) -> Welcome:
        context = self._context
        facts = {
            "kernel": os.uname().release,
            "machine": context.facts.machine,
            "cgroups": f"v{context.cgroups.version}",
            "conmon": context.conmon,
            "id_shift": str(context.id_shift),
        }
        allowed = calls.offered(context.facts.machine, context.gvisor_calls)
        return Welcome(protocol.PROTOCOL_VERSION, context.boot_id, context.levels.describe(), facts, allowed)

    def _caller(self, fds: list[int]) -> Caller:
        """Who asks: the first descriptor, where there is one; it is closed with the rest of the message."""
        if not fds:
            return NOBODY
        if len(fds) > 1:
            raise ProtocolViolated(f"{len(fds)} descriptors; this operation takes at most the caller's")
        api = Path(self._context.settings.text("paths.run")) / API_SOCKET
        return caller_of(fds[0], api, self._context.settings)

    @contextlib.asynccontextmanager
    async def _pod(self, pod: str) -> AsyncGenerator[Pod]:
        found = self._context.state.pod(pod)
        async with found.lock:
            # While we waited it may have been removed.
            yield self._context.state.pod(pod)

    @contextlib.asynccontextmanager
    async def _container(self, container: str) -> AsyncGenerator[tuple[Pod, Container]]:
        pod, _ = self._context.state.container(container)
        async with pod.lock:
            yield self._context.state.container(container)

    async def _run(self, operation: protocol.ContainerRun, caller: Caller) -> Answered:
        context, spec = self._context, operation.container
        own = operation.pod is not None
        warnings: list[str] = []
        if operation.pod is not None:
            # Before anything is made: most refusals are of the container.
            checks.check_container(spec, operation.pod, caller, context.state, context.layers.has)
            pod, warnings = await pods.create(context, operation.pod, caller, spec)
        else:
            pod = context.state.pod(spec.pod)
        async with pod.lock:
            try:
                container, said = await containers.create(context, context.state.pod(spec.pod), spec, caller)
                warnings += said
                if not operation.start:
                    fds = [containers.attach(context, container)] if operation.attach else []
                    return _created(pod, container, warnings), fds
                answer = _created(pod, container, warnings)
                try:
                    _, fds = await self._start(pod, container, operation.attach)
                except BaseException:
                    await containers.discard(context, pod, container)
                    raise
                return answer, fds
            except BaseException:
                if own and not pod.containers and pod.id in context.state.pods:
                    await pods.discard(context, pod)
                raise

    async def _start(self, pod: Pod, container: Container, attach: bool) -> Answered:
        context = self._context
        if container.record.phase == "exited":
            await containers.revive(context, pod, container)
        connection = containers.attach(context, container) if attach else None
        try:
            pid = container.record.process.pid if container.record.process else 0
            await containers.start(context, pod, container)
        except BaseException:
            if connection is not None:
                os.close(connection)
            raise
        return Started(pid), [connection] if connection is not None else []

    async def _pod_remove(self, operation: protocol.PodRemove) -> None:
        context = self._context
        found = context.state.pods.get(operation.pod)
        if found is None:
            return
        async with found.lock:
            if operation.pod not in context.state.pods:
                return
            if operation.force:
                for container in list(found.containers.values()):
                    await containers.remove(context, found, container, force=True)
            await pods.remove(context, found)

    async def _container_remove(self, operation: protocol.ContainerRemove) -> None:
        context = self._context
        found = context.state.containers.get(operation.container)
        if found is None:
            return
        pod = context.state.pods[found.record.spec.pod]
        async with pod.lock:
            if operation.container in context.state.containers:
                await containers.remove(context, pod, found, force=operation.force)
            if operation.pod and not pod.containers and pod.id in context.state.pods:
                await pods.remove(context, pod)

    async def _kill(self, operation: protocol.ContainerKill) -> AnyAnswer:
        """Needs no lock, and takes none: a signal must reach a container whose pod something else waits for."""
        context = self._context
        pod, container = context.state.container(operation.container)
        process = container.record.process
        if container.record.phase not in ("created", "running") or process is None:
            raise WrongState(f"container {container.record.spec.name} does not run", phase=container.record.phase)
        level = context.levels.find(pod.record.spec.level)
        # KILL is the host's where its cgroup holds all: a sandbox that is paused takes no signal.
        in_cgroup = level.features.in_cgroup(pod.record.spec, container.record.spec)
        if level.features.processes == "runtime" and not (operation.signal == 9 and in_cgroup):
            argv = level.runtime.kill(container.id, operation.signal, every=operation.all_processes)
            try:
                await context.launcher(level.runtime).run(argv)
            except ProgramFailed as error:
                if any(words in error.detail for words in _GONE):
                    raise WrongState(f"container {container.record.spec.name} has ended", phase="exited") from error
                raise
            return Done()
        path = f"{context.pod_cgroup(pod.id)}/{container.id}"
        if operation.all_processes:
            for pid in context.cgroups.pids(path):
                begun = pidfd.start_ticks(pid)
                if begun is not None:
                    pidfd.send_signal(pid, begun, operation.signal)
        elif not pidfd.send_signal(process.pid, process.start_ticks, operation.signal):
            raise WrongState(f"container {container.record.spec.name} has ended", phase="exited")
        if operation.signal == 9 and context.cgroups.is_frozen(path):
            # A paused process dies only once it is thawed.
            context.cgroups.freeze(path, False)
        return Done()

    async def _freeze(self, pod: Pod, container: Container, frozen: bool) -> None:
        context = self._context
        if container.record.phase != "running":
            raise WrongState(f"container {container.record.spec.name} does not run", phase=container.record.phase)
        path = f"{context.pod_cgroup(pod.id)}/{container.id}"
        level = context.levels.find(pod.record.spec.level)
        if not level.features.in_cgroup(pod.record.spec, container.record.spec):
            if observing.is_paused(context, pod, container) == frozen:
                raise WrongState(f"container {container.record.spec.name} is {'' if frozen else 'not '}paused")
            argv = level.runtime.pause(container.id) if frozen else level.runtime.resume(container.id)
            await context.launcher(level.runtime).run(argv)
            return
        if context.cgroups.is_frozen(path) == frozen:
            raise WrongState(f"container {container.record.spec.name} is {'' if frozen else 'not '}paused")
        if frozen and level.inside is not None:
            await level.inside.pausing(container.id)
        context.cgroups.freeze(path, frozen)

    async def _update(self, pod: Pod, container: Container, operation: protocol.ContainerUpdate) -> list[str]:
        context, new = self._context, operation.resources
        spec = container.record.spec
        both = pods.merged(spec.resources, new)
        checks.check_resources(both)
        path = f"{context.pod_cgroup(pod.id)}/{container.id}"
        level = context.levels.get(pod.record.spec.level)
        warnings: list[str] = []
        if level is not None and level.inside is not None and container.record.phase == "running":
            warnings = await level.inside.update(container.id, new)
        in_cgroup = level is None or level.features.in_cgroup(pod.record.spec, spec)
        if in_cgroup and context.cgroups.exists(path):
            warnings += context.cgroups.set_limits(path, pods.limits(new, None if level is None else level.features))
        warnings += [] if level is None else containers.about_pids(level, pod, container, new)
        warnings += machinelimits.hold(context, pod, container, new)
        record = msgspec.structs.replace(container.record, spec=msgspec.structs.replace(spec, resources=both))
        container.record = record
        context.records.write_container(record)
        return warnings


def _created(pod: Pod, container: Container, warnings: list[str]) -> Created:
    record = container.record
    return Created(
        record.process.pid if record.process else 0,
        record.conmon.pid if record.conmon else 0,
        pod.record.first_id,
        tuple(warnings),
    )
