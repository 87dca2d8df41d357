"""Walls in casemated without a kernel: history, evidence, renames, paths."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tests.unit.node.policy.site import ROOT, Site, banks

from casemate.hostd import protocol_firewall as wire
from casemate.node import containers
from casemate.node.policy import asking, ends, walling
from casemate.node.policy.errors import (
    WallNotFound,
)
from casemate.node.policy.wallstate import entries, read_bound
from casemate.policy.errors import PolicyInvalid, WallBreached
from casemate.spec.api.policy import (
    ExplainRequest,
    WallRelease,
)


async def _judge(site: Site, source: str, destination: str) -> walling.Judged:
    one, other = [await ends.end(site.core, name, "default") for name in (source, destination)]
    return await walling.judge(site.core, one, other, "tcp/80")


def test_a_wall_binds_at_first_contact_and_survives(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        core = site.core
        await banks(site)
        assert (await asking.explained(core, ExplainRequest("analyst", "a", "tcp/80"))).verdict == "refer"
        assert (await asking.explained(core, ExplainRequest("a", "b", "tcp/80"))).verdict == "deny"
        assert (await _judge(site, "analyst", "a")).allowed
        assert (await _judge(site, "analyst", "a")).allowed
        refused = await _judge(site, "analyst", "b")
        assert not refused.allowed
        assert "has reached a" in refused.why
        # The history is in the store, not in us; and a relabelled workload has it still.
        assert (await site.db.read(read_bound))["default/analyst"]["banks"].member == "a"
        found, intact, _ = await site.db.read(entries)
        assert [(one.kind, one.workload) for one in found] == [
            ("reached", "default/analyst"), ("refused", "default/analyst"),
        ]  # fmt: skip
        assert intact
        with pytest.raises(PolicyInvalid):
            await walling.release(core, WallRelease("banks", "analyst", " "), ROOT, "default/analyst")
        with pytest.raises(WallNotFound):
            await walling.release(core, WallRelease("none", "analyst", "x"), ROOT, "default/analyst")
        await walling.release(core, WallRelease("banks", "analyst", "engagement ended"), ROOT, "default/analyst")
        assert site.notes.of(wire.FirewallForget)
        assert (await _judge(site, "analyst", "b")).allowed

    play(scene)


def test_two_first_contacts_at_once_are_one(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await banks(site)
        async with asyncio.TaskGroup() as tasks:
            both = [tasks.create_task(_judge(site, "analyst", bank)) for bank in ("a", "b")]
        assert sorted(task.result().allowed for task in both) == [False, True]

    play(scene)


def test_a_rename_takes_the_history_along(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await banks(site)
        await site.pod("second")
        await _judge(site, "analyst", "a")
        await _judge(site, "second", "b")
        await containers.rename(site.core, "analyst", "default", "consultant", ROOT)
        assert not (await _judge(site, "consultant", "b")).allowed
        assert (await _judge(site, "consultant", "a")).allowed
        # A name with another history is not to be had.
        await site.db.write(lambda db: db.execute("DELETE FROM containers WHERE name='second'"))
        with pytest.raises(WallBreached):
            await containers.rename(site.core, "consultant", "default", "second", ROOT)

    play(scene)


def test_a_forged_line_is_found(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await banks(site)
        await _judge(site, "analyst", "a")
        await _judge(site, "analyst", "b")
        told = await walling.report(site.core, "")
        assert told.intact
        assert len(told.digest) == 64
        assert [wall.bound[0].workload for wall in told.walls] == ["default/analyst"]
        await site.db.write(lambda db: db.execute("UPDATE wall_history SET member='b' WHERE number=1"))
        assert not (await walling.report(site.core, "banks")).intact
        with pytest.raises(WallNotFound):
            await walling.report(site.core, "none")

    play(scene)


def test_paths_across_a_wall_are_named(play: Callable[..., None]) -> None:
    async def scene(site: Site) -> None:
        await banks(site)
        paths = (await walling.listing(site.core)).walls[0].crossings
        assert len(paths) == 1, "through the analyst, whom nothing else stops; not from a to b, which the wall forbids"
        assert "role=analyst" in paths[0]
        closed = b"apiVersion: casemate/v1\nkind: Policy\nmetadata: {name: x}\nspec:\n  segments: " \
                 b"{r: {select: {matchLabels: {role: analyst}}, default: deny}}"  # fmt: skip
        await site.apply(closed)
        assert (await walling.listing(site.core)).walls[0].crossings == ()

    play(scene)
