"""A clone of a template: the hot path. What it holds open is passed by descriptor; what it says first waits in QMP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.isolation.microvm import argv, disks
from casemate.isolation.microvm.monitor import Launch, Monitor
from casemate.isolation.microvm.records import Ids
from casemate.isolation.microvm.template import Template

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
    template: Template,
    place: Place,
    layers: Sequence[Path],
    *,
    shim: str,
    qemu: str,
    tap_fd: int | None = None,
    waits: bool = False,
    more: bool = False,
) -> tuple[Monitor, tuple[disks.Extent, ...]]:
    """Start a clone over *layers* (squashfs files, any order); where each lies on its device.

    *waits*: over one layer that :mod:`swap` replaces later; *more*: :mod:`join` puts further ones behind them.
    """
    first = argv.FIRST_PASSED_FD
    opened: list[int] = []
    fds: dict[int, int] = {first: template.memory_fd}
    try:
        # A description of its own: the offset of a shared one would move with every other clone.
        state = os.open(f"/proc/self/fd/{template.state_fd}", os.O_RDONLY | os.O_CLOEXEC)
        opened.append(state)
        fds[first + 1] = state
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
        if tap_fd is not None:
            fds[first + 3] = tap_fd
        switches = (
            *template.recipe.switches(first, shared=False),
            disk or argv.Layers(node),
            argv.Port(),
            argv.Network(None if tap_fd is None else first + 3),
            argv.Shares(),
            argv.Incoming(),
        )
        launch = Launch(
            shim=shim,
            qemu=qemu,
            switches=switches,
            fds=fds,
            socket=place.folder / "monitor.sock",
            uid=place.uid,
            gid=place.uid,
            jail=place.jail,
            qmp=_RESTORE.format(fd=first + 1),
            kvm=template.recipe.accelerator.kind == "kvm",
            cgroups=place.cgroups,
            ids=place.ids,
        )
        return await Monitor.start(launch), extents
    finally:
        for number in opened:
            os.close(number)
