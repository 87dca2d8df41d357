"""The server with a handler of the test's own: order, refusals, unknown failures, descriptors."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from casemate.host.seqpacket import connect, listen
from casemate.hostd import protocol
from casemate.hostd.errors import Busy, PeerRefused, ProtocolViolated
from casemate.hostd.protocol_firewall import MAX_BATCH, FirewallAnswer, ReferralAnswer
from casemate.hostd.server import MAX_OPERATIONS, Handler, Server, Told, decode, request_number
from casemate.spec.errors import Conflict

Talk = Callable[[socket.socket], Awaitable[None]]


async def with_server(
    tmp_path: Path,
    handle: Handler,
    talk: Callable[[object], Awaitable[None]],
    uid: int | None = None,
    told: Told = lambda _operation: None,
) -> None:
    listening = listen(tmp_path / "s")
    server = Server(handle, os.geteuid() if uid is None else uid, told=told)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(server.serve(listening))
        channel = await connect(tmp_path / "s")
        try:
            await talk(channel)
        finally:
            channel.close()
            task.cancel()
            listening.close()


def packed(number: int, operation: object) -> bytes:
    return msgspec.msgpack.encode(protocol.Request(number, operation))  # type: ignore[arg-type]


def unpacked(data: bytes) -> protocol.Reply:
    return msgspec.msgpack.decode(data, type=protocol.Reply)


def test_answers_bear_the_number_and_failures_their_problem(tmp_path: Path) -> None:
    async def handle(operation: object, fds: list[int]) -> tuple[protocol.AnyAnswer, list[int]]:
        match operation:
            case protocol.PodRemove():
                raise Conflict("taken")
            case protocol.Doctor():
                raise ZeroDivisionError("a secret")
        return protocol.Done(), []

    async def talk(channel: object) -> None:
        channel.send(packed(1, protocol.Observe()))  # type: ignore[attr-defined]
        assert unpacked((await channel.receive()).data).answer.problem["code"] == ProtocolViolated.code  # type: ignore[attr-defined]
        for number, operation, code in (
            (2, protocol.Hello(), None),
            (3, protocol.PodRemove("a" * 64), "object.conflict"),
            (4, protocol.Doctor(), "internal"),
        ):
            channel.send(packed(number, operation))  # type: ignore[attr-defined]
            reply = unpacked((await channel.receive()).data)  # type: ignore[attr-defined]
            assert reply.number == number
            if code is None:
                assert reply.answer == protocol.Done()
            else:
                assert isinstance(reply.answer, protocol.Failed)
                assert reply.answer.problem["code"] == code
                assert "secret" not in str(reply.answer.problem)

    asyncio.run(with_server(tmp_path, handle, talk))


def test_more_than_the_bound_at_once_is_refused(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def handle(operation: object, fds: list[int]) -> tuple[protocol.AnyAnswer, list[int]]:
        if isinstance(operation, protocol.Doctor):
            await gate.wait()
        return protocol.Done(), []

    async def talk(channel: object) -> None:
        channel.send(packed(1, protocol.Hello()))  # type: ignore[attr-defined]
        await channel.receive()  # type: ignore[attr-defined]
        for number in range(MAX_OPERATIONS + 1):
            channel.send(packed(number + 2, protocol.Doctor()))  # type: ignore[attr-defined]
        reply = unpacked((await channel.receive()).data)  # type: ignore[attr-defined]
        assert isinstance(reply.answer, protocol.Failed)
        assert reply.answer.problem["code"] == Busy.code
        gate.set()
        for _ in range(MAX_OPERATIONS):
            assert unpacked((await channel.receive()).data).answer == protocol.Done()  # type: ignore[attr-defined]

    asyncio.run(with_server(tmp_path, handle, talk))


def test_a_peer_of_another_uid_gets_a_refusal_and_nothing_else(tmp_path: Path) -> None:
    async def handle(operation: object, fds: list[int]) -> tuple[protocol.AnyAnswer, list[int]]:
        raise AssertionError

    async def talk(channel: object) -> None:
        reply = unpacked((await channel.receive()).data)  # type: ignore[attr-defined]
        assert isinstance(reply.answer, protocol.Failed)
        assert reply.answer.problem["code"] == PeerRefused.code
        assert await channel.receive() is None  # type: ignore[attr-defined]

    asyncio.run(with_server(tmp_path, handle, talk, uid=54321))


def test_descriptors_that_nobody_took_are_closed(tmp_path: Path) -> None:
    seen: list[int] = []

    async def handle(operation: object, fds: list[int]) -> tuple[protocol.AnyAnswer, list[int]]:
        seen.extend(fds)
        return protocol.Done(), []

    async def talk(channel: object) -> None:
        number = os.open("/dev/null", os.O_RDONLY)
        channel.send(packed(1, protocol.Hello()), [number])  # type: ignore[attr-defined]
        os.close(number)
        await channel.receive()  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(seen[0])

    asyncio.run(with_server(tmp_path, handle, talk))


def test_what_is_told_needs_no_answer_and_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    told: list[FirewallAnswer] = []
    answers = FirewallAnswer(tuple(ReferralAnswer(number, True) for number in range(MAX_BATCH)))

    async def handle(operation: object, fds: list[int]) -> tuple[protocol.AnyAnswer, list[int]]:
        return protocol.Done(), []

    def take(operation: FirewallAnswer) -> None:
        told.append(operation)
        if len(told) == 1:
            raise ZeroDivisionError("the server goes on")

    async def talk(channel: object) -> None:
        async def code() -> object:
            reply = unpacked((await channel.receive()).data)  # type: ignore[attr-defined]
            assert reply.number == 0
            assert isinstance(reply.answer, protocol.Failed)
            return reply.answer.problem["code"]

        channel.send(packed(0, answers))  # type: ignore[attr-defined]
        assert await code() == ProtocolViolated.code, "before the greeting"
        channel.send(packed(1, protocol.Hello()))  # type: ignore[attr-defined]
        assert unpacked((await channel.receive()).data).number == 1  # type: ignore[attr-defined]
        for data in (
            packed(0, protocol.Observe()),
            packed(0, FirewallAnswer(())),
            packed(0, FirewallAnswer((*answers.answers, ReferralAnswer(1, True)))),
            packed(0, FirewallAnswer((ReferralAnswer(1, True, -1),))),
            packed(0, answers)[:-3],
        ):
            channel.send(data)  # type: ignore[attr-defined]
            assert await code() == ProtocolViolated.code
        assert told == []
        channel.send(packed(0, answers))  # type: ignore[attr-defined]
        channel.send(packed(0, answers))  # type: ignore[attr-defined]
        channel.send(packed(2, protocol.Observe()))  # type: ignore[attr-defined]
        assert unpacked((await channel.receive()).data).number == 2, "nothing came for those"  # type: ignore[attr-defined]
        assert told == [answers, answers]

    asyncio.run(with_server(tmp_path, handle, talk, told=take))


def test_numbers_of_what_is_no_request() -> None:
    assert request_number(msgspec.msgpack.encode({"number": 5, "x": 1})) == 5
    for data in (b"", b"\xc1", b"\x91" * 9999, msgspec.msgpack.encode([1]), msgspec.msgpack.encode({"number": -1})):
        assert request_number(data) == 0
        with pytest.raises(ProtocolViolated):
            decode(data)
