"""hostd's client against a server in this process: numbers, descriptors, loss, garbage, another peer."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from casemate.hostd import protocol as p
from casemate.hostd.client import HostdAway, HostdClient, HostdMismatch, ask
from casemate.hostd.protocol_firewall import FirewallAnswer, ReferralAnswer
from casemate.spec.errors import LimitExceeded, NotFound, RemoteError, TimedOut
from casemate.spec.workload import ContainerSpec, Process

Answer = Callable[[p.Request, socket.socket], None]
WELCOME = p.Welcome(p.PROTOCOL_VERSION, "boot", {}, {})


def reply(connection: socket.socket, number: int, answer: p.AnyAnswer, fds: tuple[int, ...] = ()) -> None:
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([msgspec.msgpack.encode(p.Reply(number, answer))], beside)


class Server:
    """Says hello; everything else is answered by *answer*."""

    def __init__(self, path: str, answer: Answer) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen(4)
        self.listener.setblocking(False)
        self.answer = answer
        self.connection: socket.socket | None = None
        self.greetings = 0  # connections that said hello

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.connection, _ = await loop.sock_accept(self.listener)
            with self.connection, contextlib.suppress(OSError):
                while data := await loop.sock_recv(self.connection, 300_000):
                    request = msgspec.msgpack.decode(data, type=p.Request)
                    if isinstance(request.operation, p.Hello):
                        self.greetings += 1
                        reply(self.connection, request.number, WELCOME)
                    else:
                        self.answer(request, self.connection)

    def hang_up(self) -> None:
        if self.connection is not None:
            self.connection.shutdown(socket.SHUT_RDWR)


def run(
    tmp_path: Path,
    answer: Answer,
    scenario: Callable[[HostdClient, Server, list[object]], Awaitable[None]],
    *,
    uid: int | None = None,
) -> None:
    async def outer() -> None:
        server = Server(str(tmp_path / "s"), answer)
        seen: list[object] = []
        client = HostdClient(
            str(tmp_path / "s"), on_event=seen.append, on_state=seen.append,
            hostd_uid=os.getuid() if uid is None else uid,
        )  # fmt: skip
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(server.serve()), tasks.create_task(client.run())]
            while client.welcome is None and uid is None:  # noqa: ASYNC110 - the client has no event for it
                await asyncio.sleep(0.005)
            await scenario(client, server, seen)
            for task in running:
                task.cancel()
        server.listener.close()

    asyncio.run(outer())


def test_answers_find_their_questions_in_any_order(tmp_path: Path) -> None:
    held: list[p.Request] = []

    def answer(request: p.Request, connection: socket.socket) -> None:
        held.append(request)
        if len(held) == 3:
            for one in reversed(held):
                assert isinstance(one.operation, p.ContainerKill)
                reply(connection, one.number, p.Warnings((str(one.operation.signal),)))

    async def scenario(client: HostdClient, server: Server, seen: list[object]) -> None:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(ask(client, p.ContainerKill("a" * 64, n), p.Warnings)) for n in (1, 2, 3)]
        assert [task.result().warnings for task in asked] == [("1",), ("2",), ("3",)]

    run(tmp_path, answer, scenario)


def test_what_is_told_bears_no_number_and_needs_a_connection(tmp_path: Path) -> None:
    heard: list[p.Request] = []
    answers = FirewallAnswer((ReferralAnswer(7, True, 5),))

    def answer(request: p.Request, connection: socket.socket) -> None:
        heard.append(request)
        if request.number:
            reply(connection, request.number, p.Done())

    async def scenario(client: HostdClient, server: Server, seen: list[object]) -> None:
        client.tell(answers)
        await ask(client, p.Doctor(), p.Done)
        assert heard[0] == p.Request(0, answers)
        client._drop()
        with pytest.raises(HostdAway):
            client.tell(answers)

    run(tmp_path, answer, scenario)


def test_descriptors_go_both_ways_and_those_that_nobody_takes_are_closed(tmp_path: Path) -> None:
    def answer(request: p.Request, connection: socket.socket) -> None:
        read_end, write_end = os.pipe()
        reply(connection, request.number, p.Done(), (read_end,))
        os.close(read_end)
        os.write(write_end, b"hello")
        os.close(write_end)

    async def scenario(client: HostdClient, server: Server, seen: list[object]) -> None:
        before = set(os.listdir("/proc/self/fd"))
        answered = await client.call(p.ContainerAttach("a" * 64), descriptors=(0,))
        (number,) = answered.take()
        assert os.read(number, 10) == b"hello"
        assert not os.get_inheritable(number)
        os.close(number)
        await ask(client, p.ContainerAttach("a" * 64), p.Done)
        assert set(os.listdir("/proc/self/fd")) == before

    run(tmp_path, answer, scenario)


def test_refusals_and_wrong_answers(tmp_path: Path) -> None:
    def answer(request: p.Request, connection: socket.socket) -> None:
        if isinstance(request.operation, p.ContainerStart):
            reply(connection, request.number, p.Failed(NotFound("no such container").to_problem()))
        elif isinstance(request.operation, p.ContainerTop):
            reply(connection, request.number, p.Done())

    async def scenario(client: HostdClient, server: Server, seen: list[object]) -> None:
        with pytest.raises(RemoteError) as error:
            await client.call(p.ContainerStart("a" * 64))
        assert error.value.to_problem()["code"] == "object.not_found"
        with pytest.raises(HostdMismatch):
            await ask(client, p.ContainerTop("a" * 64), p.Processes)
        with pytest.raises(TimedOut):
            await client.call(p.ContainerPause("a" * 64), timeout_s=0.05)
        huge = ContainerSpec(id="a" * 64, pod="b" * 64, name="n", layers=(), process=Process(args=("x" * 131_072,) * 2))
        with pytest.raises(LimitExceeded):
            await client.call(p.ContainerCreate(huge))

    run(tmp_path, answer, scenario)


def test_a_lost_connection_fails_the_calls_and_is_made_anew(tmp_path: Path) -> None:
    def answer(request: p.Request, connection: socket.socket) -> None:
        if isinstance(request.operation, p.ContainerPause):
            connection.shutdown(socket.SHUT_RDWR)
        else:
            reply(connection, request.number, p.Done())

    async def scenario(client: HostdClient, server: Server, seen: list[object]) -> None:
        with pytest.raises(HostdAway):
            await client.call(p.ContainerPause("a" * 64))
        while client.welcome is None:  # noqa: ASYNC110 - the client has no event for it
            await asyncio.sleep(0.01)
        await ask(client, p.ContainerUnpause("a" * 64), p.Done)
        assert seen == [True, False, True]
        assert server.greetings == 2

    run(tmp_path, answer, scenario)


def test_events_and_garbage(tmp_path: Path) -> None:
    event = p.ContainerExited("a" * 64, 3, False, 1.0)

    def answer(request: p.Request, connection: socket.socket) -> None:
        connection.send(msgspec.msgpack.encode(p.Notice(event)))
        connection.send(b"\xc1 this is no message")

    async def scenario(client: HostdClient, server: Server, seen: list[object]) -> None:
        with pytest.raises(HostdAway):
            await client.call(p.ContainerPause("a" * 64))
        assert seen[:3] == [True, event, False] or seen[:2] == [True, event]

    run(tmp_path, answer, scenario)


def test_another_user_s_socket_is_not_spoken_to(tmp_path: Path) -> None:
    async def scenario(client: HostdClient, server: Server, seen: list[object]) -> None:
        await asyncio.sleep(0.2)
        assert client.welcome is None
        assert server.greetings == 0
        with pytest.raises(HostdAway):
            await client.call(p.ContainerPause("a" * 64))

    run(tmp_path, lambda *_: None, scenario, uid=12345)
