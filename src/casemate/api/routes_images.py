"""Routes of images and operations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.responses import Response

from casemate.api.routing import Call, NoQuery, Row
from casemate.api.scopes import ADMINISTRATOR, NARROWED, OPERATION, SHARED
from casemate.api.streams import HEARTBEAT, event_stream, piped_stream, sse
from casemate.api.uploads import uploaded_archive
from casemate.node import imageremoval, images, imagetransfer
from casemate.spec import api as schema
from casemate.spec.errors import InvalidArgument


class RefQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ref: schema.Reference


class ImageFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*filter* is ``reference=TEXT``, ``label=KEY[=VALUE]`` or ``dangling=true|false``."""

    filter: Annotated[tuple[str, ...], Meta(max_length=64)] = ()


class RemoveQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ref: schema.Reference
    force: bool = False


class PruneQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    all: bool = False


class ImportQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tag: str = ""
    format: Literal["auto", "docker-archive", "oci-archive", "rootfs"] = "auto"
    cmd: Annotated[tuple[str, ...], Meta(max_length=1024)] = ()
    entrypoint: Annotated[tuple[str, ...], Meta(max_length=1024)] = ()
    env: Annotated[tuple[str, ...], Meta(max_length=1024)] = ()


class ExportQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ref: Annotated[tuple[schema.Reference, ...], Meta(min_length=1, max_length=64)]
    format: Literal["docker-archive", "oci-archive"] = "docker-archive"


async def list_(call: Call) -> object:
    query: ImageFilter = call.query
    found = await images.listing(call.core, "")
    return schema.ImageList(tuple(row for row in found.images if _takes(row, query.filter)))


def _takes(row: schema.ImageSummary, filters: tuple[str, ...]) -> bool:
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals or key not in ("reference", "label", "dangling"):
            raise InvalidArgument(f"filter {text[:80]!r} is not reference=, label= or dangling=")
        if key == "reference" and not any(value in name for name in row.names):
            return False
        if key == "dangling" and (value.lower() in ("true", "1")) != (not row.names):
            return False
        if key == "label":
            name, has_value, wanted = value.partition("=")
            if name not in row.labels or (has_value and row.labels[name] != wanted):
                return False
    return True


async def inspect(call: Call) -> object:
    return await images.inspect(call.core, call.query.ref)


async def history(call: Call) -> object:
    return await images.history(call.core, call.query.ref)


async def remove(call: Call) -> object:
    query: RemoveQuery = call.query
    return await imageremoval.remove(call.core, query.ref, call.caller, force=query.force)


async def tag(call: Call) -> None:
    await images.tag(call.core, call.body, call.caller)


async def prune(call: Call) -> object:
    query: PruneQuery = call.query
    return await imageremoval.prune(call.core, call.caller, everything=query.all)


def accepted(operation: schema.Operation) -> Response:
    """202 with the operation and where it is followed."""
    headers = {"location": f"/v1/operations/{operation.id}"}
    return Response(msgspec.json.encode(operation), 202, headers, media_type="application/json")


async def pull(call: Call) -> object:
    return accepted(await images.pull(call.core, call.node.operations, call.body, call.caller))


async def push(call: Call) -> object:
    return accepted(await images.push(call.core, call.node.operations, call.body, call.caller))


async def build_debian(call: Call) -> object:
    return accepted(await images.build_debian(call.core, call.node.operations, call.body, call.caller))


async def import_(call: Call) -> object:
    query: ImportQuery = call.query
    wanted = imagetransfer.ImportWanted(query.tag, query.format, _words(query.cmd), _words(query.entrypoint), query.env)
    imagetransfer.check_import(wanted)
    async with uploaded_archive(call) as path:
        return accepted(await imagetransfer.import_(call.core, call.node.operations, wanted, path, call.caller))


def _words(values: tuple[str, ...]) -> tuple[str, ...]:
    """A command: the parameter repeated for each word, or once as a JSON array."""
    if len(values) == 1 and values[0].startswith("["):
        try:
            return msgspec.json.decode(values[0], type=tuple[str, ...])
        except msgspec.MsgspecError as error:
            raise InvalidArgument(f"{values[0][:80]!r} is no JSON array of words: {error}") from error
    return values


async def export(call: Call) -> object:
    query: ExportQuery = call.query
    export = await imagetransfer.open_export(call.core, query.ref, query.format)
    return await piped_stream(call, export, "application/x-tar")


class Operations(msgspec.Struct, frozen=True):
    """``GET /v1/operations``."""

    operations: tuple[schema.Operation, ...]


async def list_operations(call: Call) -> object:
    who = "" if call.caller.projects is None else call.caller.who
    return Operations(tuple(await call.node.operations.listing(who)))


async def get_operation(call: Call) -> object:
    return await call.node.operations.get(call.path["id"])


async def cancel_operation(call: Call) -> object:
    return await call.node.operations.cancel(call.path["id"])


async def watch_operation(call: Call) -> object:
    await call.node.operations.get(call.path["id"])  # an unknown one is a 404, not a stream

    async def pieces() -> AsyncIterator[bytes]:
        async for item in call.node.operations.watch(call.path["id"]):
            match item:
                case None:
                    yield HEARTBEAT
                case schema.Operation():
                    yield sse("end", item)
                case (number, progress):
                    yield sse("progress", progress, number)

    return event_stream(call, pieces())


_OPERATION = "/v1/operations/{id}"
_REMOVED = schema.Removed
ROWS = (
    Row("GET", "/v1/images", list_, "List images", ImageFilter, answer=schema.ImageList, scope=SHARED),
    Row("GET", "/v1/images/inspect", inspect, "Inspect an image", RefQuery, answer=schema.ImageDetail, errors=(404,),
        scope=SHARED),
    Row("GET", "/v1/images/history", history, "History of an image", RefQuery, answer=schema.HistoryAnswer,
        errors=(404,), scope=SHARED),
    Row("DELETE", "/v1/images", remove, "Remove an image or a name", RemoveQuery, answer=_REMOVED, errors=(404, 409),
        scope=ADMINISTRATOR),
    Row("POST", "/v1/images/tag", tag, "Name an image", NoQuery, body=schema.TagRequest, status=204, errors=(404,),
        scope=ADMINISTRATOR),
    Row("POST", "/v1/images/prune", prune, "Remove images that nobody uses", PruneQuery, answer=_REMOVED,
        scope=ADMINISTRATOR),
    Row("POST", "/v1/images/pull", pull, "Pull an image", NoQuery, body=schema.PullRequest, answer=schema.Operation,
        status=202, errors=(429,), scope=SHARED),
    Row("POST", "/v1/images/push", push, "Push an image", NoQuery, body=schema.PushRequest, answer=schema.Operation,
        status=202, errors=(404, 429), scope=SHARED),
    Row("POST", "/v1/images/build-debian", build_debian, "Build an image of Debian packages", NoQuery,
        body=schema.BuildDebianRequest, answer=schema.Operation, status=202, errors=(429,), scope=ADMINISTRATOR),
    Row("POST", "/v1/images/import", import_, "Import an archive (the body)", ImportQuery, answer=schema.Operation,
        status=202, errors=(413, 429, 507), stream_body="application/x-tar", scope=ADMINISTRATOR),
    Row("GET", "/v1/images/export", export, "Export images as an archive", ExportQuery, answer="application/x-tar",
        errors=(404,), scope=SHARED),
    Row("GET", "/v1/operations", list_operations, "List operations", NoQuery, answer=Operations, scope=NARROWED),
    Row("GET", _OPERATION, get_operation, "Inspect an operation", NoQuery, answer=schema.Operation, errors=(404,),
        scope=OPERATION),
    Row("GET", f"{_OPERATION}/events", watch_operation, "Follow an operation", NoQuery, answer="text/event-stream",
        errors=(404,), scope=OPERATION),
    Row("DELETE", _OPERATION, cancel_operation, "Cancel an operation", NoQuery, answer=schema.Operation, status=202,
        errors=(404, 409), scope=OPERATION),
)  # fmt: skip
