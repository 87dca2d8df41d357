"""How many machines wait, which is handed out, and which is ended: with machines that are none."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

from casemate.isolation.microvm.pool import Pool, Waiting, memory

GIB = 1 << 30


@dataclass
class Monitor:
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Machine:
    number: int
    monitor: Monitor = field(default_factory=Monitor)


@dataclass
class Host:
    """A clock, memory, and what was made and ended."""

    now: float = 1000.0
    free: int = 64 * GIB
    made: list[Machine] = field(default_factory=list)
    ended: list[Machine] = field(default_factory=list)

    def pool(self, most: int = 4) -> Pool:
        async def make(template: Any) -> Waiting:
            self.made.append(Machine(len(self.made)))
            return Waiting(cast(Any, self.made[-1]), template, f"tap{len(self.made) - 1}")

        async def end(machine: Any) -> None:
            self.ended.append(machine)

        return Pool(most, make, end, clock=lambda: self.now, available_bytes=lambda: (self.free, 64 * GIB))


SMALL, LARGE = cast(Any, object()), cast(Any, object())


def settle(pool: Pool, host: Host) -> None:
    host.now += 1.0
    asyncio.run(pool._settle())


def test_nothing_waits_before_anybody_asked() -> None:
    host = Host()
    pool = host.pool()
    settle(pool, host)
    assert (pool.targets(), host.made) == ([], [])


def test_the_number_follows_the_busiest_second_of_the_last_minute() -> None:
    host = Host()
    pool = host.pool(most=3)
    assert pool.take(SMALL) is None
    settle(pool, host)
    assert pool.count() == 1
    for _ in range(5):
        pool.take(SMALL)
    settle(pool, host)
    assert pool.count() == 3, "no more than the bound"
    host.now += 120
    settle(pool, host)
    assert (pool.count(), len(host.ended)) == (1, 2)
    host.now += 1000
    settle(pool, host)
    assert (pool.count(), len(host.ended)) == (0, 3)


def test_a_host_without_memory_keeps_none_ready() -> None:
    host = Host(free=8 * GIB + (100 << 20))
    pool = host.pool()
    pool.take(SMALL)
    settle(pool, host)
    assert pool.count() == 0, "an eighth of the memory is left alone"
    host.free += GIB
    settle(pool, host)
    assert pool.count() == 1


def test_only_a_machine_of_the_same_template_is_handed_out() -> None:
    host = Host()
    pool = host.pool()
    pool.take(SMALL)
    settle(pool, host)
    assert pool.take(LARGE) is None
    settle(pool, host)
    assert host.ended == [], "both are in demand"
    assert cast(Any, pool.take(LARGE)) is host.made[1]
    assert cast(Any, pool.take(SMALL)) is host.made[0]


def test_where_there_is_room_for_few_each_size_has_one_before_any_has_two() -> None:
    host = Host()
    pool = host.pool(most=3)
    for template in (SMALL, SMALL, SMALL, LARGE):
        host.now += 0.1
        pool.take(template)
    assert pool.targets() == [(LARGE, 1), (SMALL, 2)], "what was asked for last comes first"
    host.free = 8 * GIB + (300 << 20)
    assert pool.targets() == [(LARGE, 1)]


def test_a_size_that_nobody_asks_for_any_more_is_let_go() -> None:
    host = Host()
    pool = host.pool()
    pool.take(SMALL)
    settle(pool, host)
    host.now += 890
    pool.take(LARGE)
    host.now += 20
    settle(pool, host)
    assert [one.number for one in host.ended] == [0]
    assert pool.targets() == [(LARGE, 1)]


def test_a_reserved_machine_is_given_by_its_tap_alone() -> None:
    host = Host()
    pool = host.pool()
    pool.take(SMALL)
    settle(pool, host)
    assert pool.reserve(SMALL, "cm-1") == "tap0"
    assert asyncio.run(pool.is_reserved("cm-1", SMALL))
    assert not asyncio.run(pool.is_reserved("cm-1", LARGE))
    assert pool.take(SMALL, "cm-2") is None
    assert cast(Any, pool.take(SMALL, "cm-1")) is host.made[0]
    assert pool.take(SMALL, "cm-1") is None
    asyncio.run(pool.release("cm-1"))
    assert host.ended == []


def test_an_engine_gets_one_with_a_tap() -> None:
    host = Host()
    pool = host.pool()
    assert pool.take_with_tap(SMALL) is None
    settle(pool, host)
    assert pool.take_with_tap(LARGE) is None
    one = pool.take_with_tap(SMALL)
    assert one is not None
    assert (cast(Any, one.machine), one.tap) == (host.made[0], "tap0")
    assert pool.take_with_tap(SMALL) is None
    # Those of a host that names no taps are for others.
    pool._ready.append(Waiting(one.machine, SMALL, ""))
    assert pool.take_with_tap(SMALL) is None
    assert pool.take(SMALL) is one.machine


def test_what_nobody_takes_is_ended() -> None:
    host = Host()
    pool = host.pool()
    pool.take(SMALL)
    settle(pool, host)
    pool.reserve(SMALL, "cm-1")
    settle(pool, host)
    asyncio.run(pool.release("cm-1"))
    assert [one.number for one in host.ended] == [0]
    asyncio.run(pool.close())
    assert len(host.ended) == len(host.made)


def test_a_dead_machine_is_not_handed_out() -> None:
    host = Host()
    pool = host.pool()
    pool.take(SMALL)
    settle(pool, host)
    host.made[0].monitor.ended.set()
    assert pool.take(SMALL) is None
    settle(pool, host)
    assert cast(Any, pool.take(SMALL)) is host.made[1]


def test_each_machine_is_looked_at_before_anybody_gets_it() -> None:
    host = Host()
    dead: set[int] = set()
    pool = host.pool(most=1)
    pool.alive = lambda machine: cast(Any, machine).number not in dead
    pool.take(SMALL)
    settle(pool, host)
    dead.add(0)
    assert pool.reserve(SMALL, "cm-1") is None, "its death was not heard of, and is seen"
    settle(pool, host)
    assert [one.number for one in host.ended] == [0]
    assert pool.reserve(SMALL, "cm-1") == "tap1"
    dead.add(1)
    assert not asyncio.run(pool.is_reserved("cm-1", SMALL))


def test_what_is_reserved_is_asked_before_its_start() -> None:
    host = Host()
    pool = host.pool()
    asked: list[int] = []

    async def answers(machine: Any) -> bool:
        asked.append(machine.number)
        return len(asked) == 1

    pool.answers = answers
    pool.take(SMALL)
    settle(pool, host)
    assert pool.reserve(SMALL, "cm-1") == "tap0"
    assert asyncio.run(pool.is_reserved("cm-1", SMALL))
    assert not asyncio.run(pool.is_reserved("cm-1", SMALL))
    assert asked == [0, 0]


def test_the_hosts_memory_is_read() -> None:
    available, whole = memory()
    assert 0 < available <= whole


def test_starts_that_come_one_after_the_other_are_left_alone_for_longer() -> None:
    host = Host()
    pool = host.pool()
    pool.take(SMALL)
    host.now += 0.5
    assert pool._is_quiet(), "one start, half a second ago"
    for _ in range(10):
        pool.take(SMALL)
        host.now += 0.1
    host.now += 0.5
    assert not pool._is_quiet(), "ten within a second: the next may come"
    host.now += 1.5
    assert pool._is_quiet()
