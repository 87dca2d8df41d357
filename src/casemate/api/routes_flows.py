"""Routes of what was seen: flow records, the service map."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from msgspec import Meta

from casemate.api.routing import Call, Row
from casemate.api.scopes import NARROWED
from casemate.api.streams import HEARTBEAT, event_stream, sse
from casemate.node.clock import parse_time
from casemate.node.flows.query import MAX_ROWS, Wanted
from casemate.node.owners import shown_flow, shown_map
from casemate.spec.api.flows import FlowList, FlowMap

Text = Annotated[str, Meta(max_length=256)]


class FlowsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from", "target": "to"}):
    """Each end as NAME, PROJECT/NAME, an address, a network, ``world`` or ``node``; *since* as for logs."""

    source: Text = ""
    target: Text = ""
    end: Text = ""
    verdict: Annotated[tuple[str, ...], Meta(max_length=4)] = ()
    since: Text = ""
    until: Text = ""
    port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    protocol: Annotated[str, Meta(max_length=16)] = ""
    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 200
    project: str = ""


def _wanted(call: Call) -> Wanted:
    query: FlowsQuery = call.query
    at = call.core.clock()
    return Wanted(
        query.source, query.target, query.end, query.verdict, parse_time(query.since, at) if query.since else 0.0,
        parse_time(query.until, at) if query.until else float("inf"), query.port, query.protocol, query.project,
        call.caller.projects,
    )  # fmt: skip


async def flows(call: Call) -> object:
    query: FlowsQuery = call.query
    found = await call.node.flows.last(_wanted(call), query.limit)
    return msgspec.structs.replace(found, flows=tuple(shown_flow(call.caller, row) for row in found.flows))


async def follow(call: Call) -> object:
    query: FlowsQuery = call.query
    wanted = _wanted(call)
    service = call.node.flows
    assert call.request is not None
    last = call.request.headers.get("last-event-id", "")
    after = int(last) if last.isascii() and last.isdigit() and len(last) < 18 else None
    first = await service.last(wanted, query.limit) if query.since and after is None else None

    async def pieces() -> AsyncIterator[bytes]:
        position = after
        for row in first.flows if first is not None else ():
            yield sse("flow", shown_flow(call.caller, row))
        async for found in service.follow(wanted, position):
            if found is None:
                yield HEARTBEAT
            else:
                yield sse("flow", shown_flow(call.caller, found[1]), found[0])

    return event_stream(call, pieces())


async def flow_map(call: Call) -> object:
    return shown_map(call.caller, await call.node.flows.service_map(_wanted(call)))


ROWS = (
    Row("GET", "/v1/flows", flows, "Who talked to whom", FlowsQuery, answer=FlowList, scope=NARROWED),
    Row("GET", "/v1/flows/follow", follow, "Who talks to whom, as it happens: a FlowRow when a connection begins, and "
        "when it ends", FlowsQuery, answer="text/event-stream", errors=(429,), scope=NARROWED),
    Row("GET", "/v1/flows/map", flow_map, "The service map", FlowsQuery, answer=FlowMap, scope=NARROWED),
)  # fmt: skip
