"""Routes of a container's files."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import msgspec
from starlette.responses import Response, StreamingResponse

from casemate.api.routing import Call, Project, Row
from casemate.api.streams import until_ending
from casemate.node import files
from casemate.spec import api as schema

TAR = "application/x-tar"
STAT_HEADER = "x-casemate-path-stat"


class PathQuery(Project, frozen=True, forbid_unknown_fields=True):
    path: str = "/"


async def _tar(call: Call, output: files.Output, headers: dict[str, str] | None = None) -> Response:
    """*output* as a streamed answer; what fails before its first byte is answered as a problem."""
    await output.__aenter__()
    try:
        first = await output.read()
    except BaseException as error:
        await output.__aexit__(type(error), error, error.__traceback__)
        raise

    async def chunks() -> AsyncIterator[bytes]:
        data = first
        try:
            while data:
                yield data
                data = await output.read()
        finally:
            await output.__aexit__(None, None, None)

    return StreamingResponse(until_ending(call, chunks()), media_type=TAR, headers=headers)


def _stat_header(stat: schema.PathStat) -> dict[str, str]:
    return {STAT_HEADER: base64.b64encode(msgspec.json.encode(stat)).decode()}


async def get_archive(call: Call) -> object:
    path = call.query.path
    stat = await files.stat(call.core, call.reference, call.project, call.caller, path)
    output = await files.archive(call.core, call.reference, call.project, call.caller, path)
    return await _tar(call, output, _stat_header(stat))


async def head_archive(call: Call) -> object:
    stat = await files.stat(call.core, call.reference, call.project, call.caller, call.query.path)
    return Response(headers=_stat_header(stat), media_type=TAR)


async def put_archive(call: Call) -> None:
    assert call.request is not None
    await files.extract(
        call.core, call.reference, call.project, call.caller, path=call.query.path, body=call.request.stream()
    )


async def export(call: Call) -> object:
    return await _tar(call, await files.export(call.core, call.reference, call.project, call.caller))


async def changes(call: Call) -> object:
    return await files.changes(call.core, call.reference, call.project, call.caller)


_ONE = "/v1/containers/{ref}"
ROWS = (
    Row("GET", f"{_ONE}/archive", get_archive, "Copy out of a container", PathQuery, answer=TAR, errors=(403, 404, 409)),
    Row("HEAD", f"{_ONE}/archive", head_archive, "What stands at a path", PathQuery, answer=TAR, errors=(403, 404, 409)),
    Row("PUT", f"{_ONE}/archive", put_archive, "Copy into a container (the body is a tar)", PathQuery, status=204,
        errors=(403, 404, 409), stream_body=TAR),
    Row("GET", f"{_ONE}/export", export, "The whole root file system as a tar", answer=TAR, errors=(403, 404, 409)),
    Row("GET", f"{_ONE}/changes", changes, "What the container changed", answer=schema.ChangesAnswer,
        errors=(403, 404, 409)),
)  # fmt: skip
