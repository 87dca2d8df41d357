"""The level ``microvm`` in hostd: the machines' service beside the daemon's own, and whether the level can be had.

The service runs for as long as hostd does. A fault of it is logged with its trace, the level is unavailable
meanwhile, and a second later it begins anew: machines survive that as they survive hostd itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import ipaddress
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from casemate.host import durable, programs
from casemate.hostd import pods
from casemate.hostd.context import Context
from casemate.isolation import seccomp_compile
from casemate.isolation.microvm import accelerate, argv, driver, kernel, origin, pool
from casemate.isolation.microvm import service as vm_service
from casemate.isolation.microvm.errors import KernelMissing, ShimMissing
from casemate.isolation.microvm.inside import MicrovmInside
from casemate.isolation.microvm.machine import Machine
from casemate.isolation.microvm.machines import FIRST_UID, Machines, Settings
from casemate.isolation.microvm.tap import GuestNetwork
from casemate.network.plan import GATEWAY
from casemate.spec.errors import CasemateError
from casemate.spec.workload import PodSpec

log = logging.getLogger("casemate.hostd")

#: After a fault, and between looks for what is missing (a package that somebody installs).
_AGAIN_S, _LOOK_S = 1.0, 60.0
_TSC_TIMEOUT_S = 10.0
_MAX_AGENT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Host:
    """What the level needs of the host, as it was found."""

    shim: str
    qemu: str
    qemu_version: str
    tsc_khz: int
    accelerator: argv.Accelerator


async def serve(context: Context, ready: asyncio.Event) -> None:
    """For ever. *ready* is set once the machines of an earlier hostd are found, or it is known what is missing."""
    while True:
        pause_s = _AGAIN_S
        try:
            await _life(context, await find_host(context), ready)
        except CasemateError as error:
            why = f"{error.detail}; {error.instance_remedy or error.remedy}"
            if str(context.levels.describe().get("microvm")) != f"unavailable: {why}":
                log.info("level microvm: %s", why)
            context.levels.lack("microvm", why)
            pause_s = _LOOK_S
        except BaseExceptionGroup as errors:
            # Faults of tasks; what is not one (being cancelled) goes on its way.
            _faults, rest = errors.split(Exception)
            if rest is not None:
                raise
            log.exception("the service of the micro-VMs failed and begins anew")
            context.levels.lack("microvm", f"its service failed: {errors.exceptions[0]!r:.300}")
        finally:
            context.machines = None
        ready.set()
        await asyncio.sleep(pause_s)


async def _life(context: Context, host: Host, ready: asyncio.Event) -> None:
    settings = Settings(
        context.folders.state,
        context.folders.run,
        host.shim,
        host.qemu,
        host.qemu_version,
        host.accelerator,
        host.tsc_khz,
        context.settings.number("microvm.memory_bytes"),
        pool=context.settings.number("microvm.pool"),
        # Not with the prefix of the pods' own links: nothing of the firewall or the doctor is meant for them.
        taps=f"w{context.settings.text('network.link_prefix')}",
        template=origin.policy(context.settings.text("microvm.template")),
        rehearsal=context.settings.flag("microvm.rehearsal"),
        # Not below the pods' own: what is there and no pod's is taken for a leftover.
        cgroup_parent=f"{context.settings.text('cgroup.parent')}-vm",
    )
    socket = context.folders.run / "vm.sock"
    async with asyncio.TaskGroup() as group:
        machines = Machines(settings, group)
        found = await machines.recover()
        if found:
            log.info("%d micro-VMs of an earlier casemate-hostd go on", len(found))
        context.machines = machines
        service = vm_service.Service(machines, seccomp_compile.compiler())
        try:
            # Listening before anybody is told that the level is there.
            with vm_service.listening(socket) as server:
                await choose_accelerator(context, machines)
                refresh(context, machines)
                ready.set()
                await service.serve(server)
        finally:
            machines.forget()


async def choose_accelerator(context: Context, machines: Machines) -> None:
    """Probe KVM once there is a guest kernel to boot with it; machines are emulated until then."""
    found = machines.settings
    try:
        chosen = kernel.chosen(found.state / "kernels")
    except KernelMissing:
        return
    probe = accelerate.Probe(found.run, found.shim, found.qemu, chosen, FIRST_UID)
    answer = await accelerate.choose(context.settings.text("microvm.accelerator"), probe)
    machines.settings = dataclasses.replace(found, accelerator=answer.accelerator, accelerated=answer.reason)


def refresh(context: Context, machines: Machines) -> None:
    """Register the level when there is a guest kernel, else say what is missing. Called whenever kernels change."""
    if context.id_shift:
        context.levels.lack("microvm", "the layers' owners are shifted on this kernel, which a guest would see")
        return
    try:
        chosen = kernel.chosen(machines.settings.state / "kernels")
    except KernelMissing as error:
        context.levels.lack("microvm", f"{error.detail}; {error.instance_remedy or error.remedy}")
        return
    installed = agent_digest(context)
    if chosen.agent and installed and chosen.agent != installed:
        again = "`casemate system kernel install` prepares it anew"
        context.levels.lack("microvm", f"guest kernel {chosen.version} holds another version of the agent; {again}")
        return
    context.levels.add(_level(context, machines, chosen))


def agent_digest(context: Context) -> str:
    """The installed agent's SHA-256; empty when there is none to compare with."""
    try:
        data = durable.read_bounded(Path(context.settings.text("microvm.agent")), _MAX_AGENT_BYTES)
    except (OSError, CasemateError):
        return ""
    return hashlib.sha256(data).hexdigest()


def _level(context: Context, machines: Machines, chosen: kernel.GuestKernel) -> driver.MicrovmLevel:
    settings = machines.settings
    how = f"{accelerator_words(settings.accelerator)}: {settings.accelerated}"
    summary = f"{settings.qemu_version}, guest kernel {chosen.version}, {how}"

    def current() -> driver.MicrovmLevel:
        return level

    level = driver.MicrovmLevel(
        driver.runtime(settings.shim, settings.run),
        summary,
        context.layers.files,
        lambda pod: network(context, pod),
        inside=MicrovmInside(machines, current, lambda pod: pods.interface_of(context, pod)),
        memory_bytes=settings.memory_bytes,
        emulated=settings.accelerator.kind == "tcg",
        cgroups=lambda pod: context.cgroups.folders(pods.machine_cgroup(context, pod)),
        template=settings.template,
        most_bytes=pool.memory()[1],
    )
    return level


def accelerator_words(accelerator: argv.Accelerator) -> str:
    """How the machines run, for people."""
    return "KVM" if accelerator.kind == "kvm" else "emulated (TCG): slower, and no hardware wall"


def network(context: Context, spec: PodSpec) -> GuestNetwork | None:
    """The guest's end of the pod's link."""
    if spec.network.mode != "pod":
        return None
    link = pods.link_of(context, spec)
    address = ipaddress.IPv4Interface(f"{link.address}/32")
    return GuestNetwork(link.interface, address, ipaddress.IPv4Address(GATEWAY), link.pod_mac, link.mtu_bytes)


async def find_host(context: Context) -> Host:
    """casemate-vm, QEMU and the counter's rate; raises what is missing."""
    shim = context.settings.text("microvm.shim")
    if not os.access(shim, os.X_OK):
        raise ShimMissing(f"{shim} is not there", path=shim)
    qemu = context.settings.text("microvm.qemu")
    version = await driver.qemu_version(qemu)
    measured = await programs.run([shim, "tsc"], timeout_s=_TSC_TIMEOUT_S)
    program = programs.find_program(qemu)
    return Host(shim, program, version, int(measured.stdout), argv.Accelerator("tcg"))


async def prune_templates(context: Context, *, dry_run: bool) -> list[str]:
    """Remove the templates, which the next start makes anew; machines that run keep their memory. What went.

    None while a start is under way, which needs one.
    """
    machines = context.machines
    if machines is None or machines.pool.busy:
        return []
    if dry_run:
        return machines.templates.names()
    await machines.pool.close()
    return [] if machines.pool.busy else machines.templates.prune()


def strays(context: Context) -> list[Machine]:
    """Machines of no container and no pod that hostd knows; those of other engines are theirs."""
    machines = context.machines
    if machines is None:
        return []
    state, ours = context.state, f"{context.folders.containers}/"
    found = []
    for one in machines.all():
        held = one.record.containers
        known = one.record.name in (state.pods.keys() | state.containers.keys())
        if not known and not one.record.netns and all(container.bundle.startswith(ours) for container in held):
            found.append(one)
    return found


def state_folder(context: Context) -> Path:
    """Where guest kernels lie."""
    return context.folders.state / "kernels"
