"""Templates with a second processor, on which a rehearsal translates the way of the user's container ahead of it.

Under emulation a start is mostly the first translation of the guest's code, by one thread; QEMU's processors share what
they translate. A clone of such a template runs a container of nobody's (``guest/agent/rehearsal.c``) while the user's
is made. It is for starts that leave the host a processor free: with two processors a guest does more work in all.

The template is made beside the one without, where neither is there; else in the background, after the first start that
would have had use for it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from casemate.isolation.microvm.template import Recipe, Template, Templates
from casemate.spec.errors import CasemateError

log = logging.getLogger("casemate.hostd")

CPUS = 2
#: Between two attempts to make one; between two looks whether a start is under way, and how many looks at most.
_AGAIN_S, _LOOK_S, _LOOKS = 300.0, 0.2, 600


def half_of_host() -> int:
    """How many starts at a time leave each of them a second processor."""
    return len(os.sched_getaffinity(0)) // 2


@dataclass(slots=True)
class Rehearsals:
    """*most* starts at a time rehearse (0: none). *busy*: how many machines are being made; *has_memory*: whether the
    host has room for one more template."""

    templates: Templates
    group: asyncio.TaskGroup
    most: int
    busy: Callable[[], int]
    has_memory: Callable[[], bool]
    clock: Callable[[], float] = time.monotonic
    _making: bool = field(default=False, init=False)
    _not_before: float = field(default=0.0, init=False)

    def foresee(self, recipe: Recipe, others: int) -> None:
        """Have the template made beside that of *recipe*, which the start is about to wait for: on a processor that is
        idle now, and not in the way of the starts that follow."""
        if not self.templates.exists(recipe):
            self.of(recipe, others)

    def of(self, recipe: Recipe, others: int) -> Template | None:
        """The template of *recipe* with a rehearsal, where there is one and a processor is free for it: *others* are
        the machines that began a moment ago and have not ended."""
        if recipe.accelerator.kind != "tcg" or max(self.busy(), others + 1) > self.most:
            return None
        wanted = dataclasses.replace(recipe, cpus=CPUS)
        found = self.templates.ready(wanted)
        if found is None and not self._making and self.clock() >= self._not_before and self.has_memory():
            self._making = True
            self.group.create_task(self._make(wanted))
        return found

    async def _make(self, recipe: Recipe) -> None:
        try:
            for _ in range(_LOOKS):
                if not self.busy():
                    break
                await asyncio.sleep(_LOOK_S)
            await self.templates.get(recipe)
        except (CasemateError, OSError) as error:
            self._not_before = self.clock() + _AGAIN_S
            log.warning("no template with a rehearsal could be made: %s", error)
        finally:
            self._making = False
