"""Routes of scans and of the feeds by which they judge."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.responses import Response

from casemate.api.routes_images import accepted
from casemate.api.routing import Call, NoQuery, Row
from casemate.api.scopes import ADMINISTRATOR, SHARED
from casemate.api.uploads import uploaded
from casemate.node.trust import feeds, scans
from casemate.node.trust.admission import said_of
from casemate.node.trust.jobs import Answer
from casemate.spec import api as schema
from casemate.spec.api.scan import FeedKindText, FeedList, FeedUpdateRequest, ScanAnswer

#: The whole export of OSV is 1.3 GiB.
MAX_UPLOAD_BYTES = 8 << 30
FeedName = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"\A[A-Za-z0-9][A-Za-z0-9._:-]*\Z")]
_MEDIA = {
    "sarif": "application/sarif+json", "html": "text/html; charset=utf-8",
    "cyclonedx": "application/vnd.cyclonedx+json", "spdx": "application/spdx+json",
}  # fmt: skip


class ScanQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*format* ``json`` answers a ScanAnswer; the others answer a document of their own media type."""

    ref: schema.Reference
    format: Literal["json", "sarif", "html", "cyclonedx", "spdx"] = "json"


class FeedsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*verify* also counts every row and checks every page of the file."""

    verify: bool = False


class FeedQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: FeedName


class ImportQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*date* (``YYYY-MM-DD``): of the content, for kinds that do not say; *digest*: what the file must hash to."""

    kind: FeedKindText
    name: FeedName
    date: Annotated[str, Meta(pattern=r"\A([0-9]{4}-[0-9]{2}-[0-9]{2})?\Z")] = ""
    digest: Annotated[str, Meta(pattern=r"\A(sha256:[0-9a-f]{64})?\Z")] = ""


async def scan(call: Call) -> object:
    query: ScanQuery = call.query
    found = await call.until_gone(_scanned(call, query))
    if query.format == "json":
        return Response(bytes(memoryview(found.value)), media_type="application/json")
    headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}
    return Response(found.text.encode(), headers=headers, media_type=_MEDIA[query.format])


async def _scanned(call: Call, query: ScanQuery) -> Answer:
    return await scans.scan(call.core, query.ref, query.format, await said_of(call.core, query.ref))


async def list_feeds(call: Call) -> object:
    return await call.until_gone(feeds.listing(call.core, thorough=call.query.verify))


async def import_feed(call: Call) -> object:
    query: ImportQuery = call.query
    wanted = feeds.Wanted(query.kind, query.name, query.date, query.digest)
    async with uploaded(call, MAX_UPLOAD_BYTES) as path:
        return accepted(await feeds.import_(call.core, call.node.operations, wanted, path, call.caller))


async def update_feeds(call: Call) -> object:
    return accepted(await feeds.update(call.core, call.node.operations, call.body, call.caller))


async def remove_feed(call: Call) -> None:
    await feeds.remove(call.core, call.query.name, call.caller)


ROWS = (
    Row("GET", "/v1/images/scan", scan, "Scan an image", ScanQuery, answer=ScanAnswer, errors=(404, 409, 422),
        scope=SHARED),
    Row("GET", "/v1/feeds", list_feeds, "List feeds of known vulnerabilities", FeedsQuery, answer=FeedList,
        errors=(422,), scope=SHARED),
    Row("POST", "/v1/feeds/import", import_feed, "Import a feed (the body)", ImportQuery, answer=schema.Operation,
        status=202, errors=(413, 429, 507), stream_body="application/octet-stream", scope=ADMINISTRATOR),
    Row("POST", "/v1/feeds/update", update_feeds, "Update feeds from a mirror", NoQuery, body=FeedUpdateRequest,
        optional_body=True, answer=schema.Operation, status=202, errors=(400, 429), scope=ADMINISTRATOR),
    Row("DELETE", "/v1/feeds", remove_feed, "Remove a feed", FeedQuery, status=204, errors=(409,), scope=ADMINISTRATOR),
)  # fmt: skip
