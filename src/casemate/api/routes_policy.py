"""Routes of policy: documents, questions, identities, walls."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from casemate.api.errors import BodyInvalid, BodyTooLarge
from casemate.api.routing import Call, NoQuery, Row
from casemate.api.scopes import ADMINISTRATOR, ENDS, NARROWED, OPEN
from casemate.node.clock import parse_time
from casemate.node.policy import asking, documents, ends, walling, wallpaths
from casemate.node.policy.reading import read_text
from casemate.policy.schema import policy_schema
from casemate.policy.source import MAX_BYTES
from casemate.spec.api import policy as schema
from casemate.spec.api.walls import WallCheck

YAML = "application/yaml"
#: KIND/[PROJECT/]NAME, each name at most 253 letters.
Key = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9./-]{0,599}\Z")]


class ApplyQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*dry_run*: say what would be done. *whole*: documents that are not given go.

    *path_reason*: an officer's, why a path across a wall may be opened.
    """

    dry_run: bool = False
    whole: bool = False
    path_reason: Annotated[str, Meta(max_length=1000)] = ""


class ListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: Empty: those of every project.
    project: Annotated[str, Meta(max_length=253)] = ""


class KeyQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: Key


class KeysQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: Annotated[tuple[Key, ...], Meta(min_length=1, max_length=32)]
    dry_run: bool = False
    path_reason: Annotated[str, Meta(max_length=1000)] = ""


class CheckQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*whole*: the given documents alone, not beside those in force."""

    whole: bool = False


class SimulateQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*since*: which recorded flows. *whole*: the given documents alone, not beside those in force."""

    since: Annotated[str, Meta(max_length=64)] = "1h"
    whole: bool = False


class SuggestQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    since: Annotated[str, Meta(max_length=64)] = "1h"
    name: Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")] = "observed"


class WallQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: Empty: all.
    wall: Annotated[str, Meta(max_length=253)] = ""


async def read_body(call: Call, limit: int = MAX_BYTES) -> bytes:
    """The whole body; raises :class:`BodyTooLarge` above *limit* bytes."""
    assert call.request is not None
    data = bytearray()
    async for chunk in call.request.stream():
        data += chunk
        if len(data) > limit:
            raise BodyTooLarge(f"the body is longer than {limit} bytes", limit=limit)
    return bytes(data)


async def apply(call: Call) -> object:
    query: ApplyQuery = call.query
    data = await read_body(call)
    return await documents.apply(
        call.core, data, call.caller, dry_run=query.dry_run, whole=query.whole, path_reason=query.path_reason
    )


async def remove(call: Call) -> object:
    query: KeysQuery = call.query
    return await documents.remove(
        call.core, query.key, call.caller, dry_run=query.dry_run, path_reason=query.path_reason
    )


async def listing(call: Call) -> object:
    return await documents.listing(call.core, call.caller, call.query.project)


async def show(call: Call) -> object:
    return await documents.show(call.core, call.query.key, call.caller)


async def explain(call: Call) -> object:
    return await asking.explained(call.core, call.body)


async def test(call: Call) -> object:
    """The body: the tests, or a JSON object of both texts (``tests``, ``documents``)."""
    data = await read_body(call)
    tests, given = data, b""
    assert call.request is not None
    if call.request.headers.get("content-type", "").startswith("application/json"):
        try:
            both = msgspec.json.decode(data, type=dict[str, str])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BodyInvalid(f"body: {error}") from error
        tests, given = both.get("tests", "").encode(), both.get("documents", "").encode()
    return await asking.tested(call.core, tests, given)


async def simulate(call: Call) -> object:
    query: SimulateQuery = call.query
    data = await read_body(call)
    return await asking.simulated(call.core, data, parse_time(query.since, call.core.clock()), whole=query.whole)


async def suggest(call: Call) -> object:
    query: SuggestQuery = call.query
    return await asking.suggested_for(call.core, parse_time(query.since, call.core.clock()), query.name)


async def the_schema(call: Call) -> object:  # noqa: ARG001 - a handler
    return policy_schema()


async def status(call: Call) -> object:
    return await asking.status(call.core, dict(call.node.referrals.counters), call.caller)


async def identities(call: Call) -> object:
    return await asking.identities(call.core, call.caller, call.query.project)


async def walls(call: Call) -> object:
    return await walling.listing(call.core)


async def wall_check(call: Call) -> object:
    """The body: documents to look at beside those in force; none: what is in force."""
    query: CheckQuery = call.query
    data = await read_body(call)
    given = await read_text(data) if data.strip() else []
    return await wallpaths.check(call.core.policy, given, whole=query.whole)


async def wall_report(call: Call) -> object:
    return await walling.report(call.core, call.query.wall)


async def wall_release(call: Call) -> None:
    request: schema.WallRelease = call.body
    workload = await ends.workload_name(call.core, request.workload, request.project, historic=True)
    await walling.release(call.core, request, call.caller, workload)


_DOCUMENTS = "/v1/policy/documents"
ROWS = (
    Row("GET", _DOCUMENTS, listing, "List policy documents and what holds", ListQuery, answer=schema.PolicyList,
        scope=NARROWED),
    Row("POST", _DOCUMENTS, apply, "Apply policy documents (the body is YAML or JSON)", ApplyQuery,
        answer=schema.PolicyApplied, stream_body=YAML, errors=(403, 409, 413), scope=NARROWED),
    Row("DELETE", _DOCUMENTS, remove, "Remove policy documents", KeysQuery, answer=schema.PolicyApplied,
        errors=(403, 404, 409), scope=NARROWED),
    Row("GET", "/v1/policy/document", show, "Show a policy document", KeyQuery, answer=schema.PolicyDetail,
        errors=(404,), scope=NARROWED),
    Row("POST", "/v1/policy/explain", explain, "Why a connection has its verdict", NoQuery,
        body=schema.ExplainRequest, answer=schema.ExplainAnswer, errors=(404,), scope=ENDS),
    Row("POST", "/v1/policy/test", test, "Check expectations (the body is YAML)", NoQuery, answer=schema.TestAnswer,
        stream_body=YAML, errors=(404, 413), scope=ADMINISTRATOR),
    Row("POST", "/v1/policy/simulate", simulate, "Replay recorded flows against other documents (the body is YAML)",
        SimulateQuery, answer=schema.SimulateAnswer, stream_body=YAML, errors=(413, 503), scope=ADMINISTRATOR),
    Row("GET", "/v1/policy/suggest", suggest, "The narrowest rules that admit the recorded flows", SuggestQuery,
        answer=schema.SuggestAnswer, errors=(413, 503), scope=ADMINISTRATOR),
    Row("GET", "/v1/policy/schema", the_schema, "The JSON schema of casemate/v1 Policy", NoQuery,
        answer="application/json", scope=OPEN),
    Row("GET", "/v1/policy/status", status, "What holds, what is held and waits, what was counted", NoQuery,
        answer=schema.PolicyStatus, errors=(503,), scope=NARROWED),
    Row("GET", "/v1/identities", identities, "List identities", ListQuery, answer=schema.IdentityList, scope=NARROWED),
    Row("GET", "/v1/walls", walls, "List walls, who is bound, and paths across them", NoQuery, answer=schema.WallList,
        scope=ADMINISTRATOR),
    Row("POST", "/v1/walls/check", wall_check, "Prove that no path leads across walls (the body is YAML, or empty)",
        CheckQuery, answer=WallCheck, stream_body=YAML, errors=(413,), scope=ADMINISTRATOR),
    Row("GET", "/v1/walls/report", wall_report, "The evidence of walls", WallQuery, answer=schema.WallReport,
        errors=(404,), scope=ADMINISTRATOR),
    Row("POST", "/v1/walls/release", wall_release, "Release a workload from a wall", NoQuery,
        body=schema.WallRelease, status=204, errors=(403, 404), scope=ADMINISTRATOR),
)  # fmt: skip
