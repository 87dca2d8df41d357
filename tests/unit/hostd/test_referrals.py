"""Referrals in hostd without a kernel: what waits, in what order, and what becomes of answers that cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from casemate.host import nfqueue
from casemate.host.nfqueue import DROP, REPEAT, Queued
from casemate.hostd import protocol_firewall as wire
from casemate.hostd.referrals import MAX_WAITING_OF_ONE, Referrals
from casemate.network.firewall.rules import MARK_ANSWERED, MARK_DENIED

POD, OTHER, DB = bytes([10, 9, 0, 1]), bytes([10, 9, 0, 2]), bytes([10, 9, 0, 3])


class Queue:
    """A packet queue of the test's own: *waiting* are read, *given* are the verdicts in their order."""

    def __init__(self) -> None:
        self.number = 0
        self.waiting: list[Queued] = []
        self.given: list[tuple[int, int, int]] = []
        self.calls = 0

    def receive(self, limit: int) -> list[Queued]:
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return taken

    def verdicts(self, given: Sequence[tuple[int, int, int]]) -> None:
        self.given += given
        self.calls += 1

    def verdict(self, packet: int, verdict: int, mark: int = 0) -> None:
        self.verdicts([(packet, verdict, mark)])


class Desk:
    """Referrals with a queue, and what casemated is told."""

    def __init__(self) -> None:
        self.queue = Queue()
        self.events: list[wire.FirewallEvent] = []
        self.heard = True
        self.referrals = Referrals(
            None,  # type: ignore[arg-type]  # no test here settles
            self.events.append,
            lambda: self.heard,
            lambda source: "p" if source == POD else "",
        )

    def come(self, *packets: Queued, is_back: bool = False) -> list[wire.ReferredPacket]:
        self.queue.waiting += packets
        before = len(self.events)
        self.referrals._on_readable(self.queue, is_back)  # type: ignore[arg-type]
        return [one for event in self.events[before:] if isinstance(event, wire.Referred) for one in event.packets]

    def answer(self, *answers: tuple[int, bool]) -> None:
        self.referrals.answer(wire.ReferralAnswer(number, accept) for number, accept in answers)


def syn(number: int, port: int, source: bytes = POD, source_port: int = 40_000) -> Queued:
    return Queued(number, 2, source, DB, 6, source_port, port)


def play(scene: Callable[[Desk], None]) -> None:
    async def body() -> None:
        scene(Desk())

    asyncio.run(body())


def test_many_packets_are_one_question_and_many_answers_one_call() -> None:
    def scene(desk: Desk) -> None:
        asked = desk.come(*(syn(100 + place, 1000 + place) for place in range(5)))
        assert [(one.port, one.pod) for one in asked] == [(1000 + place, "p") for place in range(5)]
        assert len(desk.events) == 1
        # Mixed, and in another order than they came.
        desk.answer(*((one.number, one.port % 2 == 0) for one in reversed(asked)))
        assert desk.queue.given == [
            (100 + place, REPEAT, MARK_ANSWERED if place % 2 == 0 else MARK_DENIED) for place in (4, 3, 2, 1, 0)
        ]
        assert desk.queue.calls == 1
        assert (desk.referrals.counted["accepted"], desk.referrals.counted["denied"]) == (3, 2)
        assert desk.referrals.waiting == 0

    play(scene)


def test_a_first_packet_sent_again_is_dropped_also_within_one_batch() -> None:
    def scene(desk: Desk) -> None:
        asked = desk.come(syn(1, 80), syn(2, 80), syn(3, 81))
        assert [one.port for one in asked] == [80, 81]
        assert desk.come(syn(4, 80)) == []
        assert desk.queue.given == [(2, DROP, 0), (4, DROP, 0)]
        desk.answer((asked[0].number, True))
        assert desk.queue.given[-1] == (1, REPEAT, MARK_ANSWERED)
        # The way back has its ends turned round: the same connection.
        assert desk.come(Queued(5, 2, DB, POD, 6, 81, 40_000), is_back=True) == []
        assert desk.queue.given[-1] == (5, DROP, 0)

    play(scene)


def test_forged_repeated_and_cut_answers_open_nothing() -> None:
    def scene(desk: Desk) -> None:
        first, second, third = desk.come(syn(1, 80), syn(2, 81), syn(3, 82))
        desk.answer((first.number, False), (first.number, True), (third.number + 1, True), (0, True), (-1, True))
        assert desk.queue.given == [(1, REPEAT, MARK_DENIED)]
        assert desk.referrals.counted["late"] == 4
        # casemated is killed after half of its answers: the others are dropped, and its late word counts no more.
        desk.heard = False
        desk.referrals.abandon()
        assert sorted(desk.queue.given[1:]) == [(2, DROP, 0), (3, DROP, 0)]
        desk.answer((second.number, True))
        assert len(desk.queue.given) == 3
        assert desk.come(syn(4, 83)) == []
        assert desk.queue.given[-1] == (4, DROP, 0)
        assert desk.referrals.counted["away"] == 3

    play(scene)


def test_one_flooding_pod_leaves_room_for_another() -> None:
    def scene(desk: Desk) -> None:
        for start in range(0, MAX_WAITING_OF_ONE + 512, 512):
            desk.come(*(syn(start + place, 1 + start + place) for place in range(512)))
        assert desk.referrals.waiting == MAX_WAITING_OF_ONE
        assert desk.referrals.counted["bound"] == 512
        assert len(desk.come(syn(9_999, 80, source=OTHER))) == 1

    play(scene)


def test_an_answer_that_holds_longer_is_given_at_once_to_the_next() -> None:
    def scene(desk: Desk) -> None:
        (asked,) = desk.come(syn(1, 80))
        desk.referrals.answer([wire.ReferralAnswer(asked.number, True, 300)])
        assert desk.come(syn(2, 80, source_port=40_001)) == []
        assert desk.queue.given == [(1, REPEAT, MARK_ANSWERED), (2, REPEAT, MARK_ANSWERED)]

    play(scene)


def test_what_the_kernel_had_no_room_for_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = tmp_path / "states"
    monkeypatch.setattr(nfqueue, "STATES", str(states))

    def scene(desk: Desk) -> None:
        desk.queue.number = 5
        desk.referrals._queues.append(desk.queue)  # type: ignore[arg-type]
        desk.referrals._count_dropped(10.0)
        states.write_text("5 1 0 2 160 4 3 99 1\n6 1 0 2 160 100 0 99 1\n")
        desk.referrals._count_dropped(10.5)
        assert desk.referrals.counted["queue"] == 0, "not looked at so soon"
        for now in (20.0, 30.0):
            desk.referrals._count_dropped(now)
        assert desk.referrals.counted["queue"] == 7
        assert desk.referrals._untold == {"queue": 7}

    play(scene)
