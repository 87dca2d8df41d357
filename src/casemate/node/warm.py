"""A child of casemated that is kept for a while: its libraries are loaded once, its work is off the loop.

One job at a time; who comes while one is under way waits. A job that does not end in time ends the child with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys

from casemate.image.child import environment
from casemate.image.errors import WorkerFailed
from casemate.spec.errors import TimedOut

#: Idle for so long, the child ends: its 60 MB are worth more than 0.3 s at the next question.
IDLE_S = 60.0
MAX_WAITING = 256
#: What the child that checks signatures answers at most: statements that hold an SBOM.
MAX_MESSAGE_BYTES = 64 << 20


class Warm:
    """The child ``python -m`` *module*, started at the first job. Messages are four bytes length and bytes."""

    def __init__(self, module: str, max_message_bytes: int, idle_s: float = IDLE_S) -> None:
        self._module = module
        self._max = max_message_bytes
        self._idle_s = idle_s
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._process: asyncio.subprocess.Process | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Jobs under way and those that wait for it."""
        return self._waiting

    async def ask(self, job: bytes, timeout_s: float) -> bytes:
        """The answer to *job*. Raises :class:`TimedOut` and :class:`WorkerFailed`; cancelling ends the child."""
        if self._waiting >= MAX_WAITING:
            raise WorkerFailed(f"{MAX_WAITING} jobs wait for {self._module} already")
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s), self._lock:
                return await self._converse(job)
        except TimeoutError as error:
            raise TimedOut(f"{self._module} did not answer within {timeout_s:.0f} s") from error
        finally:
            self._waiting -= 1

    async def _converse(self, job: bytes) -> bytes:
        if self._timer is not None:
            self._timer.cancel()
        process = await self._alive()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(len(job).to_bytes(4, "big") + job)
            await process.stdin.drain()
            length = int.from_bytes(await process.stdout.readexactly(4), "big")
            if length > self._max:
                raise WorkerFailed(f"{self._module} answers {length} bytes; {self._max} are allowed")
            answer = await process.stdout.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            await self._end()
            raise WorkerFailed(f"{self._module} ended in the middle of a job") from error
        except BaseException:
            await asyncio.shield(self._end())
            raise
        self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._let_go)
        return answer

    async def _alive(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", self._module,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment(),
            start_new_session=True, limit=1 << 20,
        )  # fmt: skip
        return self._process

    def _let_go(self) -> None:
        """The end of the input ends the child by itself."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def close(self) -> None:
        """End the child, whatever it does."""
        if self._timer is not None:
            self._timer.cancel()
        await self._end()


class WarmSeveral:
    """Some children of one kind: what waits for a slow peer holds up nobody else. Each starts when it is needed."""

    def __init__(self, module: str, max_message_bytes: int, count: int) -> None:
        self._children = [Warm(module, max_message_bytes) for _ in range(count)]

    async def ask(self, job: bytes, timeout_s: float) -> bytes:
        """As :meth:`Warm.ask`, of the child with the least to do; of those that are idle, of the first."""
        return await min(self._children, key=lambda child: child.waiting).ask(job, timeout_s)

    async def close(self) -> None:
        for child in self._children:
            await child.close()
