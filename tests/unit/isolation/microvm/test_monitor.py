"""hostd's end against an agent that refuses, lies, floods, stalls or dies: typed errors, bounded waits, no hang."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from casemate.host import seqpacket
from casemate.isolation.microvm import driver, frames
from casemate.isolation.microvm.errors import (
    AgentFailed,
    MachineMissing,
    MonitorFailed,
    QemuMissing,
    RootfsFailed,
    TemplateFailed,
)
from casemate.isolation.microvm.frames import GuestBroken, Kind, Tag
from casemate.isolation.microvm.monitor import Monitor
from casemate.isolation.microvm.template import qmp


def reply(number: int, errno: int, words: str = "") -> bytes:
    return b"C" + frames.encode(Kind.REPLY, number, [frames.u32(Tag.ERRNO, errno), frames.text(Tag.TEXT, words)])


def against(answer: Callable[[socket.socket, bytes], None], use: Callable[[Monitor], object]) -> None:
    """Run *use* (a coroutine function) with a monitor whose other end answers each message by *answer*."""

    async def both() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()

        def readable() -> None:
            data = theirs.recv(1 << 18)
            if data:
                answer(theirs, data)
            else:
                loop.remove_reader(theirs)

        loop.add_reader(theirs, readable)
        monitor = Monitor(seqpacket.Channel(ours), Path("/nowhere"))
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            serving = group.create_task(monitor.serve())
            try:
                await use(monitor)  # type: ignore[misc]
            finally:
                monitor.leave()
                await serving
                # What was sent last is read, then the end.
                for _ in range(5):
                    await asyncio.sleep(0)
                loop.remove_reader(theirs)
                theirs.close()

    asyncio.run(both())


def test_a_refusal_is_the_step_s_error() -> None:
    async def use(monitor: Monitor) -> None:
        with pytest.raises(RootfsFailed, match="mount of a layer: Invalid argument") as caught:
            await monitor.ask(Kind.ROOTFS, [], error=RootfsFailed)
        assert caught.value.code == "microvm.rootfs"
        assert caught.value.facts["errno"] == 22

    against(lambda end, _data: end.send(reply(1, 22, "mount of a layer")), use)


def test_an_errno_that_no_kernel_has() -> None:
    async def use(monitor: Monitor) -> None:
        with pytest.raises(AgentFailed, match="error 4294967295"):
            await monitor.ask(Kind.START, [])

    against(lambda end, _data: end.send(reply(1, 0xFFFF_FFFF)), use)


def test_a_stall_ends_with_the_consoles_tail() -> None:
    def answer(end: socket.socket, data: bytes) -> None:
        if data[:1] == b"T":
            end.send(b"TKernel panic\x1b[2J")

    async def use(monitor: Monitor) -> None:
        with pytest.raises(AgentFailed, match=r"no answer within 0\.05 s; console: Kernel panic"):
            await monitor.call(Kind.START, [], timeout_s=0.05)

    against(answer, use)


@pytest.mark.parametrize("noise", [b"C", b"C\xff\xff", b"C" + frames.encode(Kind.CREATE, 1), b"C" + bytes(200)])
def test_a_guest_that_breaks_the_protocol_is_ended(noise: bytes) -> None:
    seen: list[bytes] = []

    def answer(end: socket.socket, data: bytes) -> None:
        seen.append(data[:1])
        if data[:1] == b"C":
            end.send(noise)

    async def use(monitor: Monitor) -> None:
        with pytest.raises(GuestBroken):
            await monitor.call(Kind.START, [])
        with pytest.raises(MonitorFailed):
            await monitor.call(Kind.START, [])

    against(answer, use)
    assert b"Q" in seen


def test_answers_to_what_nobody_asked_change_nothing() -> None:
    def answer(end: socket.socket, _data: bytes) -> None:
        for number in (0, 2, 77, 0xFFFF_FFFF):
            end.send(reply(number, 5))
        end.send(b"Znonsense")
        end.send(reply(1, 0))
        end.send(reply(1, 5))

    async def use(monitor: Monitor) -> None:
        assert (await monitor.ask(Kind.START, [])).number == 1

    against(answer, use)


def test_a_flood_takes_no_more_than_its_bound() -> None:
    def answer(end: socket.socket, _data: bytes) -> None:
        try:
            for _ in range(1000):
                end.send(b"M" + bytes(100))
        except BlockingIOError:
            pass

    async def use(monitor: Monitor) -> None:
        for _ in range(10):
            monitor.send_qmp(b"{}")
            await asyncio.sleep(0.01)
        assert monitor.qmp.qsize() <= 256

    against(answer, use)


def test_a_flood_of_events_ends_the_guest() -> None:
    event = b"C" + frames.encode(Kind.EXITED, 0, [frames.text(Tag.CONTAINER, "c")])

    def answer(end: socket.socket, data: bytes) -> None:
        if data[:1] == b"C":
            flood(end)

    def flood(end: socket.socket) -> None:
        try:
            while True:
                end.send(event)
        except BlockingIOError:
            asyncio.get_running_loop().call_soon(flood, end)
        except OSError:
            return

    async def use(monitor: Monitor) -> None:
        with pytest.raises(GuestBroken, match="nobody asked for"):
            await monitor.call(Kind.START, [])

    against(answer, use)


def test_what_has_come_is_heard_before_the_loop_comes_to_it() -> None:
    """Whoever learns of an end by a process's asks before the task that serves has had its turn."""
    event = b"C" + frames.encode(Kind.EXITED, 0, [frames.text(Tag.CONTAINER, "c")])

    async def use() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        heard: list[str] = []
        monitor = Monitor(seqpacket.Channel(ours), Path("/nowhere"))
        monitor.on_event = lambda message: heard.append(message.text(Tag.CONTAINER))
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            serving = group.create_task(monitor.serve())
            await asyncio.sleep(0)
            for _ in range(2):
                theirs.send(event)
            monitor.catch_up()
            assert heard == ["c", "c"]
            monitor.catch_up()
            theirs.send(event)
            for _ in range(5):
                await asyncio.sleep(0)
            assert heard == ["c"] * 3, "the task goes on"
            # A guest that breaks the protocol is ended here as it is there.
            theirs.send(b"C\xff\xff")
            monitor.catch_up()
            await serving
        assert monitor.broken is not None
        assert theirs.recv(10) == b"Q"
        theirs.close()
        monitor.catch_up()
        assert heard == ["c"] * 3

    asyncio.run(use())


def test_a_monitor_that_dies_fails_what_waits() -> None:
    async def use(monitor: Monitor) -> None:
        with pytest.raises(MonitorFailed) as caught:
            await monitor.call(Kind.START, [])
        assert caught.value.code == "microvm.monitor"

    against(lambda end, _data: end.shutdown(socket.SHUT_RDWR), use)


@pytest.mark.parametrize("words", [b'{"error": {"desc": "no"}}\n', b"no json\n", b"[" * 5000 + b"\n"])
def test_qemus_refusals_and_nonsense(words: bytes) -> None:
    async def use(monitor: Monitor) -> None:
        with pytest.raises(TemplateFailed) as caught:
            await qmp(monitor, "migrate")
        assert caught.value.code == "microvm.template"

    against(lambda end, _data: end.send(b"M" + words), use)


@pytest.mark.parametrize("text", ["", "QEMU emulator version 6.2.0", "version x"])
def test_a_qemu_that_is_too_old(text: str) -> None:
    with pytest.raises(QemuMissing) as caught:
        driver.read_version(text)
    assert caught.value.code == "microvm.qemu_missing"


def test_no_qemu_at_all() -> None:
    with pytest.raises(QemuMissing):
        asyncio.run(driver.qemu_version("qemu-system-nowhere"))


def test_codes_are_the_apis() -> None:
    assert MachineMissing.code == "microvm.container_missing"
    assert AgentFailed.code == "microvm.agent"
