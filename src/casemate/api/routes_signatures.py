"""Routes of signatures: verify, and put new ones beside an image."""

from __future__ import annotations

from casemate.api.routing import Call, NoQuery, Row
from casemate.node import signatures
from casemate.spec.api import signatures as schema


async def verify(call: Call) -> object:
    return await signatures.verify(call.core, call.body)


async def resolve(call: Call) -> object:
    return await signatures.resolve(call.core, call.body)


async def attach(call: Call) -> object:
    return await signatures.attach(call.core, call.body, call.caller)


ROWS = (
    Row("POST", "/v1/trust/verify", verify, "Verify an image's signatures", NoQuery, body=schema.VerifyRequest,
        answer=schema.VerifyAnswer, errors=(404, 413, 422, 502, 504)),
    Row("POST", "/v1/trust/resolve", resolve, "What a registry has under a reference", NoQuery,
        body=schema.ResolveRequest, answer=schema.ResolveAnswer, errors=(404, 502, 504)),
    Row("POST", "/v1/trust/attach", attach, "Put signatures beside an image at its registry", NoQuery,
        body=schema.AttachRequest, answer=schema.AttachAnswer, errors=(404, 413, 502, 504)),
)  # fmt: skip
