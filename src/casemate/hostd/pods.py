"""Pods: made, taken away, and made good again after a reboot.

Each step can be repeated, and :func:`discard` takes away whatever is there: it serves removal, the undoing of what
failed, and recovery after a crash. So there is one way back, and it is used every day.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec

from casemate.host import cgroups, conntrack
from casemate.hostd import checks
from casemate.hostd.context import Context
from casemate.hostd.errors import WrongState
from casemate.hostd.grants import Caller
from casemate.hostd.protocol import PodReady
from casemate.hostd.protocol_firewall import FirewallRepaired
from casemate.hostd.records import PodRecord, remove_small
from casemate.hostd.state import Pod
from casemate.isolation.bundle import Sandbox
from casemate.isolation.level import Features
from casemate.isolation.namespace import sandbox
from casemate.network import links, plan
from casemate.spec.errors import CasemateError
from casemate.spec.workload import ContainerSpec, PodSpec, Resources, TmpfsMount

log = logging.getLogger("casemate.hostd")

IDS = 65_536
_EXACT = Features(processes="host", state_is_files=True)


async def create(
    context: Context, spec: PodSpec, caller: Caller, container: ContainerSpec | None = None
) -> tuple[Pod, list[str]]:
    """Make the pod; the caller holds no lock, since nobody knows the pod yet. Undone when it fails.

    *container*: its first, where it is known already.
    """
    checks.check_pod(spec, caller, context.state, context.settings)
    context.levels.find(spec.level)
    first = context.id_shift or context.state.free_range(
        context.settings.number("userns.first_id"), context.settings.number("userns.ranges")
    )
    record = PodRecord(spec, "creating", first, context.boot_id, caller=caller.record(), id_shift=context.id_shift)
    pod = context.state.add_pod(record)
    pod.published = False
    async with pod.lock:
        try:
            context.records.write_pod(record)
            context.step("pod.recorded")
            warnings = await build(context, pod, container)
            set_phase(context, pod, "ready")
            context.step("pod.ready")
        except BaseException:
            await discard(context, pod)
            raise
    return pod, warnings


def set_phase(context: Context, pod: Pod, phase: str) -> None:
    pod.record = msgspec.structs.replace(pod.record, phase=phase, boot_id=context.boot_id)
    context.records.write_pod(pod.record)


def ready(context: Context, pod: Pod, warnings: list[str]) -> PodReady:
    network = pod.record.spec.network
    return PodReady(pod.record.first_id, network.address, interface(context, pod), tuple(warnings))


def interface(context: Context, pod: Pod) -> str:
    return interface_of(context, pod.record.spec)


def interface_of(context: Context, spec: PodSpec) -> str:
    """The host's end of the pod's link; empty where it has none."""
    if spec.network.mode != "pod":
        return ""
    return plan.interface_name(context.settings.text("network.link_prefix"), spec.id)


def link(context: Context, pod: Pod) -> plan.PodLink:
    """The plan of the pod's link; only for network mode ``pod``."""
    return link_of(context, pod.record.spec)


def link_of(context: Context, spec: PodSpec) -> plan.PodLink:
    """The same for a specification: it follows from nothing else."""
    network = spec.network
    return plan.pod_link(
        spec.id,
        network.address,
        prefix=context.settings.text("network.link_prefix"),
        pool=context.settings.text("network.pool"),
        netns_folder=context.folders.netns,
        mtu_bytes=context.mtu_bytes,
        ports=[
            plan.Publish(one.protocol, one.host_port, one.container_port, one.host_address) for one in network.ports
        ],
        tap=is_machine(spec),
        asks=takes_address(context, spec),
    )


def is_machine(spec: PodSpec) -> bool:
    """Whether the pod is a virtual machine: its namespaces are not the host's, its link is a tap."""
    return spec.level == "microvm"


def takes_address(context: Context, spec: PodSpec) -> bool:
    """Whether the pod's sandbox has a network stack of its own on a veth of ours."""
    level = context.levels.get(spec.level)
    return level is not None and level.features.takes_address


def features_of(context: Context, spec: PodSpec) -> Features | None:
    level = context.levels.get(spec.level)
    return None if level is None else level.features


def boundary(context: Context, pod: Pod) -> Sandbox:
    """The pod's namespaces, ids and cgroup, as a level's driver wants them."""
    pins = {kind: str(path) for kind, path in context.folders.pins(pod.record.spec).items()}
    return Sandbox(pins, pod.record.first_id, context.pod_cgroup(pod.id), IDS)


def is_built(context: Context, pod: Pod) -> bool:
    """Whether the pod's namespaces are there (or its tap); after a reboot they are not."""
    spec = pod.record.spec
    if is_machine(spec) and spec.network.mode == "pod" and not links.exists(interface(context, pod)):
        return False
    return all(sandbox.is_pinned(path) for path in context.folders.pins(pod.record.spec).values())


async def build(context: Context, pod: Pod, container: ContainerSpec | None = None) -> list[str]:
    """Namespaces, cgroup and link of a pod that has none of them; warnings for what the host cannot limit.

    *container*: the one that is to start first, where it is known: a machine is made to its measure.
    """
    spec = pod.record.spec
    pins = context.folders.pins(spec)
    for path in pins.values():
        # A file without a namespace behind it is what a reboot (with /run on disk) or a crash left.
        sandbox.remove_pin(path)
        path.parent.mkdir(mode=0o711, exist_ok=True)
    if pins:
        await sandbox.create(pins, pod.record.first_id, IDS, spec.hostname)
    context.step("pod.namespaces")
    group = context.pod_cgroup(pod.id)
    context.cgroups.create(group)
    if is_machine(spec):
        context.cgroups.create(machine_cgroup(context, spec))
    warnings = context.cgroups.set_limits(group, pod_limits(spec, spec.resources, features_of(context, spec)))
    context.step("pod.cgroup")
    if spec.network.mode == "pod":
        await ensure_firewall(context)
        waiting = await _reserve(context, spec, container)
        context.keeping.put(spec)
        await links.apply(link(context, pod), waiting)
        # Until then nothing from the interface is let in.
        await context.firewall.add_pod(link(context, pod))
        context.step("pod.link")
    elif spec.network.mode == "none" and pins:
        await links.apply_loopback_only(pins["network"])
    return warnings


async def _reserve(context: Context, spec: PodSpec, container: ContainerSpec | None) -> str:
    """The tap of a machine that waits, which is this pod's from now on; empty where none fits."""
    level = context.levels.get(spec.level)
    if not is_machine(spec) or context.machines is None or level is None or level.inside is None:
        return ""
    if container is None or any(not isinstance(one, TmpfsMount) for one in container.mounts):
        # Folders of the host need a machine whose user is the pod's own, and a pod that others join may want some.
        return ""
    return await level.inside.reserve(spec, container, interface_of(context, spec))


def machine_cgroup(context: Context, spec: PodSpec) -> str:
    """Of monitor and QEMU: below the pod's own, since a cgroup of version 2 with limits below it holds no process."""
    return f"{context.pod_cgroup(spec.id)}/machine"


async def open_ports(context: Context, pod: Pod) -> None:
    """Publish the pod's ports, before a container of it starts. Raises what holds one of them."""
    if not pod.record.spec.network.ports or is_running(pod):
        return
    await ensure_firewall(context)
    pod.published = True
    with context.firewall.followed.own_change():
        context.nat.publish(link(context, pod))
    context.step("pod.ports")


def close_ports(context: Context, pod: Pod) -> None:
    """Take the pod's ports back when none of its containers runs: whoever wants them then may have them."""
    network = pod.record.spec.network
    if not network.ports or not pod.published or is_running(pod) or context.firewall.is_held(pod.id):
        return
    with context.firewall.followed.own_change():
        context.nat.withdraw(link(context, pod))
    pod.published = False
    if any(port.protocol == "udp" for port in network.ports):
        context.stale_flows.add(network.address)
        context.flows_wait.set()


async def keep_firewall(context: Context) -> None:
    """Make whole what somebody took of the firewall; to see that nobody did takes 20 us while no rule of the host's
    changes, 2 ms when one did, and no program."""
    now = context.firewall.followed.now()
    if now == context.firewall.followed.at:
        if context.firewall.is_look_due:
            _tell_repaired(context, await context.firewall.look())
        else:
            context.firewall.note()
        return
    if context.nat.is_as_left() and not context.firewall.what_lacks():
        context.firewall.unsure()
        context.firewall.followed.at = now
        return
    await ensure_firewall(context)


def hold_ended(context: Context, pod_id: str) -> None:
    """New connections to the pod wait no longer: where nothing of it runs, its ports are free."""
    pod = context.state.pods.get(pod_id)
    if pod is not None:
        close_ports(context, pod)


def is_running(pod: Pod) -> bool:
    return any(one.record.phase == "running" for one in pod.containers.values())


def idle_ports(context: Context) -> list[str]:
    """Addresses with published ports behind which nothing runs."""
    if not context.nat.is_whole():
        return []
    busy = {pod.record.spec.network.address for pod in context.state.pods.values() if is_running(pod)}
    return sorted({one.address for one in context.nat.published()} - busy)


async def ensure_firewall(context: Context) -> None:
    """Make the firewall's table whole, and look what other programs do to forwarded packets: when any rule of the
    host has changed since the last look (20 us to know), not for each pod (5 ms)."""
    followed = context.firewall.followed
    now = followed.now()
    if now == followed.at:
        return
    known = context.firewall.is_open
    done = [*await context.nat.ensure(known_links(context)), *await context.firewall.ensure()]
    _tell_repaired(context, done, known=known)
    # Not what it is by now: somebody may have flushed it again since it was looked at.
    followed.at = now


def _tell_repaired(context: Context, done: list[str], *, known: bool = True) -> None:
    for line in done:
        log.info("%s", line)
    if known and done:
        context.emit(FirewallRepaired(tuple(done)))


def all_links(context: Context) -> Iterator[plan.PodLink]:
    """The links of all pods that have one."""
    for pod in context.state.pods.values():
        if pod.record.spec.network.mode == "pod":
            yield link(context, pod)


def known_links(context: Context) -> list[plan.PodLink]:
    """The links of the pods that run: what the firewall's table holds when it must be made anew."""
    if context.nat.is_whole():
        return []
    found = []
    for pod in context.state.pods.values():
        if is_running(pod) and pod.record.spec.network.mode == "pod" and pod.record.spec.network.ports:
            found.append(link(context, pod))
    return found


def limits(resources: Resources, features: Features | None = None) -> cgroups.Limits:
    """The cgroup's limits for what a user asked; -1 (unlimited) becomes 0, which takes a limit away.

    With a level's *features* the number of processes is what the host runs for them: a sandbox's own threads count.
    """
    weight = None
    if resources.cpu_shares is not None:
        # v1's shares (2..262144) as v2's weight (1..10000), by the formula of the OCI runtimes.
        weight = 1 + (resources.cpu_shares - 2) * 9999 // 262_142
    swap = resources.memory_swap_bytes
    number = (features or _EXACT).tasks(resources.pids)
    return cgroups.Limits(
        memory_bytes=resources.memory_bytes,
        memory_swap_bytes=None if swap is None else max(swap, 0),
        memory_reservation_bytes=resources.memory_reservation_bytes,
        cpu_millis=resources.cpu_millis,
        cpu_weight=weight,
        cpuset_cpus=resources.cpuset,
        pids=number,
        io_weight=resources.io_weight,
    )


def pod_limits(spec: PodSpec, resources: Resources, features: Features | None = None) -> cgroups.Limits:
    """The limits of the pod's cgroup on the host. A machine's memory and processes are bounded by the machine: what
    the host bounds is its cpu."""
    wanted = limits(resources, features)
    if not is_machine(spec):
        return wanted
    return dataclasses.replace(
        wanted, memory_bytes=None, memory_swap_bytes=None, memory_reservation_bytes=None, pids=None
    )


def merged(old: Resources, new: Resources) -> Resources:
    """*old* with the values that *new* names."""
    values = {name: value for name in new.__struct_fields__ if (value := getattr(new, name)) is not None}
    return msgspec.structs.replace(old, **values)


def update(context: Context, pod: Pod, resources: Resources) -> list[str]:
    """Live limits of the whole pod; the caller holds the lock."""
    checks.check_resources(resources)
    path = context.pod_cgroup(pod.id)
    spec = pod.record.spec
    wanted = pod_limits(spec, resources, features_of(context, spec))
    warnings = context.cgroups.set_limits(path, wanted) if context.cgroups.exists(path) else []
    pod.record = msgspec.structs.replace(
        pod.record, spec=msgspec.structs.replace(spec, resources=merged(spec.resources, resources))
    )
    context.records.write_pod(pod.record)
    return warnings


async def remove(context: Context, pod: Pod) -> None:
    """Take the pod away; its containers are gone. The caller holds the lock."""
    checks.check_free_of_containers(pod)
    set_phase(context, pod, "removing")
    context.step("pod.removing")
    await discard(context, pod)


async def discard(context: Context, pod: Pod) -> None:
    """Take away whatever there is of a pod without containers, its record last. May be repeated."""
    if pod.containers:
        raise WrongState(f"pod {pod.id[:12]} has containers", pod=pod.id)
    spec = pod.record.spec
    await cgroups.end(context.cgroups, context.pod_cgroup(pod.id))
    context.step("pod.cgroup_gone")
    if spec.network.mode == "pod" and spec.network.ports:
        if pod.published:
            context.nat.withdraw(link(context, pod))
        if any(port.protocol == "udp" for port in spec.network.ports):
            # A flow that goes on keeps its translation: its packets would reach whoever has the address next.
            with contextlib.suppress(CasemateError, OSError):
                await conntrack.forget(spec.network.address)
    if spec.network.mode == "pod":
        await context.firewall.remove_pod(link(context, pod))
        context.keeping.take(spec)
    if is_machine(spec) and spec.network.mode == "pod":
        if context.machines is not None:
            await context.machines.pool.release(interface(context, pod))
        context.dead_links.add(interface(context, pod))
        context.links_wait.set()
    for path in context.folders.pins(spec).values():
        sandbox.remove_pin(path)
    with contextlib.suppress(OSError):
        (context.folders.namespaces / pod.id).rmdir()
    context.step("pod.namespaces_gone")
    folder: Path = context.folders.pod(pod.id)
    context.records.forget(context.folders.pod_record(pod.id))
    remove_small(folder)
    context.state.remove_pod(pod)
    context.step("pod.gone")
