"""Attached clients: order, several of them, a slow one, and the end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from casemate.node import hub
from casemate.node.errors import ClientTooSlow, TooMany
from casemate.node.hub import Hub


def run(scenario: Callable[[Hub, socket.socket, int], Awaitable[None]]) -> None:
    async def outer() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        with theirs:
            async with asyncio.timeout(20):
                await scenario(Hub(), theirs, ours.detach())

    asyncio.run(outer())


def test_frames_come_in_order_and_end() -> None:
    async def scenario(the_hub: Hub, conmon: socket.socket, fd: int) -> None:
        client = the_hub.adopt("c", fd)
        conmon.send(b"\x02out")
        conmon.send(b"\x03err")
        conmon.send(b"\x09junk")
        conmon.send(b"\x02more")
        conmon.close()
        frames = []
        while (frame := await client.get()) is not None:
            frames.append(frame)
        assert frames == [b"\x01out", b"\x02err", b"\x01more"]

    run(scenario)


def test_input_and_its_end_reach_conmon() -> None:
    async def scenario(the_hub: Hub, conmon: socket.socket, fd: int) -> None:
        client = the_hub.adopt("c", fd)
        await client.send(b"x" * 20_000)
        client.end_input()
        loop, got = asyncio.get_running_loop(), []
        while data := await loop.sock_recv(conmon, 65536):
            got.append(len(data))
        assert sum(got) == 20_000
        assert max(got) <= hub.STDIN_CHUNK
        client.leave()

    run(scenario)


async def flood(conmon: socket.socket, limit: int) -> int:
    """Send until the other side no longer reads, or *limit* bytes; what was sent."""
    sent = 0
    while sent < limit:
        try:
            sent += conmon.send(b"\x02" + b"z" * 8000)
        except BlockingIOError:
            await asyncio.sleep(0.02)
            try:
                sent += conmon.send(b"\x02" + b"z" * 8000)
            except BlockingIOError:
                return sent
    return sent


def test_a_slow_client_slows_the_container_and_loses_nothing() -> None:
    async def scenario(the_hub: Hub, conmon: socket.socket, fd: int) -> None:
        client = the_hub.adopt("c", fd)
        sent = await flood(conmon, 50 << 20)
        assert sent < 4 << 20
        assert client.waiting_bytes < hub.HIGH_BYTES + (64 << 10)
        got = 0
        while got < sent:
            frame = await client.get()
            assert frame is not None
            got += len(frame)
        assert got == sent
        client.leave()

    run(scenario)


def test_one_slow_client_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE_S", 0.2)

    async def scenario(the_hub: Hub, conmon: socket.socket, fd: int) -> None:
        slow = the_hub.adopt("c", fd)
        fast = await the_hub.attach("c", _never)
        got = 0

        async def read() -> None:
            nonlocal got
            while (frame := await fast.get()) is not None:
                got += len(frame)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            total = 0
            for _ in range(200):
                total += await flood(conmon, 200_000)
                await asyncio.sleep(0.01)
                if total > 4 << 20:
                    break
            conmon.close()
        assert got == total > 2 << 20
        with pytest.raises(ClientTooSlow):  # noqa: PT012 - the piece that raises is not the first
            while await slow.get() is not None:
                pass

    run(scenario)


async def _never() -> int:
    raise AssertionError("there is a connection already")


def test_the_last_client_that_leaves_closes_the_connection() -> None:
    async def scenario(the_hub: Hub, conmon: socket.socket, fd: int) -> None:
        first = the_hub.adopt("c", fd)
        second = await the_hub.attach("c", _never)
        first.leave()
        conmon.send(b"\x02still")
        assert await second.get() == b"\x01still"
        second.leave()
        assert conmon.recv(10) == b""

    run(scenario)


def test_clients_are_bounded() -> None:
    async def scenario(the_hub: Hub, conmon: socket.socket, fd: int) -> None:
        the_hub.adopt("c", fd)
        for _ in range(hub.MAX_CLIENTS - 1):
            await the_hub.attach("c", _never)
        with pytest.raises(TooMany):
            await the_hub.attach("c", _never)
        the_hub.close()

    run(scenario)
