"""What another process writes into a pipe, read piece by piece: archives of containers and of images."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from types import TracebackType

CHUNK_BYTES = 256 << 10


class Piped:
    """Use as a context, read until empty. *write* gets the writing end, closes it, and ends when all is written."""

    def __init__(self, write: Callable[[int], Awaitable[object]]) -> None:
        self._write = write
        self._group = asyncio.TaskGroup()
        self._task: asyncio.Task[object] | None = None
        self._transport: asyncio.ReadTransport | None = None
        self._reader = asyncio.StreamReader(limit=CHUNK_BYTES)
        self._kept = b""

    async def __aenter__(self) -> Piped:
        await self._group.__aenter__()
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        pipe = os.fdopen(read_end, "rb", buffering=0)
        protocol = asyncio.StreamReaderProtocol(self._reader)
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
        self._task = self._group.create_task(self._run(write_end))
        await asyncio.sleep(0)  # it begins, and so closes its end whatever happens next
        return self

    async def _run(self, write_end: int) -> object:
        return await self._write(write_end)

    async def read(self) -> bytes:
        """The next piece; empty at the end. Raises what the writer failed with."""
        assert self._task is not None
        if self._kept:
            data, self._kept = self._kept, b""
            return data
        data = await self._reader.read(CHUNK_BYTES)
        if not data:
            await self._task
        return data

    def keep(self, data: bytes) -> None:
        """Let the next :meth:`read` give *data*, which was read before it was due."""
        self._kept = data + self._kept

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._transport is not None:
            self._transport.close()
        if self._task is not None and not self._task.done():
            self._task.cancel()
        try:
            await self._group.__aexit__(kind, error, trace)
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
