"""What bears our name and belongs to nobody: found, named, and on request removed.

A thing is a leftover when no pod or container in hostd's state owns it. State is entered before the first effect
of a creation and left after the last of a removal, so what is being made or taken away is never taken for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from casemate.host import cgroups, loop, mountinfo, mounts, probes
from casemate.hostd import containers, microvm, pods
from casemate.hostd.context import Context
from casemate.hostd.processes import conmons, kill_conmon
from casemate.hostd.protocol import Finding, Prune
from casemate.hostd.records import folder_names, remove_small
from casemate.hostd.state import Pod
from casemate.isolation.namespace import sandbox
from casemate.network import links, plan
from casemate.spec.errors import CasemateError

PRUNE = "casemate system prune"


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing that belongs to nobody: what kind, which one, and how it is removed."""

    kind: str
    which: str
    remove: Callable[[], Awaitable[None]]


#: The kernel deletes an interface some time after its namespace: not every one that is still there is a leftover.
_SETTLE_S = 1.0


async def find_settled(context: Context) -> list[Leftover]:
    """:func:`find`, with a second look when there is an interface among them."""
    found = find(context)
    if any(one.kind == "interface" for one in found):
        await asyncio.sleep(_SETTLE_S)
        found = find(context)
    return found


def find(context: Context) -> list[Leftover]:
    """Every leftover, in the order in which they can be removed: processes, mounts, then the rest."""
    found: list[Leftover] = []
    for look in (_processes, _machines, _mounts, _pins, _cgroups, _interfaces, _ports, _devices, _folders, _records):
        found.extend(look(context))
    return found


def _processes(context: Context) -> Iterator[Leftover]:
    for container, pid in conmons(context.folders.run).items():
        if container not in context.state.containers:
            yield Leftover(
                "process",
                f"conmon {pid} of container {container[:12]}",
                partial(kill_conmon, pid, context.folders.run, container),
            )


def _machines(context: Context) -> Iterator[Leftover]:
    if context.machines is None:
        return
    for machine in microvm.strays(context):
        yield Leftover("machine", machine.record.name[:12], partial(context.machines.end, machine))


def _mounts(context: Context) -> Iterator[Leftover]:
    base = context.folders.containers
    for mount in reversed(mountinfo.mounts_below(base)):
        parts = mount.target.relative_to(base).parts
        if parts and parts[0] not in context.state.containers:
            yield _plain("mount", str(mount.target), partial(mounts.unmount, mount.target, detach=True))


def _pins(context: Context) -> Iterator[Leftover]:
    for path in links.pins(context.folders.netns):
        if path.name not in context.state.pods:
            yield _plain("network namespace", str(path), partial(sandbox.remove_pin, path))
    for pod in folder_names(context.folders.namespaces):
        if pod not in context.state.pods:
            yield _plain("namespaces", str(context.folders.namespaces / pod), partial(_unpin, context, pod))


def _unpin(context: Context, pod: str) -> None:
    folder = context.folders.namespaces / pod
    for path in folder.iterdir():
        sandbox.remove_pin(path)
    folder.rmdir()


def _cgroups(context: Context) -> Iterator[Leftover]:
    parent = context.settings.text("cgroup.parent")
    for name in context.cgroups.children(parent):
        path = f"{parent}/{name}"
        if len(name) == 64 and name not in context.state.pods:
            yield Leftover("cgroup", path, partial(cgroups.end, context.cgroups, path))
        elif name in context.state.pods:
            for child in context.cgroups.children(path):
                if len(child) == 64 and child not in context.state.containers:
                    one = f"{path}/{child}"
                    yield Leftover("cgroup", one, partial(cgroups.end, context.cgroups, one))


def _interfaces(context: Context) -> Iterator[Leftover]:
    prefix = context.settings.text("network.link_prefix")
    ours = {plan.interface_name(prefix, pod) for pod in context.state.pods}
    for one in links.found(prefix):
        if one.interface not in ours:
            yield Leftover("interface", one.interface, partial(_delete, one.interface))


async def _delete(name: str) -> None:
    await links.delete_interface(name)


def _ports(context: Context) -> Iterator[Leftover]:
    for address in pods.idle_ports(context):
        yield _plain("published ports", f"to {address}", partial(context.nat.unpublish, address))


def _devices(context: Context) -> Iterator[Leftover]:
    for device in context.layers.leaked_devices():
        yield _plain("loop device", f"{device.device} of {device.backing}", partial(loop.detach, device.device))


def _folders(context: Context) -> Iterator[Leftover]:
    folders = context.folders
    for container in folder_names(folders.containers):
        if container not in context.state.containers:
            yield _plain("bundle", container[:12], partial(remove_small, folders.bundle(container)))
    for container in folder_names(folders.runtime):
        if container not in context.state.containers:
            yield _plain("runtime state", container[:12], partial(remove_small, folders.runtime / container))
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(folders.exits.iterdir()):
            if entry.name not in context.state.containers:
                yield _plain("exit file", entry.name[:12], partial(entry.unlink, missing_ok=True))


def _records(context: Context) -> Iterator[Leftover]:
    """Folders of pods and containers whose record cannot be read: named, and removed only by prune."""
    for pod in folder_names(context.folders.pods):
        known = context.state.pods.get(pod)
        if known is None:
            yield _plain("pod folder without a readable record", pod[:12], partial(_throw_pod, context, pod))
            continue
        for container in folder_names(context.folders.pod(pod)):
            if container not in known.containers:
                yield _plain(
                    "container folder without a readable record",
                    container[:12],
                    partial(containers.throw, context, pod, container),
                )


def _throw_pod(context: Context, pod: str) -> None:
    if context.trash.throw(context.folders.pod(pod)):
        context.trash_waits.set()


def _plain(kind: str, which: str, function: Callable[[], object]) -> Leftover:
    async def remove() -> None:
        function()

    return Leftover(kind, which, remove)


def _strangers(context: Context, known: Sequence[str] | None) -> list[Pod]:
    """Pods that casemated does not know, where it has named those that it knows."""
    if known is None:
        return []
    ids = set(known)
    # One that is being made is locked and not yet known upstairs.
    return [
        one
        for one in context.state.pods.values()
        if one.id not in ids and not one.lock.locked() and one.record.phase == "ready"
    ]


async def doctor(context: Context, known: Sequence[str] | None = None) -> list[Finding]:
    """Checks of the host, the levels, and every leftover; with *known*, casemated's pods, also those of nobody's."""
    # First: casemated's word is of this moment.
    strangers = _strangers(context, known)
    found = [await asyncio.to_thread(_probe, probe) for probe in probes.all_probes(context.folders.state)]
    found.append(await asyncio.to_thread(_probe, lambda: probes.idmapped_squashfs(context.folders.run)))
    found.append(_ranges(context))
    for level, words in context.levels.describe().items():
        missing = words.startswith("unavailable")
        severity = "ok" if not missing else "error" if level == "namespace" else "note"
        found.append(Finding(f"level {level}", severity, words))  # type: ignore[arg-type]
    for obstacle in context.nat.forward_obstacles():
        remedy = f"Let {context.settings.text('network.link_prefix')}* pass in that chain."
        found.append(Finding("forwarding", "warning", f"{obstacle} drops what pods send", remedy))
    found.append(context.firewall.finding())
    found.extend(context.keeping.findings())
    waiting = len(context.trash.waiting())
    if waiting:
        found.append(Finding("trash", "note", f"{waiting} folders are being deleted"))
    for pod in strangers:
        said = f"{pod.record.spec.name} ({pod.id[:12]}) is not known to casemated"
        found.append(Finding("pod", "warning", said, f"`{PRUNE}`", left_over=True))
    for one in await find_settled(context):
        found.append(Finding(one.kind, "warning", f"{one.which} belongs to nobody", f"`{PRUNE}`", left_over=True))
    if not any(one.left_over for one in found):
        found.append(Finding("leftovers", "ok", "nothing of ours belongs to nobody"))
    return found


def _ranges(context: Context) -> Finding:
    if not context.id_shift:
        return Finding("user id ranges", "ok", "each pod has its own")
    if context.settings.text("userns.idmap") == "off":
        remedy = 'Take `idmap = "off"` out of the section userns of casemate.toml, and restart casemate-hostd.'
        return Finding("user id ranges", "warning", "pods share one range: userns.idmap is off", remedy)
    said = f"pods share one range on this kernel ({os.uname().release}): it cannot map the owners of squashfs files"
    return Finding("user id ranges", "warning", said, "Run Linux 6.2 or newer; containers are then run anew.")


def _probe(probe: Callable[[], probes.Probe]) -> Finding:
    one = probe()
    severity = "ok" if one.ok else "warning" if one.optional else "error"
    return Finding(one.name, severity, one.value, "" if one.ok else one.remedy)  # type: ignore[arg-type]


async def prune(context: Context, operation: Prune) -> list[Finding]:
    """Remove every leftover and, when casemated names all pods that it knows, the pods that it does not know."""
    found: list[Finding] = []
    for pod in _strangers(context, operation.pods):
        if not operation.dry_run:
            async with pod.lock:
                for container in list(pod.containers.values()):
                    await containers.remove(context, pod, container, force=True)
                if pod.id in context.state.pods:
                    await pods.remove(context, pod)
        found.append(_done("pod", f"{pod.record.spec.name} ({pod.id[:12]})", operation.dry_run))
    for one in await find_settled(context):
        try:
            if not operation.dry_run:
                await one.remove()
            found.append(_done(one.kind, one.which, operation.dry_run))
        except (CasemateError, OSError) as error:
            found.append(Finding(one.kind, "error", f"{one.which} was not removed: {error}", left_over=True))
    if operation.templates:
        for key in await microvm.prune_templates(context, dry_run=operation.dry_run):
            found.append(_done("template of micro-VMs", key, operation.dry_run))
    if not operation.dry_run:
        for layer in context.layers.unmount_unused():
            found.append(_done("unused layer mount", layer[:12], False))
    return found


def _done(kind: str, which: str, dry_run: bool) -> Finding:
    return Finding(kind, "note", f"{which} {'would be' if dry_run else 'was'} removed", left_over=dry_run)
