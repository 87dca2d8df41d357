"""Machines that wait: cloned and warmed before anybody asks, so that a start finds the guest's code translated.

Under emulation a start is mostly the first translation of the guest kernel's code, which belongs to a QEMU process and
so cannot be in a template. A waiting machine has run a container of ours (:mod:`warming`), and nothing of anybody's:
what it gets at hand-out is what a clone gets: randomness, clock, names, addresses, layers, folders, cgroups.

How many wait follows the demand of the last minute, up to a bound, while the host has memory; none after a quarter of
an hour without a start. They are made when no start is under way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from casemate.isolation.microvm.machine import Machine
from casemate.isolation.microvm.template import Template
from casemate.spec.errors import CasemateError

log = logging.getLogger("casemate.hostd")

#: A machine waits for a quiet moment: what it takes to make one would slow the starts that it is for.
_QUIET_S = 0.15
_DEMAND_S, _IDLE_S, _AGAIN_S = 60.0, 900.0, 30.0
#: Left alone whatever the demand: of the host's memory an eighth, and what one machine may come to touch.
_RESERVE, _MACHINE_BYTES = 8, 256 << 20


def memory() -> tuple[int, int]:
    """(available, whole) bytes of the host's memory."""
    found = {}
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) << 10 if rest.split() else 0
    return found["MemAvailable"], found["MemTotal"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """One that waits: *template* it was cloned from; *tap*: the name of its card's other end, empty for none."""

    machine: Machine
    template: Template
    tap: str


@dataclass(slots=True)
class Pool:
    """*make* brings up one machine from a template; *end* ends one. At most *most* wait; 0: there is no pool."""

    most: int
    make: Callable[[Template], Awaitable[Waiting]]
    end: Callable[[Machine], Awaitable[None]]
    clock: Callable[[], float] = time.monotonic
    available_bytes: Callable[[], tuple[int, int]] = memory
    #: Starts that are under way.
    busy: int = 0
    _ready: list[Waiting] = field(default_factory=list)
    #: Handed out by the name of their tap, before the machine itself is asked for.
    _reserved: dict[str, Waiting] = field(default_factory=dict)
    _starts: deque[float] = field(default_factory=lambda: deque(maxlen=256))
    _template: Template | None = None
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, template: Template, tap: str = "") -> Machine | None:
        """A machine of *template* whose card's other end is *tap* (reserved before), or any when there is no *tap*."""
        self._note(template)
        if tap:
            found = self._reserved.pop(tap, None)
            # The template is checked when it is reserved; another size cannot get here.
            return None if found is None else found.machine
        one = self._pop(template)
        return None if one is None else one.machine

    def reserve(self, template: Template, tap: str) -> str | None:
        """The name of a waiting machine's tap, which the caller renames to *tap*; :meth:`take` then gives it."""
        self._note(template)
        one = self._pop(template)
        if one is None or not one.tap:
            return None
        self._reserved[tap] = one
        return one.tap

    async def release(self, tap: str) -> None:
        """Nobody takes the machine that was reserved for *tap*."""
        one = self._reserved.pop(tap, None)
        if one is not None:
            await self.end(one.machine)

    def is_reserved(self, tap: str, template: Template) -> bool:
        one = self._reserved.get(tap)
        return one is not None and one.template is template and not one.machine.monitor.ended.is_set()

    def holds(self, machine: Machine) -> bool:
        return any(one.machine is machine for one in (*self._ready, *self._reserved.values()))

    def _pop(self, template: Template) -> Waiting | None:
        for one in self._ready:
            if one.template is template and not one.machine.monitor.ended.is_set():
                self._ready.remove(one)
                return one
        return None

    def _note(self, template: Template) -> None:
        """A start: the pool follows the size that was asked for last."""
        self._starts.append(self.clock())
        self._template = template
        self._wanted.set()

    def target(self) -> int:
        """How many should wait now: as many as were started in the busiest second of the last minute."""
        now = self.clock()
        recent = [at for at in self._starts if now - at < _DEMAND_S]
        if not self._starts or now - self._starts[-1] > _IDLE_S:
            return 0
        busiest = max((sum(at <= other < at + 1.0 for other in recent) for at in recent), default=0)
        free, whole = self.available_bytes()
        room = max(0, (free - whole // _RESERVE) // _MACHINE_BYTES)
        return min(self.most, max(1, busiest), room)

    async def run(self) -> None:
        """For ever."""
        while self.most:
            try:
                async with asyncio.timeout(_AGAIN_S):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            await self._settle()

    async def _settle(self) -> None:
        """Bring the number to the target."""
        await self._drop()
        while self._template is not None and len(self._ready) < self.target():
            if self.busy or (self._starts and self.clock() - self._starts[-1] < _QUIET_S):
                await asyncio.sleep(_QUIET_S)
                continue
            template = self._template
            try:
                one = await self.make(template)
            except (CasemateError, OSError) as error:
                log.warning("no micro-VM could be made ready: %s", error)
                await asyncio.sleep(_AGAIN_S)
                return
            self._ready.append(one)

    async def _drop(self) -> None:
        """End those that are too many, of another template, or dead."""
        target = self.target()
        fit = [one for one in self._ready if one.template is self._template and not one.machine.monitor.ended.is_set()]
        keep = fit[:target]
        drop = [one for one in self._ready if one not in keep]
        self._ready = keep
        for one in drop:
            await self.end(one.machine)

    async def close(self) -> None:
        """End every machine that waits."""
        drop, self._ready = [*self._ready, *self._reserved.values()], []
        self._reserved.clear()
        self._template = None
        for one in drop:
            await self.end(one.machine)

    def count(self) -> int:
        return len(self._ready)
