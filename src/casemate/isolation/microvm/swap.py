"""A running machine's block device given other content: the layers of the pod that a waiting machine is handed to.

The device's node stays; what is below it is replaced (``blockdev-reopen``). The layers come as descriptors
(``add-fd``), since QEMU's jail has no path to them. Spoken before anything of the user's runs in the guest.
Source: QEMU 7.2, qapi/block-core.json and qapi/misc.json.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from casemate.isolation.microvm import argv, disks
from casemate.isolation.microvm.errors import MonitorFailed
from casemate.isolation.microvm.monitor import Monitor

_TIMEOUT_S = 10.0
_ID = "casemate"


async def layers(monitor: Monitor, files: Sequence[Path]) -> tuple[disks.Extent, ...]:
    """Put the layers in *files* behind the device; where each lies on it. :class:`MonitorFailed`, ``OSError``."""
    sizes = []
    for index, path in enumerate(files):
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            sizes.append((index + 1, os.fstat(number).st_size))
            await command(monitor, "add-fd", {"fdset-id": index + 1}, (number,))
        finally:
            os.close(number)
    extents = disks.extents(sizes)
    if not extents:
        return ()
    name = disks.fdset(extents[0].fd)
    driver = "file"
    if len(extents) > 1:
        described = description(disks.descriptor(extents, disks.fdset))
        try:
            # QEMU takes a descriptor of a set only when it is open for just what is asked for.
            reading = os.open(f"/proc/self/fd/{described}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(described)
        try:
            await command(monitor, "add-fd", {"fdset-id": len(sizes) + 1}, (reading,))
        finally:
            os.close(reading)
        name, driver = disks.fdset(len(sizes) + 1), "vmdk"
    await command(monitor, "blockdev-add", disks.swapped_node(name, driver))
    await command(monitor, "blockdev-reopen", {"options": [disks.reopened()]})
    return extents


async def scratch(monitor: Monitor, number: int) -> None:
    """Put the file *number* (open for both, the caller's) behind the scratch device."""
    await command(monitor, "add-fd", {"fdset-id": argv.SCRATCH_FDSET}, (number,))
    await command(monitor, "blockdev-add", disks.scratch_file("file"))
    options = {"options": [disks.scratch_on("file", os.fstat(number).st_size)]}
    await command(monitor, "blockdev-reopen", options)


def description(text: str) -> int:
    """A file with *text* in memory, open for reading alone: QEMU takes a descriptor only for what it is open for."""
    number = os.memfd_create("layers", os.MFD_CLOEXEC)
    try:
        os.write(number, text.encode())
        return os.open(f"/proc/self/fd/{number}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(number)


async def command(monitor: Monitor, name: str, arguments: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """One QMP command, answered. Older answers (of the restore) and events are passed over."""
    body = json.dumps({"execute": name, "arguments": arguments, "id": _ID}).encode()
    monitor.send_qmp(body, fds)
    pending = b""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            while True:
                pending += await monitor.qmp.get()
                *lines, pending = pending.split(b"\n")
                for line in lines:
                    answer = json.loads(line) if line.strip() else {}
                    if answer.get("id") != _ID:
                        continue
                    if "error" in answer:
                        raise MonitorFailed(f"QEMU refused {name}: {str(answer['error'])[:300]}")
                    return
    except TimeoutError as error:
        raise MonitorFailed(f"QEMU did not answer {name} within {_TIMEOUT_S:g} s") from error
    except (ValueError, RecursionError, AttributeError) as error:
        raise MonitorFailed(f"QEMU answered {name} with what is no JSON") from error
