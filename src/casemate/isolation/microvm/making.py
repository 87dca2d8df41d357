"""A container is made: its machine is found or cloned, its folders and root attached, its process set up.

What is taken on the way (a tap, a cgroup of the engine's, shares, the machine) is given back when a step fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.host import cgroups, hierarchy
from casemate.isolation.microvm import bundles, config, copying, engines, frames, hostvalues, shares, takeover
from casemate.isolation.microvm.answers import command_error, is_null
from casemate.isolation.microvm.errors import AgentFailed, BundleUnsupported, MonitorFailed, NetworkFailed
from casemate.isolation.microvm.frames import Kind, Tag
from casemate.isolation.microvm.machine import Machine
from casemate.isolation.microvm.machines import Machines
from casemate.isolation.microvm.oci import Config, Resources
from casemate.isolation.microvm.origin import asked
from casemate.isolation.microvm.records import SAME_IDS, ContainerRecord, Ids
from casemate.isolation.microvm.shares import Share
from casemate.spec.errors import CasemateError


@dataclass(frozen=True, slots=True)
class Order:
    """What casemate-vm asked for: the container's *name*, its *bundle* and what that says, the *waiter*'s pid, the
    standard files, seccomp's *program*, the engine's *cgroup* (empty for our own pods) and *root*, and the
    *document* that *wanted* was read from."""

    name: str
    bundle: Path
    wanted: Config
    waiter: int
    fds: Sequence[int]
    program: bytes
    cgroup: str
    root: str = ""
    document: bytes = b""


async def make(machines: Machines, order: Order) -> None:
    """The container, in the state created. Nothing of it is left when it fails."""
    wanted, name = order.wanted, order.name
    contents = bundles.contents(wanted, order.bundle)
    shared, names = bundles.shared(wanted, order.bundle, name)
    machine, joined, takes_network = await _machine(machines, order, shared)
    machine.starting.add(name)
    try:
        if not joined and (limits := bundles.pod_limits(wanted)):
            await machine.limit("", limits)
        await _restore(machine, name, wanted.annotations.get(bundles.WRITABLE, ""))
        channel = machine.next_channel()
        machine.monitor.attach(channel, order.fds)
        fields = config.create_fields(
            wanted,
            name,
            channel,
            contents=contents,
            seccomp=order.program,
            shared=names,
            join_pids=_shared_with(machine, wanted, joined=joined),
            stdin=wanted.process.terminal or not is_null(order.fds[0]),
        )
        fields += engines.start_hooks(name, str(order.bundle), wanted, order.waiter)
        try:
            await machine.monitor.ask(Kind.CREATE, fields)
        except AgentFailed as error:
            raise command_error(error) from error
        if order.cgroup:
            # Not before: what is to be slow is the container, not the making of its machine.
            await limit_on_host(order.cgroup, wanted.linux.resources, wanted.annotations)
        if engines.netns(wanted) != engines.NONE:
            bundles.keep(machine.folder, name, order.document)
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        machine.put(
            ContainerRecord(
                name,
                str(order.bundle),
                order.waiter,
                "created",
                channel,
                created=created,
                annotations=wanted.annotations,
                takes_network=takes_network,
                cgroup=order.cgroup,
                shares=tuple(one.name for one in shared),
                root=order.root,
                rootfs=str(order.bundle / wanted.root.path),
            )
        )
    except BaseException as error:
        if isinstance(error, CasemateError) and machine.monitor.ended.is_set():
            await machine.explain(error)
        if joined:
            await leave(machine, name, [one.name for one in shared])
        else:
            await machines.end(machine)
        raise
    finally:
        machine.starting.discard(name)


async def _machine(machines: Machines, order: Order, shared: Sequence[Share]) -> tuple[Machine, bool, bool]:
    """The container's machine with its root in it; whether it was there before; whether it takes over a network."""
    wanted, name, layers = order.wanted, order.name, bundles.layers(order.wanted)
    below = bundles.root_is_below(wanted)
    with contextlib.ExitStack() as stack:
        netns_fd = netns_of(stack, order.waiter) if engines.netns(wanted) != engines.NONE else None
        netns = 0 if netns_fd is None else os.fstat(netns_fd).st_ino
        begun = None if netns else await machines.early.take(name)
        if begun is not None:
            return begun, False, False
        machine = await _living(machines, wanted, netns)
        host_cgroups = bundles.cgroups(wanted) or _join_cgroup(order.cgroup, order.waiter)
        if machine is not None:
            _check_same_ids(machine, bundles.ids(wanted))
            # From now on the end of the last that is in it is not the machine's.
            machine.starting.add(name)
            try:
                upper = bundles.upper_bytes(wanted)
                await machines.join(machine, name, layers, shared=shared, below=below, upper_bytes=upper)
            except BaseException:
                machine.starting.discard(name)
                raise
            return machine, True, False
        machine = await _new(machines, name, wanted, shared, cgroups=host_cgroups, netns_fd=netns_fd)
        if netns or order.cgroup:
            machine.set_engine(netns, order.cgroup)
        return machine, False, netns_fd is not None


async def _new(
    machines: Machines,
    name: str,
    wanted: Config,
    shared: Sequence[Share],
    *,
    cgroups: tuple[str, ...],
    netns_fd: int | None = None,
) -> Machine:
    """A machine of its own, with the container's root in it."""
    with contextlib.ExitStack() as stack:
        scratch = wanted.annotations.get(bundles.SCRATCH, "")
        scratch_fd = os.open(scratch, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW) if scratch else None
        if scratch_fd is not None:
            stack.callback(os.close, scratch_fd)
        return await machines.create(
            name,
            bundles.layers(wanted),
            hostname=wanted.hostname,
            memory_bytes=bundles.memory(wanted, machines.settings.memory_bytes),
            network=bundles.network(wanted),
            cgroups=cgroups,
            ids=bundles.ids(wanted),
            shared=shared,
            below=bundles.root_is_below(wanted),
            netns_fd=netns_fd,
            cards=1 if netns_fd is None else await takeover.cards(netns_fd),
            pod=wanted.annotations.get(bundles.POD, "") or _free_name(machines, name),
            more=wanted.annotations.get(bundles.MORE) == "1",
            origin=asked(wanted.annotations.get(bundles.TEMPLATE, ""), machines.settings.template),
            scratch_fd=scratch_fd,
            upper_bytes=bundles.upper_bytes(wanted),
            cpu_limited=_is_cpu_limited(wanted),
        )


def begin(machines: Machines, name: str, bundle: Path) -> None:
    """Begin the machine of a bundle of ours, which :func:`make` is to be asked for next: QEMU starts while conmon and
    casemate-vm do. Where the pod has one already nothing is begun. Raises :class:`BundleUnsupported`."""
    wanted = bundles.read(bundle)
    if machines.get(wanted.annotations.get(bundles.POD, "")) is not None or engines.netns(wanted) != engines.NONE:
        return
    shared, _ = bundles.shared(wanted, bundle, name)
    machines.early.begin(name, lambda: _new(machines, name, wanted, shared, cgroups=bundles.cgroups(wanted)))


def _shared_with(machine: Machine, wanted: Config, *, joined: bool) -> str:
    waiters = {one.pid: one.id for one in machine.record.containers if one.status != "stopped"} if joined else {}
    return engines.shared_with(engines.check_namespaces(wanted), waiters)


def _is_cpu_limited(wanted: Config) -> bool:
    cpu = wanted.linux.resources.cpu
    if cpu is not None and (cpu.cpus or (cpu.quota is not None and cpu.quota > 0)):
        return True
    return any(name == "cpu.max" for name, _ in bundles.pod_limits(wanted))


def _free_name(machines: Machines, container: str) -> str:
    """The container's name, unless a machine that it was the first of still goes by it."""
    if machines.get(container) is None:
        return container
    return f"{container[:50]}.{secrets.token_hex(6)}"


async def _living(machines: Machines, wanted: Config, netns: int) -> Machine | None:
    """The machine of the bundle's pod, if it runs: the one that is named, or has taken over the same network.

    So the containers of a pod of Kubernetes' or Podman's share one, and those of ``--network container:NAME``.
    """
    machine = machines.get(wanted.annotations.get(bundles.POD, ""))
    if netns:
        machine = next((one for one in machines.all() if one.record.netns == netns), None)
    if machine is not None and machine.monitor.ended.is_set():
        # It broke down with all that was in it, whose ends are known.
        await machines.end(machine)
        return None
    return machine


async def leave(machine: Machine, container: str, names: Sequence[str]) -> None:
    """Take *container* out of a machine that goes on with others, or has just ended with them."""
    if machine.monitor.ended.is_set():
        return
    with contextlib.suppress(AgentFailed, MonitorFailed):
        await machine.monitor.ask(Kind.REMOVE, [frames.text(Tag.CONTAINER, container)])
    await shares.detach(machine.qemu, names)


async def _restore(machine: Machine, container: str, path: str) -> None:
    """Put back what the container wrote before it was stopped, before anything of it runs."""
    if not path:
        return
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        await copying.copy(machine, container, "restore", "/", number)
    finally:
        os.close(number)


def netns_of(stack: contextlib.ExitStack, pid: int) -> int:
    """The network namespace of the waiter *pid*, which must not be our own."""
    try:
        number = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkFailed(f"the network namespace of process {pid}: {error.strerror}") from error
    stack.callback(os.close, number)
    if os.fstat(number).st_ino == Path("/proc/self/ns/net").stat().st_ino:
        raise BundleUnsupported("the bundle's network namespace is the host's, which a virtual machine cannot share")
    return number


def _check_same_ids(machine: Machine, ids: Ids | None) -> None:
    """Containers that share a machine share its map of users."""
    if machine.record.ids is not None and machine.record.ids != (ids or SAME_IDS):
        raise BundleUnsupported("the container's id mappings are not those of the machine that it would join")


def _join_cgroup(path: str, waiter: int) -> tuple[str, ...]:
    """The engine's cgroup on the host, with the waiter in it: where its figures are read. What the machine joins."""
    if not path:
        return ()
    found = hierarchy.detect()
    found.create(path)
    found.join(path, waiter)
    return tuple(found.folders(path))


async def limit_on_host(path: str, wanted: Resources, annotations: Mapping[str, str]) -> None:
    """Set an engine's limits on the container's cgroup. In a thread: a set of cpus takes the kernel milliseconds."""
    folders = hierarchy.detect().folders(path)
    await asyncio.to_thread(hostvalues.apply, folders, wanted, annotations)


def has_cgroup(machines: Machines, path: str) -> bool:
    """Whether a machine, or a container in one, is in the cgroup *path*: it goes with the last of them."""
    return any(path in (one.record.cgroup, *(of.cgroup for of in one.record.containers)) for one in machines.all())


def check_cgroup(path: str) -> None:
    """Whatever is in a container's cgroup ends with it: nothing of others may be there. :class:`BundleUnsupported`."""
    if path and (found := hierarchy.detect().pids(path)):
        raise BundleUnsupported(f"the container's cgroup {path} is not empty: {len(found)} process(es) found")


async def end_cgroup(path: str, parent: str) -> None:
    """Kill what is in the cgroup, and remove it; and *parent*, which is ours, after the last one in it."""
    if not path:
        return
    with contextlib.suppress(CasemateError):
        found = hierarchy.detect()
        await cgroups.end(found, path)
        if path.startswith(f"{parent}/"):
            cgroups.remove_empty(found.folders(parent))


async def take_network(machine: Machine, one: ContainerRecord) -> None:
    with contextlib.ExitStack() as stack:
        found = await takeover.take(netns_of(stack, one.pid))
    # Nothing found: the guest's card goes down, and only loopback is left.
    if not found:
        await machine.monitor.ask(Kind.NETWORK, [], error=NetworkFailed)
    for number, interface in enumerate(found):
        name = frames.text(Tag.CARD_NAME, interface.link.name)
        fields = [frames.u32(Tag.CARD, number), name, *interface.fields()]
        await machine.monitor.ask(Kind.NETWORK, fields, error=NetworkFailed)
