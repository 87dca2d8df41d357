"""Machines that wait: cloned and warmed before anybody asks, so that a start finds the guest's code translated.

Under emulation a start is mostly the first translation of the guest kernel's code, which belongs to a QEMU process and
so cannot be in a template. A waiting machine has run a container of ours (:mod:`warming`), and nothing of anybody's:
what it gets at hand-out is what a clone gets: randomness, clock, names, addresses, layers, folders, cgroups.

How many wait of each template (a size of machine, a project's own) follows its demand of the last minute, up to a bound
for all, while the host has memory; none after a quarter of an hour without a start. They are made when no start is
under way.
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

#: A machine waits for a quiet moment: what it takes to make one would slow the starts that it is for, and the end of
#: the container that had the last one. Where starts come one after the other, a longer one: what is made between two
#: of them takes more from the others than it gives to one.
_QUIET_S, _LOOK_S = 0.4, 0.1
_ROW_S, _ROW, _ROW_QUIET_S = 2.0, 8, 1.5
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


def lives(machine: Machine) -> bool:
    """Whether nothing is known of its end."""
    return not machine.monitor.ended.is_set()


async def unasked(machine: Machine) -> bool:  # noqa: ARG001 - one of Pool's questions
    """No question: it answers."""
    return True


@dataclass(slots=True)
class Pool:
    """*make* brings up one machine from a template; *end* ends one. At most *most* wait; 0: there is no pool.

    *alive*: asked of each machine before it is given to anybody: one that has died while it waited never is. *answers*:
    whether its agent does, within a moment: one that is stopped, or whose emulator hangs, lives and serves nobody.
    """

    most: int
    make: Callable[[Template], Awaitable[Waiting]]
    end: Callable[[Machine], Awaitable[None]]
    alive: Callable[[Machine], bool] = lives
    answers: Callable[[Machine], Awaitable[bool]] = unasked
    clock: Callable[[], float] = time.monotonic
    available_bytes: Callable[[], tuple[int, int]] = memory
    #: Starts that are under way.
    busy: int = 0
    _ready: list[Waiting] = field(default_factory=list)
    #: Handed out by the name of their tap, before the machine itself is asked for.
    _reserved: dict[str, Waiting] = field(default_factory=dict)
    _starts: deque[tuple[float, Template]] = field(default_factory=lambda: deque(maxlen=256))
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

    def take_with_tap(self, template: Template) -> Waiting | None:
        """A machine of *template* whose card has another end, which the caller puts where it belongs."""
        self._note(template)
        one = next(
            (one for one in self._ready if one.tap and one.template is template and self.alive(one.machine)), None
        )
        if one is not None:
            self._ready.remove(one)
        return one

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

    async def is_reserved(self, tap: str, template: Template) -> bool:
        one = self._reserved.get(tap)
        if one is None or one.template is not template or not self.alive(one.machine):
            return False
        return await self.answers(one.machine)

    def holds(self, machine: Machine) -> bool:
        return any(one.machine is machine for one in (*self._ready, *self._reserved.values()))

    def _pop(self, template: Template, *, tapped: bool = False) -> Waiting | None:
        for one in self._ready:
            if one.template is template and (one.tap or not tapped) and self.alive(one.machine):
                self._ready.remove(one)
                return one
        return None

    def _note(self, template: Template) -> None:
        """A start: the pool follows what was asked for."""
        self._starts.append((self.clock(), template))
        self._wanted.set()

    def targets(self) -> list[tuple[Template, int]]:
        """How many of each template should wait now, of those that were asked for last the first.

        As many as were started in the busiest second of the last minute, at least one; where that is more than the
        bound or the memory allows, each has one before any has two.
        """
        now = self.clock()
        last: dict[int, tuple[float, Template]] = {id(template): (at, template) for at, template in self._starts}
        recent = [one for one in last.values() if now - one[0] <= _IDLE_S]
        recent.sort(key=_by_time, reverse=True)
        wanted = [(template, self._busiest(template, now)) for _, template in recent]
        free, whole = self.available_bytes()
        room = min(self.most, max(0, (free - whole // _RESERVE) // _MACHINE_BYTES))
        given = [0] * len(wanted)
        for number in range(1, self.most + 1):
            for index, (_, most) in enumerate(wanted):
                if number <= most and room > 0:
                    given[index], room = number, room - 1
        return [(template, count) for (template, _), count in zip(wanted, given, strict=True) if count]

    def has_memory(self) -> bool:
        """Whether the host has room for one more than there are."""
        free, whole = self.available_bytes()
        return free - whole // _RESERVE >= _MACHINE_BYTES

    def _busiest(self, template: Template, now: float) -> int:
        times = [at for at, one in self._starts if one is template and now - at < _DEMAND_S]
        return max((sum(at <= other < at + 1.0 for other in times) for at in times), default=1)

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
        """Bring the numbers to the targets."""
        await self._drop()
        while (template := self._lacking()) is not None:
            if self.busy or not self._is_quiet():
                await asyncio.sleep(_LOOK_S)
                continue
            try:
                one = await self.make(template)
            except (CasemateError, OSError) as error:
                log.warning("no micro-VM could be made ready: %s", error)
                await asyncio.sleep(_AGAIN_S)
                return
            self._ready.append(one)

    def _is_quiet(self) -> bool:
        """Whether the last start is long enough ago for how fast they came (each is noted once or twice)."""
        if not self._starts:
            return True
        last = self._starts[-1][0]
        row = sum(last - at < _ROW_S for at, _ in self._starts)
        return self.clock() - last >= (_ROW_QUIET_S if row >= _ROW else _QUIET_S)

    def _lacking(self) -> Template | None:
        """The template of which a machine is to be made next."""
        for template, count in self.targets():
            if sum(one.template is template for one in self._ready) < count:
                return template
        return None

    async def _drop(self) -> None:
        """End those that are too many, of a template that nobody asks for any more, or dead."""
        left = {id(template): count for template, count in self.targets()}
        keep: list[Waiting] = []
        drop: list[Waiting] = []
        for one in self._ready:
            fits = left.get(id(one.template), 0) > 0 and self.alive(one.machine)
            left[id(one.template)] = left.get(id(one.template), 0) - fits
            (keep if fits else drop).append(one)
        self._ready = keep
        for one in drop:
            await self.end(one.machine)

    async def close(self) -> None:
        """End every machine that waits."""
        drop, self._ready = [*self._ready, *self._reserved.values()], []
        self._reserved.clear()
        self._starts.clear()
        for one in drop:
            await self.end(one.machine)

    def count(self) -> int:
        return len(self._ready)


def _by_time(one: tuple[float, Template]) -> float:
    return one[0]
