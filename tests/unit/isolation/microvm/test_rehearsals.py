"""Which starts rehearse, and when the template for it is made: with templates that are none."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from casemate.isolation.microvm import argv
from casemate.isolation.microvm.errors import TemplateFailed
from casemate.isolation.microvm.kernel import GuestKernel
from casemate.isolation.microvm.rehearsals import Rehearsals
from casemate.isolation.microvm.template import Recipe

KERNEL = GuestKernel("6.1", Path("/k"), Path("/i"), "d")
PLAIN = Recipe(KERNEL, "7.2", argv.Accelerator("tcg"), 128 << 20)


@dataclass
class Host:
    """A clock, starts under way, memory, and which templates were asked for."""

    now: float = 1000.0
    busy: int = 1
    has_memory: bool = True
    fails: bool = False
    made: dict[Recipe, object] = field(default_factory=dict)
    asked: list[Recipe] = field(default_factory=list)

    def exists(self, recipe: Recipe) -> bool:
        return recipe in self.made

    def ready(self, recipe: Recipe) -> object | None:
        return self.made.get(recipe)

    async def get(self, recipe: Recipe) -> object:
        self.asked.append(recipe)
        if self.fails:
            raise TemplateFailed("no")
        return self.made.setdefault(recipe, object())

    def rehearsals(self, group: asyncio.TaskGroup, most: int = 1) -> Rehearsals:
        return Rehearsals(
            cast(Any, self), group, most, lambda: self.busy, lambda: self.has_memory, clock=lambda: self.now
        )


def asked_of(host: Host, recipe: Recipe = PLAIN, *, most: int = 1, times: int = 1, others: int = 0) -> object | None:
    """What each of so many starts gets, the last one's; afterwards none is under way, and what was begun has ended."""

    async def body() -> object | None:
        async with asyncio.TaskGroup() as group:
            rehearsals = host.rehearsals(group, most)
            found = [rehearsals.of(recipe, others) for _ in range(times)]
            host.busy = 0
        return found[-1]

    return asyncio.run(body())


def test_the_first_start_has_its_template_made_once_and_goes_without() -> None:
    host = Host()
    assert asked_of(host, times=3) is None
    (recipe,) = host.asked
    assert (recipe.cpus, recipe.key() != PLAIN.key()) == (2, True)
    host.busy = 1
    assert asked_of(host) is host.made[recipe]
    assert len(host.asked) == 1


def test_where_there_is_no_template_at_all_both_are_made_together() -> None:
    async def body(host: Host) -> None:
        async with asyncio.TaskGroup() as group:
            rehearsals = host.rehearsals(group)
            # The start that waits for its template is not under way yet.
            host.busy = 0
            rehearsals.foresee(PLAIN, 0)

    new, known, crowded = Host(), Host(made={PLAIN: object()}), Host(has_memory=False)
    for host in (new, known, crowded):
        asyncio.run(body(host))
    assert [one.cpus for one in new.asked] == [2]
    assert not known.asked
    assert not crowded.asked


def test_a_start_among_others_does_not_rehearse() -> None:
    host = Host()
    asked_of(host)
    host.busy = 2
    assert asked_of(host) is None
    host.busy = 2
    assert asked_of(host, most=2) is not None
    host.busy = 1
    assert asked_of(host, others=1) is None
    host.busy = 1
    assert asked_of(host, most=2, others=1) is not None


def test_none_is_made_without_use_or_room_for_it() -> None:
    kvm = Recipe(KERNEL, "7.2", argv.Accelerator("kvm"), 128 << 20)
    for host, recipe, most in ((Host(), kvm, 1), (Host(), PLAIN, 0), (Host(has_memory=False), PLAIN, 1)):
        assert asked_of(host, recipe, most=most) is None
        assert not host.asked


def test_what_could_not_be_made_is_tried_again_later() -> None:
    host = Host(fails=True)

    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            rehearsals = host.rehearsals(group)
            for pause_s, expected in ((0.0, 1), (10.0, 1), (300.0, 2)):
                host.now += pause_s
                host.busy = 1
                assert rehearsals.of(PLAIN, 0) is None
                host.busy = 0
                # The one that may have been begun runs to its end: nothing in it waits.
                for _ in range(10):
                    await asyncio.sleep(0)
                assert len(host.asked) == expected

    asyncio.run(body())
