"""Decided referrals in the store: packed by the thousand, each read by itself; and what lanes must not hide."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.node.policy.site import Site, packet

from casemate.hostd import protocol_firewall as wire
from casemate.node.clock import rfc3339
from casemate.node.migrations import MIGRATIONS
from casemate.node.policy import referral_packs, store
from casemate.node.policy.deciding import Rates
from casemate.node.policy.referral_packs import MAX_PACKED, Kind, Run
from casemate.node.policy.referrals import Referrals
from casemate.spec.api.policy import ReferralRow

SHOP = Kind("shop/web", "shop/db", "tcp", "allow", "allow by r", "r", 300)
LAB = Kind("lab/probe", "192.0.2.1", "udp", "deny", "deny by (default)", "(default)", 0)
RULES = b"""
apiVersion: casemate/v1
kind: Policy
metadata: {name: lanes}
spec:
  segments: {all: {select: {}, default: {egress: refer}}}
  rules:
    - {from: [{segment: all}], to: any, ports: [tcp/1000-1999], action: allow, when: 'destination.labels.app == "web"'}
    - {from: [{segment: all}], to: any, ports: [tcp/2000-2999], action: allow, when: 'rate <= 12'}
    - {from: [{segment: all}], to: any, ports: [tcp/3000-3999], action: allow, when: 'port % 2 == 0'}
"""


def _database() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    for step in MIGRATIONS:
        db.executescript(step)
    return db


def _row(number: int, source: str = "shop/web") -> ReferralRow:
    return ReferralRow(number, rfc3339(1.0), source, "shop/db", "tcp", 1, answer="deny", reason="nobody answered")


def test_addresses_and_the_name_that_was_asked_for_are_kept_and_earlier_packs_are_read() -> None:
    db = _database()
    kind = LAB._replace(source_address="198.18.0.1", destination_address="192.0.2.1", dns="api.example.org")
    store.add_referrals(db, [], [Run(7, 10.0, kind, [443])])
    before = msgspec.msgpack.encode(([LAB[:7]], [(3, 10.0, 0, (53,))]))
    db.execute("INSERT INTO referral_packs VALUES (3, ' lab ', ?)", (before,))
    found = store.referrals(db, 10)
    assert [(row.number, row.source_address, row.destination_address, row.dns) for row in found] == [
        (7, "198.18.0.1", "192.0.2.1", "api.example.org"), (3, "", "", ""),
    ]  # fmt: skip


def test_each_is_read_by_itself_the_newest_first() -> None:
    db = _database()
    runs = [Run(1, 10.0, SHOP, [80, 81]), Run(3, 10.0, LAB, [53]), Run(5, 20.5, SHOP, [82])]
    store.add_referrals(db, [_row(4)], runs)
    found = store.referrals(db, 10)
    assert [(row.number, row.source, row.port, row.answer) for row in found] == [
        (5, "shop/web", 82, "allow"), (4, "shop/web", 1, "deny"), (3, "lab/probe", 53, "deny"),
        (2, "shop/web", 81, "allow"), (1, "shop/web", 80, "allow"),
    ]  # fmt: skip
    assert (found[0].at, found[0].until, found[0].reason, found[0].by) == (
        rfc3339(20.5),
        rfc3339(320.5),
        "allow by r",
        "r",
    )
    assert found[2].until == ""
    assert [row.number for row in store.referrals(db, 2)] == [5, 4]
    assert [row.number for row in store.referrals(db, 10, frozenset({"lab"}))] == [3]
    assert [row.number for row in store.referrals(db, 10, frozenset({"shop"}))] == [5, 4, 2, 1]
    assert [row.number for row in store.referrals(db, 10, frozenset({"shop", "lab"}))] == [5, 4, 3, 2, 1]
    assert store.referrals(db, 10, frozenset({"sho"})) == []
    assert store.referrals(db, 10, frozenset()) == []
    # More projects than an expression may have parts.
    many = frozenset({"lab", *(f"p{number}" for number in range(3000))})
    assert [row.number for row in store.referrals(db, 10, many)] == [3]
    assert store.last_referral(db) == 5


@given(st.lists(st.integers(1, wire.MAX_BATCH), max_size=20))
def test_packs_are_bounded_and_nothing_is_lost(sizes: list[int]) -> None:
    first, runs = 1, []
    for size in sizes:
        runs.append(Run(first, 1.0, SHOP, list(range(size))))
        first += size
    packs = [[row.number for row in referral_packs.read(one.pack)] for one in referral_packs.packed(runs)]
    assert all(len(numbers) <= MAX_PACKED for numbers in packs)
    assert [number for numbers in reversed(packs) for number in numbers] == list(range(first - 1, 0, -1))


def test_the_oldest_go_packs_as_rows() -> None:
    db = _database()
    store.add_referrals(db, [_row(1)], [Run(2, 1.0, SHOP, [1])])
    start = 3
    for _ in range(store.REFERRAL_ROWS // 1000 + 1):
        store.add_referrals(db, [], [Run(start, 1.0, SHOP, list(range(1000)))])
        start += 1000
    numbers = [row.number for row in store.referrals(db, 10 * store.REFERRAL_ROWS)]
    assert numbers[0] == start - 1
    assert 2 < numbers[-1] <= start - store.REFERRAL_ROWS
    assert len(numbers) <= store.REFERRAL_ROWS + 1000


def test_of_one_event_each_is_decided_by_its_own_port_and_facts(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await site.core.policy.enforce()
        await site.apply(RULES)
        await site.pod("client")
        await site.pod("web", app="web")
        await site.pod("db", app="db")
        referrals = Referrals(site.core)
        await referrals.load()
        watch = referrals.watch(waiting_only=False)
        told = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        ports = [*range(1000, 1008), 2000, 2001, *range(3000, 3004), 2002]
        event = tuple(packet(number, 1, 2, port) for number, port in enumerate(ports, 1))
        referrals.on_referred(wire.Referred((*event, packet(99, 1, 3, 1000))))
        accepted = {one.number: one.accept for one in site.notes.answers()}
        by_port = {port: accepted.get(number) for number, port in enumerate(ports, 1)}
        assert all(by_port[port] for port in range(1000, 1008))
        assert [by_port[port] for port in range(3000, 3004)] == [True, None, True, None], (
            "who is odd waits for a person"
        )
        # Ten are in lanes, and count before those whose condition asks how many they are.
        assert [by_port[port] for port in (2000, 2001, 2002)] == [True, True, None]
        assert 99 not in accepted
        listed = await referrals.listing(100)
        assert {row.port for row in listed.decided} == {port for port in ports if by_port[port]}
        assert (await told) is not None
        await watch.aclose()  # type: ignore[attr-defined]
        assert len(listed.waiting) == 4
        # A question is open: nothing of this pod is in a lane, and the same question is not asked again.
        referrals.on_referred(wire.Referred((packet(200, 1, 2, 3001), packet(201, 1, 2, 1009))))
        assert len((await referrals.listing(100)).waiting) == 4
        assert site.notes.answers()[-1] == wire.ReferralAnswer(201, True, 300)

    play(scene)


def test_many_count_as_many() -> None:
    rates = Rates()
    assert rates.count("a", 1.0, 5) == 5
    assert rates.count("a", 1.5) == 6
    assert rates.count("a", 11.5) == 1
