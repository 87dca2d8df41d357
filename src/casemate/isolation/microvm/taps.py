"""The other ends of machines' cards, closed where nobody waits for it.

A tap goes with its last descriptor, and the kernel takes 20 to 50 ms for that (it waits for every cpu). Were QEMU's the
last one, its end would take that long, and with it a container's removal. So hostd holds one beside it, and closes it
in a thread once QEMU is gone. A hostd that goes away leaves the tap to QEMU; the next one has none to close.
"""

from __future__ import annotations

import asyncio
import os

from casemate.isolation.microvm.machine import Machine


class Taps:
    """Those that are being closed, by name."""

    def __init__(self) -> None:
        self._closing: dict[str, asyncio.Future[None]] = {}

    def close(self, machine: Machine) -> None:
        """Begin to close *machine*'s, whose QEMU has ended. May be repeated."""
        number, machine.tap_fd = machine.tap_fd, -1
        if number < 0:
            return
        name = machine.tap
        done = asyncio.get_running_loop().run_in_executor(None, os.close, number)
        self._closing[name] = done
        done.add_done_callback(lambda one: self._forget(name, one))

    def leave(self, machine: Machine) -> None:
        """Leave it to *machine*'s QEMU, which goes on."""
        number, machine.tap_fd = machine.tap_fd, -1
        if number >= 0:
            os.close(number)

    async def gone(self, name: str) -> None:
        """Until nothing holds the tap *name* of a machine that has ended: only then can it be made anew."""
        done = self._closing.get(name)
        if done is not None:
            await asyncio.shield(done)

    def _forget(self, name: str, done: asyncio.Future[None]) -> None:
        if self._closing.get(name) is done:
            del self._closing[name]
