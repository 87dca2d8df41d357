"""Layers (squashfs files) as one block device: where each begins, and the description of the join. Pure.

A layer becomes a flat extent of a VMDK, which QEMU joins without copying; the guest makes a partition of each by
BLKPG. Extents begin at multiples of 4 KiB, the block that the guest's squashfs reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from casemate.isolation.microvm.argv import DISK_SECTORS

SECTOR_BYTES = 512
_ALIGN = 8  # sectors


@dataclass(frozen=True, slots=True)
class Extent:
    """A layer on the device, in sectors of 512 bytes; *fd* is its file's number in QEMU."""

    start: int
    sectors: int
    fd: int


def extents(sizes: Sequence[tuple[int, int]]) -> tuple[Extent, ...]:
    """The places of layers given as (fd, bytes), in order."""
    found: list[Extent] = []
    start = 0
    for fd, size_bytes in sizes:
        # Rounded up: QEMU reads zeros behind a file's end, and passes over extents of type ZERO without leaving room.
        sectors = -(-size_bytes // (SECTOR_BYTES * _ALIGN)) * _ALIGN
        found.append(Extent(start, sectors, fd))
        start += sectors
    return tuple(found)


def null_node() -> str:
    """The template's device: of the same size, with nothing in it."""
    size = DISK_SECTORS * SECTOR_BYTES
    return json.dumps(
        {"driver": "null-co", "node-name": "layers", "size": size, "read-zeroes": True, "read-only": True}
    )


def layer_node(only: Extent) -> str:
    """One layer: its file, with no join."""
    return json.dumps(
        {
            "driver": "raw",
            "node-name": "layers",
            "read-only": True,
            "file": {"driver": "file", "filename": f"/proc/self/fd/{only.fd}", "locking": "off"},
        }
    )


def descriptor(found: Sequence[Extent]) -> str:
    """A VMDK descriptor of flat extents, one behind the other as :func:`extents` placed them."""
    lines = ["# Disk DescriptorFile", "version=1", "CID=fffffffe", "parentCID=ffffffff"]
    # No empty line before the extents: QEMU's sscanf passes over its end and takes the first extent twice.
    lines += ['createType="monolithicFlat"', "# Extent description"]
    lines += [f'RW {extent.sectors} FLAT "/proc/self/fd/{extent.fd}" 0' for extent in found]
    lines += ["", "#DDB", 'ddb.adapterType = "ide"', 'ddb.geometry.cylinders = "1"', 'ddb.geometry.heads = "16"']
    return "\n".join([*lines, 'ddb.geometry.sectors = "63"', ""])


def joined_node(descriptor_fd: int) -> str:
    """Several layers: the VMDK whose descriptor is behind *descriptor_fd*."""
    name = f"/proc/self/fd/{descriptor_fd}"
    file = {"driver": "file", "filename": name, "locking": "off"}
    return json.dumps({"driver": "vmdk", "node-name": "layers", "read-only": True, "file": file})
