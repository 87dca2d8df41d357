"""Layers (squashfs files) as one block device: where each begins, and the description of the join. Pure.

A layer becomes a flat extent of a VMDK, which QEMU joins without copying; the guest makes a partition of each by
BLKPG. Extents begin at multiples of 4 KiB, the block that the guest's squashfs reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from casemate.isolation.microvm.argv import DISK_SECTORS, SCRATCH_FDSET

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


def stacked_nodes(found: Sequence[Extent], descriptor_fd: int) -> tuple[str, str]:
    """A device whose layers can get others beside them later: what there is now, and the node above that stays."""
    if len(found) == 1:
        return waiting_nodes(found[0].fd)
    file = {"driver": "file", "filename": own_fd(descriptor_fd), "locking": "off"}
    lower = {"driver": "vmdk", "node-name": "now", "read-only": True, "file": file}
    return json.dumps(lower), json.dumps({"driver": "raw", "node-name": "layers", "read-only": True, "file": "now"})


def waiting_nodes(fd: int) -> tuple[str, str]:
    """A waiting machine's device: one layer for now, below a node that stays when :func:`reopened` replaces it."""
    file = {
        "driver": "file",
        "node-name": "now",
        "read-only": True,
        "filename": f"/proc/self/fd/{fd}",
        "locking": "off",
    }
    return json.dumps(file), json.dumps({"driver": "raw", "node-name": "layers", "read-only": True, "file": "now"})


def no_scratch() -> tuple[str, str]:
    """The scratch device of a template, and of a machine that needs none: empty, of the layers' size."""
    size = DISK_SECTORS * SECTOR_BYTES
    lower = {"driver": "null-co", "node-name": "none", "size": size, "read-zeroes": True}
    return json.dumps(lower), json.dumps({"driver": "raw", "node-name": "scratch", "file": "none"})


def scratch_file(node: str) -> dict[str, object]:
    """The file behind the descriptor set, as the node *node*. Space that the guest frees goes back to the host."""
    name = fdset(SCRATCH_FDSET)
    return {"driver": "file", "node-name": node, "filename": name, "locking": "off", "discard": "unmap"}


def scratch_on(node: str, size_bytes: int) -> dict[str, object]:
    """The device's node above it: a guest cannot write beyond *size_bytes*."""
    return {"driver": "raw", "node-name": "scratch", "size": size_bytes, "file": node, "discard": "unmap"}


def swapped_node(filename: str, driver: str) -> dict[str, object]:
    """The node that is to be below the device: a file, or the VMDK that joins several."""
    file: dict[str, object] = {"driver": "file", "filename": filename, "locking": "off"}
    if driver == "file":
        return file | {"node-name": "swapped", "read-only": True}
    return {"driver": driver, "node-name": "swapped", "read-only": True, "file": file}


def reopened() -> dict[str, object]:
    """The device's node with :func:`swapped_node` below it."""
    return {"driver": "raw", "node-name": "layers", "read-only": True, "file": "swapped"}


def own_fd(number: int) -> str:
    """The path of a descriptor that QEMU was started with."""
    return f"/proc/self/fd/{number}"


def fdset(number: int) -> str:
    """The path by which QEMU opens a descriptor that it was given later (``add-fd``)."""
    return f"/dev/fdset/{number}"


def descriptor(found: Sequence[Extent], name: Callable[[int], str] = own_fd) -> str:
    """A VMDK descriptor of flat extents, one behind the other as :func:`extents` placed them; *name* of each file."""
    lines = ["# Disk DescriptorFile", "version=1", "CID=fffffffe", "parentCID=ffffffff"]
    # No empty line before the extents: QEMU's sscanf passes over its end and takes the first extent twice.
    lines += ['createType="monolithicFlat"', "# Extent description"]
    lines += [f'RW {extent.sectors} FLAT "{name(extent.fd)}" 0' for extent in found]
    lines += ["", "#DDB", 'ddb.adapterType = "ide"', 'ddb.geometry.cylinders = "1"', 'ddb.geometry.heads = "16"']
    return "\n".join([*lines, 'ddb.geometry.sectors = "63"', ""])


def joined_node(descriptor_fd: int) -> str:
    """Several layers: the VMDK whose descriptor is behind *descriptor_fd*."""
    name = f"/proc/self/fd/{descriptor_fd}"
    file = {"driver": "file", "filename": name, "locking": "off"}
    return json.dumps({"driver": "vmdk", "node-name": "layers", "read-only": True, "file": file})
