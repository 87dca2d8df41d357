"""Taps that are closed in a thread, and the priority of a machine that is being made: with pipes and a real process."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import Any, cast

from casemate.isolation.microvm import priority
from casemate.isolation.microvm.taps import Taps


class Machine:
    def __init__(self, name: str, number: int) -> None:
        self.tap, self.tap_fd = name, number


def ends() -> tuple[int, Any]:
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    return reading, cast(Any, Machine("t1", writing))


def test_a_name_is_free_once_what_held_it_is_closed() -> None:
    reading, machine = ends()

    async def body() -> None:
        taps = Taps()
        taps.close(machine)
        taps.close(machine)
        await taps.gone("another")
        await taps.gone("t1")
        assert os.read(reading, 1) == b"", "nobody holds the other end"
        await taps.gone("t1")

    asyncio.run(body())
    assert machine.tap_fd == -1
    os.close(reading)


def test_hostd_lets_go_of_what_stays_with_qemu() -> None:
    reading, machine = ends()
    taps = Taps()
    taps.leave(machine)
    taps.leave(machine)
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_the_priority_is_lowered_and_given_back() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            with priority.idle(child.pid):
                assert os.sched_getscheduler(child.pid) in (os.SCHED_IDLE, os.SCHED_OTHER)
                lowered = os.sched_getscheduler(child.pid)
            assert os.sched_getscheduler(child.pid) == os.SCHED_OTHER or os.geteuid() != 0
            assert lowered == os.SCHED_IDLE, "every process may lower its own and its children's"
        finally:
            child.kill()
    with priority.idle(child.pid):
        pass  # one that has ended is passed over
