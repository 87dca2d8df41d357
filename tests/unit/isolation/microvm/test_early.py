"""Machines that are begun early: had once, by their container, or ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from casemate.isolation.microvm.early import Early
from casemate.isolation.microvm.errors import MachineMissing, MonitorFailed

MACHINE = cast(Any, object())


def within(work: Callable[[Early, list[Any]], Awaitable[None]]) -> None:
    """Run *work* with an :class:`Early` whose ended machines are listed."""
    ended: list[Any] = []

    async def end(machine: Any) -> None:
        ended.append(machine)

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            await work(Early(group, end), ended)

    asyncio.run(run())


async def made() -> Any:
    await asyncio.sleep(0)
    return MACHINE


async def failed() -> Any:
    await asyncio.sleep(0)
    raise MonitorFailed("no")


def test_a_machine_is_had_once() -> None:
    async def work(early: Early, ended: list[Any]) -> None:
        early.begin("one", made)
        assert early.has("one")
        assert await early.take("two") is None
        assert await early.take("one") is MACHINE
        assert not early.has("one")
        assert await early.take("one") is None
        await early.abandon("one")
        assert ended == []

    within(work)


def test_what_nobody_asks_for_is_ended() -> None:
    async def work(early: Early, ended: list[Any]) -> None:
        early.begin("one", made)
        await early.abandon("one")
        assert ended == [MACHINE]
        assert not early.has("one")

    within(work)


def test_a_failure_is_the_askers_and_ends_nobody_else() -> None:
    async def work(early: Early, ended: list[Any]) -> None:
        early.begin("one", failed)
        early.begin("two", made)
        with pytest.raises(MonitorFailed):
            await early.take("one")
        assert early.has("one"), "until it is abandoned"
        await early.abandon("one")
        assert not early.has("one")
        assert await early.take("two") is MACHINE
        assert ended == []

    within(work)


def test_who_is_cancelled_while_waiting_leaves_the_machine_to_be_ended() -> None:
    async def work(early: Early, ended: list[Any]) -> None:
        gate = asyncio.Event()

        async def slow() -> Any:
            await gate.wait()
            return MACHINE

        early.begin("one", slow)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await early.take("one")
        gate.set()
        await early.abandon("one")
        assert ended == [MACHINE]

    within(work)


def test_what_is_deleted_while_it_is_asked_for_is_ended_once_and_nobodys() -> None:
    """conmon was killed: its request waits for the machine while the start's failure takes everything away."""

    async def work(early: Early, ended: list[Any]) -> None:
        gate = asyncio.Event()

        async def slow() -> Any:
            await gate.wait()
            return MACHINE

        async def refused() -> None:
            with pytest.raises(MachineMissing):
                await early.take("one")

        early.begin("one", slow)
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(refused())
            await asyncio.sleep(0)
            gate.set()
            await early.abandon("one")
            await asked
        assert ended == [MACHINE]

    within(work)
