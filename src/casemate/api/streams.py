"""Answers that go on: server-sent events, frames of a log, tar streams. Each ends when the daemon is about to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
from starlette.responses import StreamingResponse

from casemate.api.routing import Call, problem_of
from casemate.node import logs, stats
from casemate.node.piped import Piped
from casemate.node.rows import ContainerRow

T = TypeVar("T")
FRAMES = "application/vnd.casemate.frames"
#: Bytes of log frames that are sent together.
BATCH_BYTES = 32 << 10


def event_stream(call: Call, source: AsyncIterator[bytes]) -> StreamingResponse:
    """*source*, pieces of :func:`sse`, as ``text/event-stream``."""
    return StreamingResponse(
        until_ending(call, source), media_type="text/event-stream", headers={"cache-control": "no-store"}
    )


def sse(event: str, value: object, id_: int | str | None = None) -> bytes:
    """One server-sent event with a JSON data line."""
    head = f"id: {id_}\n" if id_ is not None else ""
    return f"{head}event: {event}\ndata: ".encode() + msgspec.json.encode(value) + b"\n\n"


#: A comment, so that a dead connection is noticed.
HEARTBEAT = b": \n\n"


async def until_ending(call: Call, source: AsyncIterator[T]) -> AsyncIterator[T]:
    """What *source* gives, until it ends or the daemon does; *source* is closed in either case."""
    ending = asyncio.ensure_future(call.node.ending.wait())  # noqa: TID251 - cancelled below, in the same function
    iterator = source.__aiter__()
    following: asyncio.Future[T] | None = None
    try:
        while True:
            following = asyncio.ensure_future(_next(iterator))  # noqa: TID251 - awaited or cancelled below
            await asyncio.wait((following, ending), return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                return
            try:
                value = following.result()
            except StopAsyncIteration:
                return
            yield value
    finally:
        ending.cancel()
        if following is not None and not following.done():
            following.cancel()
            await asyncio.wait((following,))
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


async def _next(iterator: AsyncIterator[T]) -> T:
    return await iterator.__anext__()


async def piped_stream(
    call: Call, output: Piped, media_type: str, headers: Callable[[], Awaitable[dict[str, str]]] | None = None
) -> StreamingResponse:
    """*output*, not entered yet, as an answer; what fails before its first byte is answered as a problem.

    *headers* may read ahead in *output* for what they say.
    """
    await output.__aenter__()
    try:
        told = await headers() if headers is not None else None
        first = await output.read()
    except BaseException as error:
        await output.__aexit__(type(error), error, error.__traceback__)
        raise

    async def chunks() -> AsyncIterator[bytes]:
        data = first
        try:
            while data:
                yield data
                data = await output.read()
        finally:
            await output.__aexit__(None, None, None)

    return StreamingResponse(until_ending(call, chunks()), media_type=media_type, headers=told)


def log_stream(call: Call, container: str, wanted: logs.Wanted, *, stamps: bool) -> StreamingResponse:
    """Lines of a container's log as frames."""

    async def frames() -> AsyncIterator[bytes]:
        batch = bytearray()
        last = 0.0
        fresh = {1: True, 2: True}
        async for line in logs.read(call.core, container, wanted):
            # A stamp stands at the beginning of a line, not before each of its parts.
            text = line.stamp + b" " + line.text if stamps and fresh[line.stream] else line.text
            fresh[line.stream] = not line.partial
            batch += bytes((line.stream, 0, 0, 0)) + len(text).to_bytes(4, "big") + text
            now = asyncio.get_running_loop().time()
            if len(batch) > BATCH_BYTES or wanted.follow or now - last > 0.1:
                last = now
                yield bytes(batch)
                batch.clear()
        if batch:
            yield bytes(batch)

    return StreamingResponse(until_ending(call, frames()), media_type=FRAMES)


def stats_stream(call: Call, rows: Sequence[ContainerRow], *, everything: bool) -> StreamingResponse:
    """A :class:`StatsAnswer` each second."""

    async def samples() -> AsyncIterator[bytes]:
        number = 0
        async for answer in stats.follow(call.core, rows, call.project if everything else None):
            number += 1
            yield sse("stats", answer, number)

    return event_stream(call, samples())


def problem_event(error: BaseException) -> bytes:
    """An error in the middle of a stream, as its last event."""
    return sse("problem", problem_of(error))
