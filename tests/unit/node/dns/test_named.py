"""Answers under names of rules: laid before they are told, renewed, and gone with their lifetime or their pod."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

from casemate.node.database import Database
from casemate.node.dns.named import GRACE_S, MAX_OF_ONE, Named
from casemate.policy.identity import Endpoint
from casemate.policy.parse import parse
from casemate.policy.plan import Planner
from casemate.policy.rules import RuleSet

POLICY = b"""
apiVersion: casemate/v1
kind: Policy
metadata: {name: p}
spec:
  segments: {s: {select: {}, default: deny}}
  rules:
    - {from: [{segment: s}], to: [{names: [api.example.org, "*.cdn.example.org"]}], ports: [tcp/443], action: allow}
"""
POD = "10.209.0.2"


class Kept:
    """What the planner and the kernel would hold."""

    def __init__(self) -> None:
        self.active = True
        self.planner = Planner(parse(POLICY, "test").in_force(0))
        self.ends: dict[str, tuple[Endpoint, str, int]] = {}
        self.laid: list[tuple[str, bool]] = []

    async def name(self, end: Endpoint, viewer: str, lifetime_s: int, *, again: bool) -> bool:
        self.ends[end.name] = (end, viewer, lifetime_s)
        self.laid.append((end.name, again))
        return True

    async def unname(self, name: str) -> None:
        self.ends.pop(name, None)


def test_patterns_not_names_and_lifetimes() -> None:
    async def body() -> None:
        kept, clock = Kept(), SimpleNamespace(now=100.0)
        named = Named(kept, lambda: clock.now)  # type: ignore[arg-type]
        assert named.patterns() == ("*.cdn.example.org", "api.example.org")
        await named.answered(POD, "a1.cdn.example.org", [("192.0.2.1", 60)])
        await named.answered(POD, "b2.cdn.example.org", [("192.0.2.1", 90), ("192.0.2.2", 60)])
        ends = {end.addresses[0].compressed: (end.dns, viewer, life) for end, viewer, life in kept.ends.values()}
        both = frozenset({"*.cdn.example.org"})
        assert ends == {"192.0.2.1": (both, POD, 90 + GRACE_S), "192.0.2.2": (both, POD, 60 + GRACE_S)}
        clock.now += 61
        await named.look()
        assert [end.addresses[0].compressed for end, _, _ in kept.ends.values()] == ["192.0.2.1"]
        clock.now += 30
        await named.look()
        assert not kept.ends

    asyncio.run(body())


def test_names_come_and_go_with_the_rules_that_speak_of_them() -> None:
    kept = Kept()
    named = Named(kept, lambda: 100.0)  # type: ignore[arg-type]
    whole = kept.planner.rules
    again = POLICY.replace(b"{name: p}", b"{name: q}").replace(b'"*.cdn.example.org"', b"www.example.org")
    kept.planner.replace_rules(RuleSet((*whole.rules, *parse(again, "more").in_force(0).rules)))
    assert named.patterns() == ("*.cdn.example.org", "api.example.org", "www.example.org")
    kept.planner.replace_rules(whole)
    assert named.patterns() == ("*.cdn.example.org", "api.example.org")
    kept.planner.replace_rules(RuleSet())
    assert named.patterns() == ()


def test_the_same_answer_again_renews_the_kernels_timer_only_when_it_must() -> None:
    async def body() -> None:
        kept, clock = Kept(), SimpleNamespace(now=100.0)
        named = Named(kept, lambda: clock.now)  # type: ignore[arg-type]
        await named.answered(POD, "api.example.org", [("192.0.2.1", 300)])
        clock.now += 1
        await named.answered(POD, "api.example.org", [("192.0.2.1", 299)])
        clock.now += 100
        await named.answered(POD, "api.example.org", [("192.0.2.1", 300)])
        assert [again for _, again in kept.laid] == [True, False, True]
        await named.look()
        await named.look()
        # The first look meets a planner that it did not know; the second has nothing to do.
        assert len(kept.laid) == 4
        kept.planner = Planner(kept.planner.rules)
        await named.look()
        assert len(kept.laid) == 5, "a new planner is told all"

    asyncio.run(body())


def test_a_pod_that_is_gone_holds_nothing_and_one_pod_holds_a_bounded_number() -> None:
    async def body() -> None:
        kept, clock = Kept(), SimpleNamespace(now=100.0)
        named = Named(kept, lambda: clock.now)  # type: ignore[arg-type]
        for number in range(MAX_OF_ONE + 10):
            clock.now += 0.001
            await named.answered(POD, "api.example.org", [(f"192.0.{number // 250}.{number % 250}", 300)])
        assert len(kept.ends) == MAX_OF_ONE
        assert f"name:{POD}:192.0.0.0" not in kept.ends, "the oldest goes"
        named.viewer_gone(POD)
        await named.look()
        assert not kept.ends

    asyncio.run(body())


def test_what_was_told_is_known_in_the_next_life_and_not_after_a_reboot(tmp_path: Path) -> None:
    async def body() -> None:
        clock = SimpleNamespace(now=100.0)
        db = Database(str(tmp_path / "x.db"))
        await db.open()
        try:
            first = Named(Kept(), lambda: clock.now, db, "boot-1")  # type: ignore[arg-type]
            await first.answered(POD, "a.cdn.example.org", [("192.0.2.1", 60), ("192.0.2.2", 600)])
            clock.now += 61
            second = Named(Kept(), lambda: clock.now, db, "boot-1")  # type: ignore[arg-type]
            await second.load()
            assert [(end.addresses[0].compressed, set(end.dns), viewer) for end, viewer in second.ends()] == [
                ("192.0.2.2", {"*.cdn.example.org"}, POD)
            ]
            third = Named(Kept(), lambda: clock.now, db, "boot-2")  # type: ignore[arg-type]
            await third.load()
            assert third.ends() == []
        finally:
            await db.close()

    asyncio.run(body())
