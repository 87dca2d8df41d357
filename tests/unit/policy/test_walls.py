"""The walls' state machine; and what must hold for every sequence of attempts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.policy.errors import PolicyInvalid, WallBreached
from casemate.policy.identity import Endpoint
from casemate.policy.labels import Operator, Requirement, Selector, labels
from casemate.policy.rules import Workloads
from casemate.policy.walls import History, Wall, connect, reach, release

MEMBERS = ("acme", "globex", "initech")


def bank(name: str) -> tuple[str, tuple[Workloads, ...]]:
    return name, (Workloads(Selector((Requirement("bank", Operator.IN, frozenset({name})),))),)


WALL = Wall("banks", tuple(bank(name) for name in MEMBERS))


def test_the_first_member_binds() -> None:
    first = reach(History(), WALL, "p/w", "acme")
    assert first.allowed
    assert first.new is not None
    again = reach(first.history, WALL, "p/w", "acme")
    assert again.allowed
    assert again.new is None
    other = reach(first.history, WALL, "p/w", "globex")
    assert not other.allowed
    assert other.history is first.history
    assert "acme" in other.why
    assert reach(first.history, WALL, "p/x", "globex").allowed


def test_an_officer_releases_with_a_reason() -> None:
    history = reach(History(), WALL, "p/w", "acme").history
    with pytest.raises(PolicyInvalid, match="reason"):
        release(history, WALL, "p/w", "o", " ")
    with pytest.raises(PolicyInvalid, match="bound by no member"):
        release(history, WALL, "p/x", "o", "r")
    after = release(history, WALL, "p/w", "officer", "engagement ended")
    assert reach(after, WALL, "p/w", "globex").allowed
    assert [line.officer for line in after.lines] == ["", "officer"]


def test_an_unknown_member() -> None:
    with pytest.raises(PolicyInvalid, match="no member"):
        reach(History(), WALL, "p/w", "none")


def end(name: str, **held: str) -> Endpoint:
    return Endpoint(name, "p", labels(held))


def test_connections_bind_both_ways_and_members_to_their_own() -> None:
    acme, globex, tool = end("p/a", bank="acme"), end("p/g", bank="globex"), end("p/t")
    inward = connect(History(), (WALL,), acme, tool)
    assert inward.history.member("p/t", "banks") == "acme"
    assert not connect(inward.history, (WALL,), tool, globex).allowed
    assert not connect(History(), (WALL,), acme, globex).allowed
    assert connect(History(), (WALL,), acme, end("p/a2", bank="acme")).new is None


def test_relabelling_forges_nothing() -> None:
    acme, globex = end("p/a", bank="acme"), end("p/g", bank="globex")
    history = connect(History(), (WALL,), end("p/t"), acme).history
    assert not connect(history, (WALL,), end("p/t", app="new"), globex).allowed


def test_two_members_at_once_reach_nobody() -> None:
    both = Wall("w", (("a", (Workloads(),)), ("b", (Workloads(),))))
    assert not connect(History(), (both,), end("p/x"), end("p/y")).allowed


def test_a_refusal_by_one_wall_writes_nothing_for_another() -> None:
    stages = Wall("stages", (bank("acme"), bank("globex")))
    history = reach(History(), WALL, "p/t", "globex").history
    outcome = connect(history, (stages, WALL), end("p/t"), end("p/a", bank="acme"))
    assert not outcome.allowed
    assert outcome.history is history


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["w", "x"]), st.sampled_from([*MEMBERS, "release"])), max_size=20))
def test_between_releases_a_workload_reaches_one_member(steps: list[tuple[str, str]]) -> None:
    history, touched = History(), {"w": set[str](), "x": set[str]()}
    for workload, what in steps:
        before = history.lines
        if what == "release":
            if touched[workload]:
                history = release(history, WALL, workload, "o", "r")
                touched[workload].clear()
        elif (outcome := reach(history, WALL, workload, what)).allowed:
            history = outcome.history
            touched[workload].add(what)
        assert len(touched[workload]) <= 1
        assert history.lines[: len(before)] == before
        assert [line.sequence for line in history.lines] == list(range(len(history.lines)))


def test_the_refusal_has_a_code() -> None:
    outcome = reach(reach(History(), WALL, "w", "acme").history, WALL, "w", "globex")
    with pytest.raises(WallBreached) as caught:
        outcome.demand()
    assert caught.value.code == "policy.wall_breached"
