"""A clone of a template: the hot path. What it holds open is passed by descriptor; what it says first waits in QMP.

Or a cold boot, which has memory of its own and a kernel in place of a template's memory and state.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.isolation.microvm import argv, disks, ending
from casemate.isolation.microvm.errors import AgentFailed
from casemate.isolation.microvm.monitor import Launch, Monitor
from casemate.isolation.microvm.records import Ids
from casemate.isolation.microvm.template import Recipe, Template

#: 7 s under emulation on an idle host; below the 60 s in which hostd awaits a container's creation.
COLD_TIMEOUT_S = 45.0
#: The restore of the state, without a round trip: QEMU reads these from its socket when it is ready to.
_RESTORE = (
    '{{"execute":"qmp_capabilities"}}'
    '{{"execute":"migrate-set-capabilities","arguments":'
    '{{"capabilities":[{{"capability":"x-ignore-shared","state":true}}]}}}}'
    '{{"execute":"migrate-incoming","arguments":{{"uri":"fd:{fd}"}}}}'
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a machine lives: its *folder* (socket), the *jail* (an empty folder), its *uid*, its *cgroups*, and the
    *ids* of its user namespace, which hold *uid*."""

    folder: Path
    jail: Path
    uid: int
    cgroups: tuple[str, ...] = ()
    ids: Ids | None = None


async def start(
    source: Template | Recipe,
    place: Place,
    layers: Sequence[Path],
    *,
    shim: str,
    qemu: str,
    tap_fds: Sequence[int] = (),
    waits: bool = False,
    more: bool = False,
    scratch_fd: int | None = None,
) -> tuple[Monitor, tuple[disks.Extent, ...]]:
    """Start a clone of a template, or a machine that boots by a recipe (:func:`booted`), over *layers*.

    *layers*: squashfs files in any order; where each lies on its device is answered. *waits*: over one layer
    that :mod:`swap` replaces later; *scratch_fd*: the file of the
    writable layer, open for both, which stays the caller's; *more*: :mod:`join` puts further ones behind them.
    """
    first = argv.FIRST_PASSED_FD
    opened: list[int] = []
    fds: dict[int, int] = {}
    try:
        if isinstance(source, Template):
            recipe, begins = source.recipe, _restored(source, fds, opened)
        else:
            recipe, begins = source, _cold(source, fds, opened, first + 5 + len(layers))
        sizes: list[tuple[int, int]] = []
        for index, layer in enumerate(layers):
            number = os.open(layer, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            opened.append(number)
            fds[first + 4 + index] = number
            sizes.append((first + 4 + index, os.fstat(number).st_size))
        extents = disks.extents(sizes)
        disk: argv.Switch | None = None
        if len(extents) > 1:
            described = os.memfd_create("layers", os.MFD_CLOEXEC)
            opened.append(described)
            os.write(described, disks.descriptor(extents).encode())
            fds[first + 2] = described
        if waits or (more and extents):
            disk, node = argv.WaitingLayers(*disks.stacked_nodes(extents, first + 2)), ""
        elif not extents:
            node = disks.null_node()
        elif len(extents) == 1:
            node = disks.layer_node(extents[0])
        else:
            node = disks.joined_node(first + 2)
        # The first card's has a number of its own; those of further ones stand behind everything else.
        behind = first + 5 + len(layers)
        taps = dict(zip((first + 3, *range(behind + 1, behind + recipe.cards)), tap_fds, strict=False))
        fds |= taps
        cards = [argv.Network(fd, number) for number, fd in enumerate(taps)]
        cards += [argv.Network(None, number) for number in range(len(cards), recipe.cards)]
        scratch = argv.Scratch(disks.no_scratch())
        if scratch_fd is not None:
            fds[first + 4 + len(layers)] = scratch_fd
            size = os.fstat(scratch_fd).st_size
            nodes = (json.dumps(disks.scratch_file("file")), json.dumps(disks.scratch_on("file", size)))
            scratch = argv.Scratch(nodes, first + 4 + len(layers))
        switches = (
            *recipe.switches(first, shared=recipe is source),
            disk or argv.Layers(node),
            scratch,
            argv.Port(),
            cards[0],
            argv.Shares(),
            *cards[1:],
            begins,
        )
        end = ending.open_file(place.folder)
        opened.append(end)
        launch = Launch(
            shim=shim,
            qemu=qemu,
            switches=switches,
            fds=fds,
            socket=place.folder / "monitor.sock",
            uid=place.uid,
            gid=place.uid,
            jail=place.jail,
            qmp=_RESTORE.format(fd=first + 1) if recipe is not source else "",
            kvm=recipe.accelerator.kind == "kvm",
            cgroups=place.cgroups,
            ids=place.ids,
            end_fd=end,
        )
        return await Monitor.start(launch), extents
    finally:
        for number in opened:
            os.close(number)


def _restored(template: Template, fds: dict[int, int], opened: list[int]) -> argv.Switch:
    fds[argv.FIRST_PASSED_FD] = template.memory_fd
    # A description of its own: the offset of a shared one would move with every other clone.
    state = os.open(f"/proc/self/fd/{template.state_fd}", os.O_RDONLY | os.O_CLOEXEC)
    opened.append(state)
    fds[argv.FIRST_PASSED_FD + 1] = state
    return argv.Incoming()


def _cold(recipe: Recipe, fds: dict[int, int], opened: list[int], free: int) -> argv.Switch:
    """Memory that is this machine's alone and cannot grow, kernel and initramfs; *free*: a number for the last."""
    first = argv.FIRST_PASSED_FD
    memory = os.memfd_create("casemate-machine", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    opened.append(memory)
    os.ftruncate(memory, recipe.memory_bytes)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    fds[first] = memory
    for number, path in ((first + 1, recipe.kernel.kernel), (free, recipe.kernel.initramfs)):
        fds[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        opened.append(fds[number])
    return argv.Kernel(first + 1, free, argv.kernel_command_line(recipe.tsc_khz, recipe.cpus))


async def booted(monitor: Monitor, timeout_s: float = COLD_TIMEOUT_S) -> None:
    """Until the agent of a cold boot is ready. :class:`AgentFailed`; who catches it adds the console."""
    async with asyncio.TaskGroup() as group:
        both = [group.create_task(one.wait()) for one in (monitor.ready, monitor.ended)]
        await asyncio.wait(both, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for one in both:
            one.cancel()
    if monitor.ready.is_set():
        return
    if monitor.ended.is_set():
        raise AgentFailed("the guest ended while it booted")
    raise AgentFailed(f"a cold boot gave no word of the agent within {timeout_s:g} s")
