"""Pipes with another process at the other end: archives of containers and of images, out and in.

Whoever hands the other end on may take its time to do so: ours stays open until it has ended.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, Awaitable, Callable
from types import TracebackType

CHUNK_BYTES = 256 << 10


class Piped:
    """Use as a context, read until empty. *write* gets the writing end, and ends when all is written.

    It leaves the writing end open: that is closed when it has ended, however that came, so that the end of the pipe
    is its end too.
    """

    def __init__(self, write: Callable[[int], Awaitable[object]]) -> None:
        self._write = write
        self._group = asyncio.TaskGroup()
        self._task: asyncio.Task[object] | None = None
        self._transport: asyncio.ReadTransport | None = None
        self._reader = asyncio.StreamReader(limit=CHUNK_BYTES)
        self._kept = b""

    async def __aenter__(self) -> Piped:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            pipe = os.fdopen(read_end, "rb", buffering=0)
            protocol = asyncio.StreamReaderProtocol(self._reader)
            self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
            await self._group.__aenter__()
        except BaseException:
            os.close(write_end)
            raise
        self._task = _holding(self._group, self._write, write_end)
        return self

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


async def feed(body: AsyncIterable[bytes], read: Callable[[int], Awaitable[object]]) -> None:
    """Write *body* into a pipe of which *read* gets the reading end; ends when *read* has.

    *read* leaves the reading end open: that is closed when it has ended, so that nobody goes on writing for it. It may
    have had enough before the end of *body*. Raises what *read* or *body* raises.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.TaskGroup() as tasks:
            reading = _holding(tasks, read, read_end)
            pipe = os.fdopen(write_end, "wb", buffering=0)
            transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, pipe)
            writer = asyncio.StreamWriter(transport, protocol, None, loop)
            try:
                async for chunk in body:
                    if reading.done():
                        break  # it failed, or had enough: its answer says which
                    writer.write(chunk)
                    await writer.drain()
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                transport.close()
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


def _holding(tasks: asyncio.TaskGroup, use: Callable[[int], Awaitable[object]], end: int) -> asyncio.Task[object]:
    """A task of *use* with our *end* of a pipe, closed when the task has ended: even if it never began."""

    async def using() -> object:
        return await use(end)

    task = tasks.create_task(using())
    task.add_done_callback(lambda _task: os.close(end))
    return task
