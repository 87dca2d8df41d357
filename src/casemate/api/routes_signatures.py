"""Routes of signatures: verify, and put new ones beside an image."""

from __future__ import annotations

from casemate.api.routes_images import RefQuery
from casemate.api.routing import Call, NoQuery, Row
from casemate.api.scopes import ADMINISTRATOR, SHARED
from casemate.node import freshness, signatures
from casemate.spec.api import publishers
from casemate.spec.api import signatures as schema


async def verify(call: Call) -> object:
    return await signatures.verify(call.core, call.body)


async def resolve(call: Call) -> object:
    return await signatures.resolve(call.core, call.body)


async def attach(call: Call) -> object:
    return await signatures.attach(call.core, call.body, call.caller)


async def add_publisher(call: Call) -> object:
    return await freshness.add(call.core, call.body, call.caller)


async def list_publishers(call: Call) -> object:
    return await freshness.listing(call.core)


async def refresh_publisher(call: Call) -> object:
    return await freshness.refresh(call.core, call.path["name"])


async def remove_publisher(call: Call) -> None:
    await freshness.remove(call.core, call.path["name"], call.caller)


async def tag(call: Call) -> object:
    return await freshness.tag(call.core, call.query.ref)


_PUBLISHER = "/v1/trust/sources/{name}"
ROWS = (
    Row("POST", "/v1/trust/verify", verify, "Verify an image's signatures", NoQuery, body=schema.VerifyRequest,
        answer=schema.VerifyAnswer, errors=(404, 413, 422, 502, 504), scope=SHARED),
    Row("POST", "/v1/trust/resolve", resolve, "What a registry has under a reference", NoQuery,
        body=schema.ResolveRequest, answer=schema.ResolveAnswer, errors=(404, 502, 504), scope=SHARED),
    Row("POST", "/v1/trust/attach", attach, "Put signatures beside an image at its registry", NoQuery,
        body=schema.AttachRequest, answer=schema.AttachAnswer, errors=(404, 413, 502, 504), scope=SHARED),
    Row("GET", "/v1/trust/sources", list_publishers, "List publishers that are followed", NoQuery,
        answer=publishers.PublisherList, scope=SHARED),
    Row("POST", "/v1/trust/sources", add_publisher, "Follow a publisher", NoQuery, body=publishers.PublisherRequest,
        answer=publishers.PublisherRow, status=201, errors=(403, 409, 502), scope=ADMINISTRATOR),
    Row("POST", f"{_PUBLISHER}/refresh", refresh_publisher, "Ask a publisher now", NoQuery,
        answer=publishers.PublisherRow, errors=(403, 404, 502), scope=ADMINISTRATOR),
    Row("DELETE", _PUBLISHER, remove_publisher, "Follow a publisher no more", NoQuery, status=204, errors=(404,),
        scope=ADMINISTRATOR),
    Row("GET", "/v1/trust/tag", tag, "What a tag means by its publisher", RefQuery, answer=publishers.TagAnswer,
        errors=(403,), scope=SHARED),
)  # fmt: skip
