"""A node with two projects, an operator of one of them, and everything that there can be in the other.

What is the other project's is called ``secret...``, so that a test can look for the word in any answer. A third
project's name may be seen at the far end of a flow: ``next-door``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.unit.api.fakes import Api, FakeHostd, running_api

from casemate.api.peer import Peer
from casemate.hostd.client import Answered
from casemate.hostd.protocol import AnyOperation, ContainerStats, ContainerUsage, Stats
from casemate.hostd.protocol_firewall import (
    FirewallChange,
    FirewallChanged,
    FirewallObserve,
    FirewallReplace,
    FirewallState,
    Holding,
    Referred,
    ReferredPacket,
)
from casemate.node.flows.store import NewFlow, Ring

MINE, THEIRS, OTHER = "mine", "secret-lab", "next-door"
ADMINISTRATOR = Peer("root", 0, allowed=True, auditor=True, grants=lambda: frozenset({"policy", "trust", "metrics"}))
#: An operator with a grant: it counts in the own project alone.
OPERATOR = Peer("ann", 1000, allowed=True, auditor=False, grants=lambda: frozenset({"policy", "trust"}),
                projects=frozenset({MINE}))  # fmt: skip
RULES = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: NAME, project: PROJECT}
spec:
  segments: {all: {select: {}, default: {egress: refer, ingress: allow}}}
"""


class Hostd(FakeHostd):
    """One that also takes rules, holds every pod, and counts for every container that it is asked of."""

    async def call(self, operation: AnyOperation, **more: Any) -> Answered:
        if isinstance(operation, FirewallReplace | FirewallChange):
            return Answered(FirewallChanged(1))
        if isinstance(operation, FirewallObserve):
            return Answered(
                FirewallState(1, True, {}, {}, 0, holding=tuple(Holding(pod, 1, 0, 1.0) for pod in self.pods))
            )
        if isinstance(operation, ContainerStats):
            return Answered(Stats(1, tuple(ContainerUsage(id_, *[1] * 9) for id_ in operation.containers)))
        return await super().call(operation, **more)


@dataclass
class World:
    """The API, and what is in the other project by kind: the words that a request's target and body may name."""

    api: Api
    theirs: dict[str, str]
    mine: dict[str, str]
    other: dict[str, str]

    async def send(self, method: str, target: str, body: object = None, **more: Any) -> tuple[int, Any]:
        """As the operator: (status, decoded body)."""
        status, _, answer = await self.api.send(method, target, body, peer=OPERATOR, **more)
        return status, answer

    async def rule(self, method: str, target: str, body: object = None, **more: Any) -> tuple[int, Any]:
        """The same as administrator."""
        status, _, answer = await self.api.send(method, target, body, peer=ADMINISTRATOR, **more)
        return status, answer

    async def stream(self, target: str, until: str, peer: Peer = OPERATOR) -> str:
        """What a stream says up to the word *until*; then the client goes away."""
        said = bytearray()
        enough = asyncio.Event()
        path, _, query = target.partition("?")
        scope = {
            "type": "http", "http_version": "1.1", "method": "GET", "path": path, "raw_path": path.encode(),
            "query_string": query.encode(), "headers": [], "root_path": "", "scheme": "http", "server": None,
            "client": None, "state": {"peer": peer},
        }  # fmt: skip
        waiting = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if waiting:
                return waiting.pop()
            await enough.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            said.extend(message.get("body", b""))
            if until.encode() in said:
                enough.set()

        async with asyncio.timeout(30):
            await self.api.app(scope, receive, send)  # type: ignore[arg-type]
        return said.decode()

    async def socket(self, target: str, peer: Peer = OPERATOR) -> dict[str, Any]:
        """The first message that a WebSocket is answered with."""
        path, _, query = target.partition("?")
        scope = {
            "type": "websocket", "path": path, "raw_path": path.encode(), "query_string": query.encode(), "headers": [],
            "root_path": "", "scheme": "ws", "server": None, "client": None, "subprotocols": [],
            "extensions": {"websocket.http.response": {}}, "state": {"peer": peer},
        }  # fmt: skip
        sent: list[dict[str, Any]] = []
        waiting = [{"type": "websocket.connect"}]

        async def receive() -> dict[str, Any]:
            return waiting.pop() if waiting else {"type": "websocket.disconnect", "code": 1000}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        async with asyncio.timeout(30):
            await self.api.app(scope, receive, send)  # type: ignore[arg-type]
        return {**sent[0], "body": b"".join(message.get("body", b"") for message in sent)}


async def _made(world: World, method: str, target: str, body: object = None, **more: Any) -> Any:
    status, answer = await world.rule(method, target, body, **more)
    assert status < 300, (method, target, answer)
    return answer


async def _fill(world: World, project: str, prefix: str) -> dict[str, str]:
    """One of each kind in *project*, made by the administrator; their names by kind."""
    names = {"project": project, "name": f"{prefix}-web", "volume": f"{prefix}-data", "pod": f"{prefix}-pod"}
    where = {"project": project}
    names["rules"] = f"{prefix}-rules"
    rules = RULES.replace("NAME", names["rules"]).replace("PROJECT", project)
    await _made(world, "POST", "/v1/policy/documents", raw=rules.encode())
    await _made(world, "POST", "/v1/volumes", {"name": names["volume"], **where})
    await _made(world, "POST", "/v1/pods", {"name": names["pod"], **where})
    made = {"image": "box", "name": names["name"], "labels": {f"{prefix}-label": "x"}, **where}
    names["container"] = (await _made(world, "POST", "/v1/containers", made))["id"]
    await _made(world, "POST", f"/v1/containers/{names['container']}/start?project={project}")
    command = {"command": [f"{prefix}-command"]}
    execs = f"/v1/containers/{names['container']}/exec?project={project}"
    names["exec"] = (await _made(world, "POST", execs, command))["id"]
    gone = await _made(world, "POST", "/v1/containers", {**made, "name": f"{prefix}-cut-off"})
    await _made(world, "POST", f"/v1/containers/{gone['id']}/start?project={project}")
    await _made(world, "POST", "/v1/quarantines", {"workload": f"{prefix}-cut-off", "reason": prefix, **where})
    return names


def _flows(path: str) -> None:
    """Between two of theirs, from the third project into mine, and from mine to outside; the newest last."""
    ring = Ring(path, 100)
    ends = {
        name: ring.end_number(("pod", project, name, f"{name}-pod-id", 7, f"{name}-label=x"))
        for project, name in ((THEIRS, "secret-web"), (THEIRS, "secret-db"), (MINE, "my-web"), (OTHER, "peer"))
    }
    ends["world"] = ring.end_number(("world", "", "", "", 0, ""))
    for number, (source, destination) in enumerate(
        (("secret-web", "secret-db"), ("secret-web", "world"), ("peer", "my-web"), ("my-web", "world")), 1
    ):
        one, other = ends[source], ends[destination]
        began = 1e9 + number
        ring.write([NewFlow(number, number, began, None, one, f"10.1.0.{number}", 4000, other, "192.0.2.1", 443, 6,
                            "allow", "rule", "", "", "")])  # fmt: skip
    ring.close()


async def _asked(world: World) -> None:
    """Three connections wait for a person's answer: theirs to outside, mine next door, and mine to outside."""
    node = world.api.node
    packets = []
    addresses = {}
    for names in (world.theirs, world.mine, world.other):
        target = f"/v1/containers/{names['container']}?project={names['project']}"
        names["address"] = addresses[names["project"]] = (await _made(world, "GET", target))["summary"]["address"]
    both = ((THEIRS, ""), (MINE, OTHER), (MINE, ""))
    for number, (source, destination) in enumerate(both, 1):
        ends = (
            bytes(map(int, text.split("."))) for text in (addresses[source], addresses.get(destination, "192.0.2.9"))
        )
        packets.append(ReferredPacket(number, *ends, 6, 40_000 + number, 80, ""))
    node.on_event(Referred(tuple(packets)))
    for row in (await _made(world, "GET", "/v1/referrals"))["waiting"]:
        names = world.theirs if row["source"].startswith(THEIRS) else world.mine
        names["between" if row["destination"].startswith(OTHER) else "referral"] = str(row["number"])


@contextlib.asynccontextmanager
async def two_projects(folder: Path) -> AsyncIterator[World]:
    """The world, with all daemons' parts in this process."""
    async with running_api(folder, Hostd()) as api:
        world = World(api, {}, {}, {})
        await api.node.desk.load()
        await api.node.core.policy.enforce()
        for project in (THEIRS, MINE):
            await _made(world, "POST", "/v1/projects", {"name": project, "labels": {f"{project}-label": "x"}})
        world.theirs |= await _fill(world, THEIRS, "secret")
        world.mine |= await _fill(world, MINE, "my")
        await _made(world, "POST", "/v1/projects", {"name": OTHER})
        peer = await _made(world, "POST", "/v1/containers", {"image": "box", "name": "peer", "project": OTHER})
        world.other |= {"project": OTHER, "container": peer["id"]}
        await _made(world, "POST", f"/v1/containers/{peer['id']}/start?project={OTHER}")
        _flows(api.node.flows.path)
        await _asked(world)
        ended = asyncio.Event()

        async def work(_: object) -> dict[str, object]:
            await ended.wait()
            return {}

        for names, who in ((world.theirs, ADMINISTRATOR), (world.mine, OPERATOR)):
            target = "secret-image" if names is world.theirs else "my-image"
            names["operation"] = (await api.node.operations.start("image.pull", target, who.caller(), work)).id
        yield world
        ended.set()
