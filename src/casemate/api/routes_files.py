"""Routes of a container's files."""

from __future__ import annotations

import base64

import msgspec
from starlette.responses import Response

from casemate.api.routing import Call, Project, Row
from casemate.api.scopes import IN_QUERY
from casemate.api.streams import piped_stream
from casemate.node import files
from casemate.spec import api as schema

TAR = "application/x-tar"
STAT_HEADER = "x-casemate-path-stat"


class PathQuery(Project, frozen=True, forbid_unknown_fields=True):
    path: str = "/"


def _stat_header(stat: schema.PathStat) -> dict[str, str]:
    return {STAT_HEADER: base64.b64encode(msgspec.json.encode(stat)).decode()}


async def get_archive(call: Call) -> object:
    path = call.query.path
    output = await files.archive(call.core, call.reference, call.project, call.caller, path)

    async def headers() -> dict[str, str]:
        return _stat_header(await files.first_member(output, path))

    return await piped_stream(call, output, TAR, headers)


async def head_archive(call: Call) -> object:
    path = call.query.path
    async with await files.archive(call.core, call.reference, call.project, call.caller, path) as output:
        return Response(headers=_stat_header(await files.first_member(output, path)), media_type=TAR)


async def put_archive(call: Call) -> None:
    assert call.request is not None
    await files.extract(
        call.core, call.reference, call.project, call.caller, path=call.query.path, body=call.request.stream()
    )


async def export(call: Call) -> object:
    return await piped_stream(call, await files.export(call.core, call.reference, call.project, call.caller), TAR)


async def changes(call: Call) -> object:
    return await files.changes(call.core, call.reference, call.project, call.caller)


_ONE = "/v1/containers/{ref}"
ROWS = (
    Row("GET", f"{_ONE}/archive", get_archive, "Copy out of a container", PathQuery, answer=TAR,
        errors=(403, 404, 409), scope=IN_QUERY),
    Row("HEAD", f"{_ONE}/archive", head_archive, "What stands at a path", PathQuery, answer=TAR,
        errors=(403, 404, 409), scope=IN_QUERY),
    Row("PUT", f"{_ONE}/archive", put_archive, "Copy into a container (the body is a tar)", PathQuery, status=204,
        errors=(403, 404, 409), stream_body=TAR, scope=IN_QUERY),
    Row("GET", f"{_ONE}/export", export, "The whole root file system as a tar", answer=TAR,
        errors=(403, 404, 409), scope=IN_QUERY),
    Row("GET", f"{_ONE}/changes", changes, "What the container changed", answer=schema.ChangesAnswer,
        errors=(403, 404, 409), scope=IN_QUERY),
)  # fmt: skip
