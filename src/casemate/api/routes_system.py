"""Routes of the node: version, info, doctor, disk usage, prune, events, audit."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from msgspec import Meta

from casemate.api.routing import Call, NoQuery, Project, Row
from casemate.api.scopes import ADMINISTRATOR, IN_QUERY, NARROWED, OPEN
from casemate.api.streams import HEARTBEAT, event_stream, sse
from casemate.node import audit, system, watched
from casemate.node.clock import parse_time
from casemate.node.events import Events
from casemate.node.owners import sees_event
from casemate.spec import api as schema
from casemate.spec.errors import InvalidArgument, PermissionDenied

_FILTERS = ("kind", "type", "action", "event", "subject", "container", "name", "project", "image", "pod", "volume")


class EventsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*since* and *until* as for logs; *follow* false ends at the present; *filter* is ``key=value``."""

    since: str = ""
    until: str = ""
    follow: bool = True
    filter: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    project: str = ""


class AuditQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # The bound is what an SQLite integer holds.
    after: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 200
    #: The last so many rows, instead of those after a number.
    tail: Annotated[int, Meta(ge=0, le=1000)] = 0


async def version(call: Call) -> object:
    return system.version(call.core)


async def info(call: Call) -> object:
    return await system.info(call.core, call.caller)


async def doctor(call: Call) -> object:
    answer = await system.doctor(call.core)
    return msgspec.structs.replace(answer, findings=(*answer.findings, *watched.findings(call.node)))


async def disk(call: Call) -> object:
    return await system.disk(call.core, call.project, call.caller)


async def prune(call: Call) -> object:
    return await system.prune(call.core, call.body, call.caller)


async def read_audit(call: Call) -> object:
    if not call.peer.auditor:
        raise PermissionDenied("only root reads the audit log", remedy="`sudo casemate audit ls`")
    query: AuditQuery = call.query

    def work(db: sqlite3.Connection) -> object:
        if query.tail:
            return audit.page(db, audit.before_last(db, query.tail), query.tail)
        return audit.page(db, query.after, query.limit)

    return await call.core.db.read(work)


async def events(call: Call) -> object:
    query: EventsQuery = call.query
    at = call.core.clock()
    since = parse_time(query.since, at) if query.since else 0.0
    until = parse_time(query.until, at) if query.until else float("inf")
    wanted = _parse_filters(query.filter)
    assert call.request is not None
    last = call.request.headers.get("last-event-id", "")
    after = int(last) if last.isascii() and last.isdigit() and len(last) < 18 else None
    if after is None and not query.follow:
        after = 0

    async def pieces() -> AsyncIterator[bytes]:
        watcher: Events = call.core.events
        async for row in watcher.watch(after=after, since=since, until=until, follow=query.follow):
            if row is None:
                yield HEARTBEAT
                if call.core.clock() > until:
                    return
            elif (
                _takes(row, wanted)
                and (not query.project or row.project == query.project)
                and sees_event(call.caller, row)
            ):
                yield sse("event", row, row.number)

    return event_stream(call, pieces())


def _parse_filters(texts: tuple[str, ...]) -> dict[str, set[str]]:
    wanted: dict[str, set[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in _FILTERS:
            raise InvalidArgument(f"filter {text[:80]!r} is not KEY=VALUE with KEY one of {', '.join(_FILTERS)}")
        wanted.setdefault({"type": "kind", "event": "action"}.get(key, key), set()).add(value)
    return wanted


def _takes(row: schema.EventRow, wanted: dict[str, set[str]]) -> bool:
    for key, values in wanted.items():
        if key in ("kind", "action", "subject", "name", "project"):
            if getattr(row, key) not in values:
                return False
        elif key == "image" and row.kind == "container":
            if row.facts.get("image") not in values:
                return False
        elif row.kind != key or not any(v == row.name or (v and row.subject.startswith(v)) for v in values):
            return False
    return True


ROWS = (
    Row("GET", "/v1/version", version, "Versions", NoQuery, answer=schema.VersionAnswer, scope=OPEN),
    Row("GET", "/v1/info", info, "The host and what is on it", NoQuery, answer=schema.InfoAnswer, scope=NARROWED),
    Row("GET", "/v1/doctor", doctor, "Check the host and what a crash left", NoQuery, answer=schema.DoctorAnswer,
        scope=ADMINISTRATOR),
    Row("GET", "/v1/df", disk, "Disk usage", Project, answer=schema.DiskAnswer, scope=IN_QUERY),
    Row("POST", "/v1/prune", prune, "Remove what nobody uses", NoQuery, body=schema.PruneRequest, optional_body=True,
        answer=schema.Removed, scope=ADMINISTRATOR),
    Row("GET", "/v1/events", events, "Follow events", EventsQuery, answer="text/event-stream", errors=(429,),
        scope=NARROWED),
    Row("GET", "/v1/audit", read_audit, "Read the audit log", AuditQuery, answer=schema.AuditList, errors=(403,),
        scope=ADMINISTRATOR),
)  # fmt: skip
