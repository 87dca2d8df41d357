"""Pipes to another process: who hands the other end on late, has enough, fails or never begins."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path

import pytest

from casemate.node.piped import Piped, feed

TURNS = 20
CHUNK = b"c" * (64 << 10)


class OtherEndError(Exception):
    """What the process at the other end fails with."""


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


def descriptors() -> set[str]:
    # The folder's own is closed when the list is made.
    return {name for name in os.listdir("/proc/self/fd") if Path("/proc/self/fd", name).is_symlink()}


def run(scenario: Awaitable[None]) -> None:
    async def outer() -> None:
        async with asyncio.timeout(30):
            await scenario
            await asyncio.sleep(0)  # transports that were closed let go of theirs

    asyncio.run(outer())


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def whole(output: Piped) -> bytes:
    data = b""
    while piece := await output.read():
        data += piece
    return data


def test_out_of_a_writer_that_takes_its_end_late() -> None:
    async def write(end: int) -> None:
        await turns()
        other = os.dup(end)  # as sending it does
        await turns()
        os.write(other, b"all of it")
        os.close(other)
        await turns()

    async def scenario() -> None:
        async with Piped(write) as output:
            assert await whole(output) == b"all of it"

    run(scenario())


def test_out_of_a_writer_that_fails() -> None:
    async def write(end: int) -> None:
        os.write(end, b"half")
        raise OtherEndError

    async def scenario() -> None:
        async with Piped(write) as output:
            await whole(output)

    with pytest.raises(OtherEndError):
        run(scenario())


def test_out_of_a_writer_that_never_began() -> None:
    began = False

    async def write(_end: int) -> None:
        nonlocal began
        began = True

    async def scenario() -> None:
        async with Piped(write):
            pass

    run(scenario())
    assert not began


def test_what_was_read_ahead_is_read_again() -> None:
    async def write(end: int) -> None:
        os.write(end, b"first, then")

    async def scenario() -> None:
        async with Piped(write) as output:
            output.keep(await output.read())
            assert await whole(output) == b"first, then"

    run(scenario())


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for one in given:
        yield one


async def without_end() -> AsyncIterator[bytes]:
    while True:
        yield CHUNK


def test_into_a_reader_that_takes_its_end_late() -> None:
    found = b""

    async def read(end: int) -> None:
        nonlocal found
        await turns()
        other = os.dup(end)
        with os.fdopen(other, "rb") as stream:
            found = await asyncio.to_thread(stream.read)

    run(feed(pieces(b"one,", b"two"), read))
    assert found == b"one,two"


def test_into_a_reader_that_has_enough() -> None:
    async def read(end: int) -> None:
        os.set_blocking(end, False)
        while True:
            try:
                os.read(end, 1)
            except BlockingIOError:
                await asyncio.sleep(0)
            else:
                return

    run(feed(without_end(), read))


def test_into_a_reader_that_fails() -> None:
    async def read(_end: int) -> None:
        await turns()
        raise OtherEndError

    with pytest.raises(OtherEndError):
        run(feed(without_end(), read))


def test_a_body_that_breaks_off_ends_the_reader() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        raise OtherEndError

    async def read(_end: int) -> None:
        await asyncio.Event().wait()

    with pytest.raises(OtherEndError):
        run(feed(body(), read))
