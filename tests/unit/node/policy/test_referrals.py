"""Referrals in casemated without a kernel: rules, walls, people, bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.node.policy.site import ANYBODY, REFER, ROOT, Site, banks, packet

from casemate.hostd import protocol_firewall as wire
from casemate.node.policy import asking, quarantine
from casemate.node.policy.errors import (
    PromptsFull,
    ReferralNotFound,
)
from casemate.node.policy.referrals import Referrals
from casemate.node.policy.wallstate import entries, read_bound
from casemate.spec.api.policy import (
    ExplainRequest,
    QuarantineRequest,
    ReferralAnswer,
)
from casemate.spec.errors import GrantMissing


async def _settled(site: Site, count: int) -> list[wire.ReferralAnswer]:
    async with asyncio.timeout(10):
        while len(site.notes.answers()) < count:
            site.notes.told.clear()
            await site.notes.told.wait()
    return site.notes.answers()


async def _referring(site: Site) -> Referrals:
    await site.core.policy.enforce()
    await site.apply(REFER)
    await site.pod("client")
    await site.pod("web", app="web")
    await site.pod("db", app="db")
    referrals = Referrals(site.core)
    await referrals.load()
    return referrals


def test_rules_decide_first_and_last_as_long_as_their_facts(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        referrals = await _referring(site)
        told: list[tuple[int, bool]] = []
        referrals.told = lambda answered: told.extend(
            (one.number, answer.allow) for answer, packets in answered for one in packets
        )
        referrals.on_referred(wire.Referred((packet(1, 1, 2, 80),)))
        assert await _settled(site, 1) == [wire.ReferralAnswer(1, True, 300)]
        referrals.on_referred(wire.Referred(tuple(packet(number, 1, 3, 81) for number in (2, 3))))
        # By rate: for this connection alone, and the first two referrals counted as well.
        answers = await _settled(site, 2)
        assert answers[1] == wire.ReferralAnswer(2, True, 0)
        assert told[:2] == [(1, True), (2, True)]

    play(scene)


def test_other_conditions_count_though_the_kernel_sees_no_difference(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        referrals = await _referring(site)
        referrals.on_referred(wire.Referred((packet(1, 1, 2, 80),)))
        assert await _settled(site, 1) == [wire.ReferralAnswer(1, True, 300)]
        done = await site.apply(REFER.replace(b'== "web"', b'== "nothing"'))
        assert done.elements == 0
        # What was let pass is taken back, and the next one is for a person.
        async with asyncio.timeout(10):
            while not site.notes.of(wire.FirewallForget):
                site.notes.told.clear()
                await site.notes.told.wait()
        referrals.on_referred(wire.Referred((packet(2, 1, 2, 80),)))
        assert len((await referrals.listing(10)).waiting) == 1

    play(scene)


def test_a_person_is_asked_and_nobody_else_waits(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        referrals = await _referring(site)
        watched: list[Any] = []

        async def watch() -> None:
            async for row in referrals.watch(waiting_only=True):
                if row is not None:
                    watched.append(row)
                if len(watched) == 2:
                    return

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch())
            await asyncio.sleep(0)
            referrals.on_referred(wire.Referred((packet(1, 1, 3, 5432), packet(2, 1, 3, 5432))))
            waiting = (await referrals.listing(10)).waiting
            assert [(row.source, row.destination, row.port, row.packets) for row in waiting] == [
                ("default/client", "default/db", 5432, 2)
            ]
            referrals.on_referred(wire.Referred((packet(3, 1, 2, 80),)))
            assert await _settled(site, 1) == [wire.ReferralAnswer(3, True, 300)]
            with pytest.raises(GrantMissing):
                await referrals.prompts.answer(waiting[0].number, ReferralAnswer(True), ANYBODY)
            row = await referrals.prompts.answer(
                waiting[0].number, ReferralAnswer(True, for_s=60, reason="deploy"), ROOT
            )
            assert (row.answer, row.reason, row.by) == ("allow", "deploy", "0:root")
        assert {one.number for one in (await _settled(site, 3))[1:]} == {1, 2}
        assert [row.answer for row in watched] == ["", "allow"]
        with pytest.raises(ReferralNotFound):
            await referrals.prompts.answer(waiting[0].number, ReferralAnswer(True), ROOT)
        # The answer holds for the next one, also in the next life of the daemon, and not beyond its time.
        again = Referrals(site.core)
        await again.load()
        again.on_referred(wire.Referred((packet(4, 1, 3, 5432),)))
        assert (await _settled(site, 4))[-1] == wire.ReferralAnswer(4, True, 60)
        site.now += 61
        again.on_referred(wire.Referred((packet(5, 1, 3, 5432),)))
        assert len((await again.listing(10)).waiting) == 1

    play(scene)


def test_a_deadline_denies(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        referrals = await _referring(site)
        referrals.on_referred(wire.Referred((packet(1, 1, 3, 5432),)))
        number = (await referrals.listing(10)).waiting[0].number
        referrals.prompts.overdue(number)
        assert await _settled(site, 1) == [wire.ReferralAnswer(1, False, 0)]
        decided = (await referrals.listing(10)).decided[0]
        assert (decided.answer, decided.by) == ("deny", "deadline")
        assert referrals.counters["deadline"] == 1

    play(scene)


def test_prompts_are_bounded_for_all_and_for_one(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        referrals = await _referring(site)
        packets = [packet(number, 1, 3, 1000 + number) for number in range(1, 6)]
        packets += [packet(number, 3, 1, 1000 + number) for number in range(6, 10)]
        referrals.on_referred(wire.Referred(tuple(packets)))
        listed = await referrals.listing(10)
        assert len(listed.waiting) == 3
        assert [row.source for row in listed.waiting] == ["default/client", "default/client", "default/db"]
        assert referrals.counters["prompts_full"] == 6
        assert all(not one.accept for one in await _settled(site, 6))
        assert PromptsFull.code == "policy.prompts_full"

    play(scene, **{"policy.prompts": 3, "policy.prompts_per_workload": 2})


def test_remembered_and_forgotten(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        referrals = await _referring(site)
        referrals.on_referred(wire.Referred((packet(1, 1, 3, 5432),)))
        number = (await referrals.listing(10)).waiting[0].number
        await referrals.prompts.answer(number, ReferralAnswer(False, remember=True), ROOT)
        referrals.on_referred(wire.Referred((packet(2, 1, 3, 5432),)))
        assert [one.accept for one in await _settled(site, 2)] == [False, False]
        await referrals.prompts.forget(number, ROOT)
        keys = site.notes.of(wire.FirewallForget)[-1].keys
        assert keys == (wire.AnswerKey(bytes([10, 9, 0, 1]), bytes([10, 9, 0, 3]), 6, 5432),)
        with pytest.raises(ReferralNotFound):
            await referrals.prompts.forget(number, ROOT)
        referrals.on_referred(wire.Referred((packet(3, 1, 3, 5432),)))
        assert len((await referrals.listing(10)).waiting) == 1

    play(scene)


def test_a_wall_is_asked_before_a_rule_lets_pass(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await banks(site)
        referrals = Referrals(site.core)
        await referrals.load()
        referrals.on_referred(wire.Referred((packet(1, 1, 2, 80),)))
        assert [one.accept for one in await _settled(site, 1)] == [True]
        referrals.on_referred(wire.Referred((packet(2, 1, 3, 80),)))
        assert [one.accept for one in await _settled(site, 2)] == [True, False]
        row = (await referrals.listing(10)).decided[0]
        assert row.by == "wall banks"
        found, _, _ = await site.db.read(entries)
        assert [one.kind for one in found] == ["reached", "refused"]

    play(scene)


def test_first_contacts_of_one_batch_are_written_once_and_only_one_is_the_first(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await banks(site)
        referrals = Referrals(site.core)
        await referrals.load()
        waiting = [packet(1, 1, 2, 80), packet(2, 1, 3, 80), packet(3, 1, 2, 81), packet(4, 2, 3, 80)]
        referrals.on_referred(wire.Referred(tuple(waiting)))
        assert site.notes.answers() == [], "nothing passes before it is written"
        assert {one.number: one.accept for one in await _settled(site, 4)} == {1: True, 2: False, 3: True, 4: False}
        assert len(site.notes.of(wire.FirewallAnswer)) == 1
        found, intact, _ = await site.db.read(entries)
        assert intact
        assert [(one.kind, one.workload, one.peer) for one in found] == [
            ("reached", "default/analyst", "default/a"),
            ("refused", "default/analyst", "default/b"),
            ("refused", "default/a", "default/b"),
        ]
        # Who is bound by now is answered at once, beside one who is not.
        referrals.on_referred(wire.Referred((packet(5, 1, 2, 82), packet(6, 1, 3, 82))))
        assert site.notes.answers()[-1] == wire.ReferralAnswer(5, True, 300)
        assert (await _settled(site, 6))[-1].accept is False

    play(scene)


def test_a_batch_is_answered_in_one_message_and_each_has_its_row(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        referrals = await _referring(site)
        order: list[str] = []
        referrals.told = lambda answered: order.append(
            f"{sum(len(packets) for _, packets in answered)} told, {len(site.notes.answers())} sent"
        )
        # To web: allowed by the condition; to db at 80: a person is asked, and too many of them are denied.
        waiting = [packet(number, 1, 2, 80) for number in range(1, 301)]
        waiting += [packet(number, 1, 3, number) for number in range(1000, 1003)]
        referrals.on_referred(wire.Referred(tuple(waiting)))
        assert order == ["301 told, 0 sent"], "the recorder knows before the kernel does"
        (message,) = site.notes.of(wire.FirewallAnswer)
        assert [one.number for one in message.answers] == [*range(1, 301), 1002]
        assert [one.accept for one in message.answers] == [True] * 300 + [False]
        assert referrals.counters["unanswered"] == 0
        listed = await referrals.listing(1000)
        assert len(listed.waiting) == 2
        assert len({row.number for row in listed.decided}) == 301
        assert {row.reason for row in listed.decided if row.answer == "allow"} == {
            "allow by Policy/default/ask:rules[0]:egress[0]"
        }

    play(scene, **{"policy.prompts_per_workload": 2})


def test_without_hostd_answers_are_counted_and_open_nothing(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        referrals = await _referring(site)
        site.notes.away = True
        referrals.on_referred(wire.Referred((packet(1, 1, 2, 80), packet(2, 1, 2, 80))))
        assert referrals.counters["unanswered"] == 2
        assert site.notes.answers() == []

    play(scene)


def test_what_rules_deny_binds_nobody(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await banks(site)
        await site.apply(
            b"apiVersion: casemate/v1\nkind: Policy\nmetadata: {name: x}\n"
            b"spec: {segments: {r: {select: {matchLabels: {role: analyst}}, default: deny}}}"
        )
        referrals = Referrals(site.core)
        await referrals.load()
        referrals.on_referred(wire.Referred((packet(1, 1, 2, 80),)))
        assert [one.accept for one in await _settled(site, 1)] == [False]
        assert await site.db.read(read_bound) == {}

    play(scene)


def test_nobody_lets_out_who_is_in_quarantine_since(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        referrals = await _referring(site)
        referrals.on_referred(wire.Referred((packet(1, 1, 3, 5432),)))
        (waiting,) = (await referrals.listing(10)).waiting
        await quarantine.by_person(site.core, QuarantineRequest("client", reason="scans"), ROOT)
        row = await referrals.prompts.answer(waiting.number, ReferralAnswer(True, remember=True), ROOT)
        assert (row.answer, row.by) == ("deny", "Quarantine:egress")
        assert (await _settled(site, 1))[0].accept is False
        referrals.on_referred(wire.Referred((packet(2, 1, 3, 5432),)))
        assert (await _settled(site, 2))[1].accept is False, "nor does an answer of before"
        told = await asking.explained(site.core, ExplainRequest("client", "db", "tcp/5432"))
        assert told.rule == "Quarantine:egress"
        assert "quarantine release" in told.admit, "a rule would not help"

    play(scene)
