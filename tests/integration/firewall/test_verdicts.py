"""Verdicts of the kernel's table, by real packets: maps, intervals, bases, names, the outside."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess

import pytest
from tests.integration.firewall.lab import (
    ACK,
    ICMP,
    MAC_A,
    OUTSIDE,
    SCTP,
    TCP,
    UDP,
    Lab,
    Packet,
    address,
    endpoint,
    inside,
    world,
)

from casemate.network.firewall import sets
from casemate.network.firewall.kernel import Change
from casemate.network.firewall.sets import ALLOW, AUDIT, DENY, Row, verdict_row
from casemate.policy.verdict import Verdict

A, B, C, NOBODY = "192.168.1.1", "192.168.1.2", "192.168.1.3", "192.168.9.9"
IDS = {A: 300, B: 301, C: 302}
WORLD = 400
SYN_ACK = 18


def base(lab: Lab, *more: Row) -> list[Row]:
    lab.route([*IDS, NOBODY])
    rows = lab.hardware([*IDS, NOBODY]) + [endpoint(one, number) for one, number in IDS.items()]
    return [*rows, world(WORLD), *more]


def pair(source: str, destination: str) -> tuple[int, int]:
    return IDS.get(source, WORLD), IDS.get(destination, WORLD)


def test_verdict_numbers_are_those_of_policy() -> None:
    assert [int(one) for one in (Verdict.ALLOW, Verdict.AUDIT, Verdict.REFER, Verdict.HOLD, Verdict.DENY)] == [
        sets.ALLOW, sets.AUDIT, sets.REFER, sets.HOLD, sets.DENY,
    ]  # fmt: skip
    assert set(sets.CHAINS) == {int(one) for one in Verdict}


def test_without_a_policy_everything_passes(lab: Lab) -> None:
    lab.make(base(lab), generation=0)
    assert lab.passes([Packet(A, B), Packet(A, C, UDP), Packet(A, NOBODY)]) == [True] * 3


def test_a_look_at_every_element_finds_what_is_wrong_and_nothing_else(lab: Lab) -> None:
    six = bytes(range(16))
    rows = base(
        lab,
        sets.stamp_row(1),
        sets.metadata_row(address("169.254.169.254")),
        sets.address_row(True, six, six, viewer=b"", number=500),
        sets.address_row(False, six, b"\xff" * 16, viewer=b"", number=501),
        verdict_row(0, 300, 301, TCP, 80, 80, ALLOW),
        verdict_row(1, 300, 301, TCP, 100, 200, ALLOW),
        verdict_row(1, 300, 301, ICMP, 8, 10, ALLOW),
        verdict_row(2, 300, 302, 0, 0, 0, DENY),
        *sets.base_rows(300, 1 << 23, 1 << 24),
    )
    lab.make(rows, generation=1)
    assert asyncio.run(lab.kernel.restore(lambda: rows)) == []
    assert inside(lab.router, lab.kernel.what_lacks) == []
    lab.change(Change(deletes=[rows[-1], rows[-4]], adds=[verdict_row(0, 300, 301, TCP, 81, 81, ALLOW)]))
    assert sorted(asyncio.run(lab.kernel.restore(lambda: rows))) == [
        "set ingress: 1 elements were gone", "set port: 1 were not ours", "set range: 1 elements were gone",
    ]  # fmt: skip
    assert asyncio.run(lab.kernel.restore(lambda: rows)) == []


def test_the_number_of_rules_that_is_noted_is_the_kernels(lab: Lab) -> None:
    rows = base(lab)
    lab.make(rows, generation=1)
    steps = (
        lambda: lab.kernel.change(Change(generation=7)),
        lambda: lab.kernel.set_holding(True),
        lambda: lab.kernel.set_holding(False),
        lambda: lab.kernel.change(Change(adds=[verdict_row(0, 300, 301, TCP, 80, 80, ALLOW)])),
    )
    for step in steps:
        asyncio.run(step())
        assert inside(lab.router, lab.kernel.what_lacks) == []


def test_a_rule_in_anothers_place_is_told(lab: Lab) -> None:
    """Once the kernel's words for the rules are known; and what is written anew is as it was."""
    lab.make(base(lab), generation=1)
    kernel = lab.kernel

    def nft(script: str) -> None:
        inside(lab.router, lambda: subprocess.run(["nft", script], check=True))

    def note() -> None:
        # Others may change rules of the host in between.
        for _ in range(1000):
            kernel.followed.at = kernel.followed.now()
            kernel.note_rules()
            if kernel.knows_rules:
                return

    assert not kernel.knows_rules
    inside(lab.router, note)
    assert kernel.knows_rules
    assert inside(lab.router, kernel.what_lacks) == []
    listed = inside(
        lab.router, lambda: subprocess.check_output(["nft", "-a", "list", "chain", "inet", "casemate", "pod"])
    )
    handle = listed.decode().rpartition("# handle ")[2].split()[0]
    nft(f"replace rule inet casemate pod handle {handle} accept")
    assert inside(lab.router, kernel.what_lacks) == ["a rule of chain pod"]
    asyncio.run(kernel.rewrite(1))
    inside(lab.router, note)
    assert lab.passes([Packet(A, B)]) == [False]
    nft("chain inet casemate forward { policy drop; }")
    assert inside(lab.router, kernel.what_lacks) == ["chain forward"]
    asyncio.run(kernel.rewrite(1))
    nft("add table inet casemate { flags dormant; }")
    assert inside(lab.router, kernel.what_lacks) == ["table inet casemate, which sleeps,"]


def test_with_a_policy_nothing_passes_that_no_element_lets(lab: Lab) -> None:
    lab.make(base(lab), generation=1)
    lab.flush_connections()
    packets = [Packet(A, B, kind, 8) for kind in (TCP, UDP, SCTP, ICMP, 47)]
    assert lab.passes(packets) == [False] * 5
    assert lab.kernel.counters()["denied"] >= 5


def test_exact_ports_intervals_and_pairs(lab: Lab) -> None:
    lab.make(
        base(
            lab,
            verdict_row(0, *pair(A, B), TCP, 80, 80, ALLOW),
            verdict_row(1, *pair(A, B), UDP, 1000, 2000, ALLOW),
            verdict_row(0, *pair(A, B), ICMP, 8, 8, ALLOW),
            verdict_row(2, *pair(A, C), 0, 0, 0, ALLOW),
            verdict_row(0, *pair(A, C), TCP, 22, 22, DENY),
            verdict_row(1, *pair(A, C), ICMP, 3, 9, DENY),
            verdict_row(0, *pair(A, C), 0, 0, 0, AUDIT),
        )
    )
    lab.flush_connections()
    asked = {
        (B, TCP, 80): True, (B, TCP, 81): False, (B, UDP, 80): False, (B, UDP, 1000): True, (B, UDP, 2000): True,
        (B, UDP, 2001): False, (B, UDP, 999): False, (B, ICMP, 8): True, (B, ICMP, 13): False, (C, TCP, 22): False,
        (C, TCP, 23): True, (C, UDP, 53): True, (C, SCTP, 36412): True, (C, ICMP, 8): False, (C, ICMP, 13): True,
        (C, 47, 0): True, (B, 47, 0): False,
    }  # fmt: skip
    assert lab.passes([Packet(A, *one) for one in asked]) == list(asked.values())
    assert lab.kernel.counters()["audited"] == 1


def test_where_a_pair_has_nothing_its_bases_are_asked(lab: Lab) -> None:
    egress, ingress = 1 << 23, (1 << 23) + 1
    lab.make(
        base(
            lab,
            *sets.base_rows(IDS[A], egress, ingress + 5),
            *sets.base_rows(IDS[B], egress + 5, ingress),
            verdict_row(0, egress, ingress, TCP, 80, 80, ALLOW),
            verdict_row(1, egress, ingress, TCP, 90, 99, ALLOW),
            verdict_row(2, *pair(A, C), 0, 0, 0, ALLOW),
        )
    )
    lab.flush_connections()
    asked = {(B, 80): True, (B, 95): True, (B, 81): False, (C, 80): True}
    assert lab.passes([Packet(A, one, TCP, port) for one, port in asked]) == list(asked.values())


def test_nft_can_list_the_table(lab: Lab) -> None:
    """Its listing of the whole host ends with the first table that it cannot say in its words."""
    if shutil.which("nft") is None:
        pytest.skip("missing: nft")
    for generation in (0, 7):
        viewed = sets.address_row(True, address(B), address(B), viewer=address(A), number=9, lifetime_ms=60_000)
        rows = [verdict_row(table, 300, 301, TCP, 80, 80 + table % 2, ALLOW) for table in (0, 1, 2)]
        rows += [
            *sets.base_rows(300, 1, 2),
            viewed,
            sets.answer_row(address(A), address(B), TCP, 80, lifetime_ms=60_000),
        ]
        lab.make(base(lab, *rows), generation)
        asyncio.run(lab.kernel.set_holding(True))
        listing = inside(
            lab.router, lambda: subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=True)
        )
        asyncio.run(lab.kernel.set_holding(False))
        assert b"Error" not in listing.stderr
        assert b"chain port_verdict" in listing.stdout


def test_the_outside_has_identities_by_interval_and_by_name(lab: Lab) -> None:
    narrow, named = 401, 402
    viewed = sets.address_row(
        True, address(OUTSIDE), address(OUTSIDE), viewer=address(B), number=named, lifetime_ms=60_000
    )
    rows = base(lab, viewed)[:-2]
    rows += [world(WORLD, "0.0.0.0", "198.51.100.6"), world(narrow, OUTSIDE, OUTSIDE), viewed]
    rows += [world(WORLD, "198.51.100.8")]
    rows += [verdict_row(0, IDS[A], narrow, TCP, 443, 443, ALLOW), verdict_row(0, IDS[B], named, TCP, 444, 444, ALLOW)]
    lab.make(rows)
    lab.flush_connections()
    asked = {(A, 443): True, (A, 444): False, (B, 444): True, (B, 443): False}
    packets = [Packet(source, OUTSIDE, TCP, port) for source, port in asked]
    assert lab.passes(packets, at=lab.w) == list(asked.values())


def test_an_address_of_the_pool_that_nobody_has_is_not_the_outside(lab: Lab) -> None:
    lab.make(base(lab, verdict_row(2, IDS[A], WORLD, 0, 0, 0, ALLOW), verdict_row(2, WORLD, IDS[B], 0, 0, 0, ALLOW)))
    lab.flush_connections()
    assert lab.passes([Packet(A, NOBODY), Packet(NOBODY, B)]) == [False, False]
    assert lab.passes([Packet(OUTSIDE, B)], via=lab.w) == [True]


def test_a_policy_that_tightens_cuts_what_is_open_and_nothing_else(lab: Lab) -> None:
    """By a new generation: the next packet of each connection is looked up anew."""
    rows = base(lab, *(verdict_row(2, *pair(A, one), 0, 0, 0, ALLOW) for one in (B, C)))
    lab.make(rows)
    lab.flush_connections()
    assert lab.connect(A, B)
    assert lab.connect(A, C)
    middle = [Packet(A, one, flags=ACK, sequence=1001, acknowledged=5001) for one in (B, C)]
    assert lab.passes(middle) == [True, True]
    lab.change(Change(deletes=[verdict_row(2, *pair(A, B), 0, 0, 0, ALLOW)], generation=2))
    list(lab.a.frames())
    assert lab.passes(middle) == [False, True]
    resets = [one for one in lab.a.frames() if one[9] == TCP and one[33] & 4]
    assert resets, "whoever goes on is told by a reset"


@pytest.mark.parametrize("kind", [UDP, ICMP])
@pytest.mark.parametrize("way", ["port", "pair", "bases"])
def test_what_is_open_is_judged_by_what_holds_now_however_often_that_changes(lab: Lab, kind: int, way: str) -> None:
    """The same connection over many generations, verdicts and identities of its ends: the kernel only ever adds to a
    connection's label, so nothing may depend on what an earlier judgement left there.
    """
    source, destination = IDS[A], IDS[B]
    table, place = (0, (kind, 8, 8) if kind == ICMP else (kind, 80, 80)) if way == "port" else (2, (0, 0, 0))
    verdicts = {word: verdict_row(table, source, destination, *place, word) for word in (ALLOW, AUDIT)}
    other = 0x2BCD
    if way == "bases":
        egress, ingress = 1 << 23, (1 << 23) + 3
        rows = [row for one in (source, other) for row in sets.base_rows(one, egress + (one == other), 7)]
        rows += sets.base_rows(destination, 8, ingress)
        verdicts = {word: verdict_row(2, egress, ingress, 0, 0, 0, word) for word in (ALLOW, AUDIT)}
    else:
        rows = []
    lab.make(base(lab, *rows), 1)
    lab.flush_connections()
    packet = Packet(A, B, kind, 8 if kind == ICMP else 80, 4321)
    chance = random.Random(f"{kind} {way}")
    now: Row | None = None
    identity = source
    for generation in range(2, 80):
        step = Change(generation=generation)
        wanted = chance.choice([None, ALLOW, AUDIT])
        if now is not None:
            step.deletes = [now]
        now = verdicts[wanted] if wanted is not None else None
        if now is not None:
            step.adds = [now]
        new = chance.choice([source, source, other])
        if new != identity:
            step.deletes = [*step.deletes, endpoint(A, identity)]
            step.adds = [*step.adds, endpoint(A, new)]
            identity = new
        lab.change(step)
        assert lab.passes([packet]) == [wanted is not None and identity == source], (generation, wanted, identity)


def test_open_connections_with_the_outside_are_judged_again_too(lab: Lab) -> None:
    """Out of the pod, by block and by a name that the pod was told; and from the outside into it."""
    named = 0x3210
    viewed = sets.address_row(True, address(OUTSIDE), address(OUTSIDE), viewer=address(A), number=named)
    out = verdict_row(2, IDS[A], WORLD, 0, 0, 0, ALLOW)
    by_name = verdict_row(2, IDS[A], named, 0, 0, 0, ALLOW)
    inward = verdict_row(2, WORLD, IDS[A], 0, 0, 0, ALLOW)
    lab.make(base(lab), 1)
    lab.route([A], "cm-a", MAC_A)
    lab.flush_connections()
    outward = Packet(A, OUTSIDE, UDP, 53, 5001)
    back = Packet(OUTSIDE, A, UDP, 53, 5002)

    def both() -> tuple[bool, bool]:
        return lab.passes([outward], at=lab.w)[0], lab.passes([back], via=lab.w, at=lab.a)[0]

    assert both() == (False, False)
    for generation, (deletes, adds, wanted) in enumerate(
        (
            ([], [out, inward], (True, True)), ([out], [], (False, True)), ([], [viewed, by_name], (True, True)),
            ([inward], [], (True, False)), ([by_name], [], (False, False)), ([viewed], [out, inward], (True, True)),
        ), 2,
    ):  # fmt: skip
        lab.change(Change(deletes, adds, generation))
        assert both() == wanted, generation


def test_answers_of_what_was_let_through_pass(lab: Lab) -> None:
    lab.make(base(lab, verdict_row(0, *pair(A, B), TCP, 80, 80, ALLOW)))
    lab.flush_connections()
    assert lab.passes([Packet(A, B)]) == [True]
    answer = Packet(B, A, port=40_000, source_port=80, flags=SYN_ACK, acknowledged=1001)
    lab.route([A], "cm-a", MAC_A)
    assert lab.passes([answer], via=lab.b, at=lab.a) == [True]
    # The same ends the other way round are another connection.
    assert lab.passes([Packet(B, A, port=40_001)], via=lab.b, at=lab.a) == [False]


@pytest.mark.parametrize("flags", [ACK, 1 | ACK, 4])
def test_the_middle_of_a_connection_that_nobody_began_is_refused(lab: Lab, flags: int) -> None:
    lab.make(base(lab, verdict_row(2, *pair(A, B), 0, 0, 0, ALLOW)))
    lab.flush_connections()
    assert lab.passes([Packet(A, B, flags=flags, source_port=41_000 + flags)]) == [False]
