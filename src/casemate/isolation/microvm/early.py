"""Machines that are begun before the runtime asks for them: QEMU starts while conmon and casemate-vm do.

A start takes 10 to 30 ms from hostd's decision to the request that a machine be made, on two processors of which one
would do nothing meanwhile. What is begun is asked for once, by the container's name, or ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from casemate.isolation.microvm.errors import MachineMissing
from casemate.isolation.microvm.machine import Machine
from casemate.spec.errors import CasemateError


class Early:
    """What was begun, by container. *group* runs it; *end* ends a machine that nobody asks for."""

    def __init__(self, group: asyncio.TaskGroup, end: Callable[[Machine], Awaitable[None]]) -> None:
        self._group, self._end = group, end
        self._begun: dict[str, asyncio.Future[Machine]] = {}

    def begin(self, container: str, make: Callable[[], Coroutine[Any, Any, Machine]]) -> None:
        """Let *make* bring up the machine of *container*; :meth:`take` has it, or its error."""
        done: asyncio.Future[Machine] = asyncio.get_running_loop().create_future()

        async def body() -> None:
            try:
                machine = await make()
            except asyncio.CancelledError:
                done.cancel()
                raise
            except Exception as error:  # whose machine it was hears of it
                done.set_exception(error)
            else:
                done.set_result(machine)

        # Where the start fails at another step, nobody asks for this error.
        done.add_done_callback(lambda one: one.cancelled() or one.exception())
        self._begun[container] = done
        self._group.create_task(body())

    def has(self, container: str) -> bool:
        return container in self._begun

    async def take(self, container: str) -> Machine | None:
        """The machine that was begun for *container*, which is the caller's from now on; None: none was.

        Raises what its making raised; MachineMissing where it was abandoned meanwhile.
        """
        done = self._begun.get(container)
        if done is None:
            return None
        # Who is cancelled while waiting leaves it to be abandoned.
        machine = await asyncio.shield(done)
        if self._begun.get(container) is not done:
            # Its start failed elsewhere: the machine is being ended.
            raise MachineMissing(f"container {container} was deleted while its machine was begun")
        del self._begun[container]
        return machine

    async def abandon(self, container: str) -> None:
        """End the machine that was begun for *container* and that nobody has asked for."""
        done = self._begun.pop(container, None)
        if done is None:
            return
        with contextlib.suppress(CasemateError, OSError):
            await self._end(await asyncio.shield(done))
