"""A further container's layers in a machine that runs: put behind the layers that its block device has already.

The device's node stays and what is below it is replaced, as :mod:`swap` does it for a machine that waited. Here the
guest has run what its users wanted, so QEMU's answers are those of a process that may have been broken into: they are
bounded, decoded as JSON, and nothing of them is used but "error" or not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from casemate.isolation.microvm import disks, swap
from casemate.isolation.microvm.errors import RootfsFailed
from casemate.isolation.microvm.machine import Machine

#: The numbers of the descriptors' sets of one join; below the first are those of a swap.
_SETS = 1000


async def add_layers(machine: Machine, files: Sequence[Path]) -> tuple[disks.Extent, ...]:
    """Where each of *files* lies on the machine's device, which is made longer for those that it has not yet.

    Raises :class:`RootfsFailed`, :class:`MonitorFailed`, ``OSError``.
    """
    record = machine.record
    if record.whole_device:
        raise RootfsFailed(
            "the machine was made for one container",
            remedy="Make a pod first: casemate pod create --isolation microvm NAME; then run --pod NAME.",
        )
    known = [*record.layers, *(str(one) for one in dict.fromkeys(files) if str(one) not in record.layers)]
    if len(known) > len(record.layers):
        joins = record.joins + 1
        # Counted before: names that QEMU has, or may have, are not used twice.
        machine.set_layers(record.layers, joins)
        await _replace(machine, known, joins)
        machine.set_layers(known, joins)
    sizes = list(enumerate(Path(one).stat().st_size for one in known))  # noqa: ASYNC240 - of the host's own, in memory
    places = dict(zip(known, disks.extents(sizes), strict=True))
    return tuple(places[str(one)] for one in files)


async def _replace(machine: Machine, files: Sequence[str], joins: int) -> None:
    """Let the device hold *files*, one behind the other: what it held before keeps its place."""
    monitor, first = machine.monitor, joins * _SETS
    sizes = []
    for index, path in enumerate(files):
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            sizes.append((first + index, os.fstat(number).st_size))
            await swap.command(monitor, "add-fd", {"fdset-id": first + index}, (number,))
        finally:
            os.close(number)
    described = swap.description(disks.descriptor(disks.extents(sizes), disks.fdset))
    try:
        await swap.command(monitor, "add-fd", {"fdset-id": first + len(sizes)}, (described,))
    finally:
        os.close(described)
    node = f"joined-{joins}"
    file = {"driver": "file", "filename": disks.fdset(first + len(sizes)), "locking": "off"}
    added = {"driver": "vmdk", "node-name": node, "read-only": True, "file": file}
    await swap.command(monitor, "blockdev-add", added)
    await swap.command(monitor, "blockdev-reopen", {"options": [disks.reopened() | {"file": node}]})
