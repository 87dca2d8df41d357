"""What an operator of one project is refused stands on the audit log, and a flood of it is a row a minute."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.unit.api.two_projects import OPERATOR, THEIRS, World, two_projects

from casemate.api.peer import Peer
from casemate.node import refusals


async def refused(world: World) -> list[tuple[str, str, dict[str, Any]]]:
    """(who, what was asked, facts) of each row."""
    _, answer = await world.rule("GET", "/v1/audit?limit=1000")
    assert answer["intact"]
    rows = [row for row in answer["rows"] if row["action"] == "rights.refused"]
    assert {row["answer"] for row in rows} <= {"refused"}
    return [(row["who"], row["subject"], row["facts"]) for row in rows]


def test_a_refusal_is_told_and_those_that_follow_are_counted(tmp_path: Path) -> None:
    async def body() -> None:
        async with two_projects(tmp_path) as world:
            core = world.api.node.core
            now = core.clock()
            core.clock = lambda: now
            who = OPERATOR.caller().who
            first = (who, "GET /v1/containers", {"code": "rights.project"})
            for _ in range(40):
                assert (await world.send("GET", f"/v1/containers?project={THEIRS}"))[0] == 403
            assert (await world.send("GET", "/v1/doctor"))[0] == 403
            socket = await world.socket(f"/v1/containers/{world.theirs['name']}/attach?project={THEIRS}")
            assert socket["status"] == 403
            # What is not there is no refusal.
            assert (await world.send("GET", f"/v1/containers/{world.theirs['container']}?project=mine"))[0] == 404
            assert await refused(world) == [first]
            await world.api.node.refusals.close_windows()
            assert await refused(world) == [first]
            now += refusals.WINDOW_S
            await world.api.node.refusals.close_windows()
            assert await refused(world) == [first, (who, "", {"more": 41})]
            assert (await world.send("GET", "/v1/doctor"))[0] == 403
            assert (await refused(world))[2:] == [(who, "GET /v1/doctor", {"code": "rights.administrator"})]

    asyncio.run(body())


def test_the_people_who_are_told_apart_are_bounded(tmp_path: Path) -> None:
    async def body() -> None:
        async with two_projects(tmp_path) as world:
            for number in range(refusals.MAX_PEOPLE + 5):
                peer = Peer(f"p{number}", 2000 + number, allowed=True, auditor=False, projects=frozenset({"mine"}))
                assert (await world.api.send("GET", "/v1/doctor", None, peer=peer))[0] == 403
            told = [who for who, _, _ in await refused(world)]
            assert len(told) == refusals.MAX_PEOPLE + 1
            assert told[-1] == refusals.OTHERS

    asyncio.run(body())
