"""The route of kept ports: what is held for whom, and for how long."""

from __future__ import annotations

from casemate.api.routing import Call, Row
from casemate.api.scopes import IN_QUERY
from casemate.spec.api import keeping as schema


async def listing(call: Call) -> object:
    return call.node.keeping.state(call.project)


ROWS = (
    Row(
        "GET", "/v1/holds", listing, "List kept ports and what is held for them", answer=schema.HoldList, scope=IN_QUERY
    ),
)
