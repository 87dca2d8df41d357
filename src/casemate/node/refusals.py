"""What the rights of projects refuse, on the audit log.

A person's first refusal is written at once. Those of the minute that follows are counted, and one row tells of them
when it is over: who asks without end fills no log.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from casemate.node import audit
from casemate.node.core import Core, report
from casemate.spec.errors import CasemateError

WINDOW_S, _LOOK_S = 60.0, 5.0
#: People whose refusals are told apart at a time; those of others are the row of :data:`OTHERS`.
MAX_PEOPLE = 256
OTHERS = "others"


@dataclass(slots=True)
class _Window:
    ends: float
    more: int = 0


@dataclass(slots=True)
class Refusals:
    """Of one node."""

    core: Core
    _windows: dict[str, _Window] = field(default_factory=dict)

    async def note(self, who: str, request: str, code: str) -> None:
        """*who* was refused *request* (method and path) with the error *code*. Never raises for want of a log."""
        name = who if who in self._windows or len(self._windows) < MAX_PEOPLE else OTHERS
        window = self._windows.get(name)
        if window is not None:
            window.more += 1
            return
        self._windows[name] = _Window(self.core.clock() + WINDOW_S)
        await self._write(name, request, code=code)

    async def close_windows(self) -> None:
        """Tell of what was counted in those whose minute is over."""
        now = self.core.clock()
        for name, window in list(self._windows.items()):
            if window.ends <= now:
                del self._windows[name]
                if window.more:
                    await self._write(name, "", more=window.more)

    async def run(self) -> None:
        """Never returns."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.close_windows()

    async def _write(self, who: str, request: str, **facts: object) -> None:
        at = self.core.clock()
        try:
            await self.core.db.write(
                lambda db: audit.append(db, at, who, "rights.refused", request[:200], answer="refused", **facts)
            )
        except CasemateError:
            report("a refusal could not be written to the audit log")
