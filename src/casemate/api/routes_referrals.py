"""Routes of referrals and quarantines: what a person is asked, and what a person stops."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from msgspec import Meta

from casemate.api.routing import Call, NoQuery, Row
from casemate.api.scopes import NARROWED, REFERRAL, WORKLOAD
from casemate.api.streams import HEARTBEAT, event_stream, sse
from casemate.node.policy import quarantine
from casemate.node.policy.errors import ReferralNotFound
from casemate.node.policy.referrals import concerns
from casemate.spec.api import policy as schema


class ReferralsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: Decided ones that are answered too, the newest first.
    limit: Annotated[int, Meta(ge=0, le=1000)] = 50
    #: Those with an end in it; empty: all.
    project: Annotated[str, Meta(max_length=63)] = ""


class WatchQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*waiting*: only what a person is asked, and its answer; not what rules decided."""

    waiting: bool = False
    project: Annotated[str, Meta(max_length=63)] = ""


class EverythingQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    all: bool = False


def _number(call: Call) -> int:
    text = call.path["number"]
    if not (text.isascii() and text.isdigit() and len(text) < 18):
        raise ReferralNotFound(f"{text[:40]!r} is no referral's number")
    return int(text)


def _projects(call: Call) -> frozenset[str] | None:
    """The projects whose referrals are asked for; None: all."""
    return frozenset({call.query.project}) if call.query.project else call.caller.projects


async def listing(call: Call) -> object:
    return await call.node.referrals.listing(call.query.limit, _projects(call))


async def answer(call: Call) -> object:
    return await call.node.referrals.prompts.answer(_number(call), call.body, call.caller)


async def forget(call: Call) -> object:
    return await call.node.referrals.prompts.forget(_number(call), call.caller)


async def watch(call: Call) -> object:
    query: WatchQuery = call.query
    projects = _projects(call)

    async def pieces() -> AsyncIterator[bytes]:
        async for row in call.node.referrals.watch(waiting_only=query.waiting):
            if row is not None and not concerns(row, projects):
                continue
            yield HEARTBEAT if row is None else sse("referral", row, row.number)

    return event_stream(call, pieces())


async def quarantines(call: Call) -> object:
    return await quarantine.listing(call.core, call.caller, everything=call.query.all)


async def begin(call: Call) -> object:
    return await quarantine.by_person(call.core, call.body, call.caller)


async def release(call: Call) -> None:
    request: schema.ReleaseRequest = call.body
    await quarantine.by_officer(call.core, request, call.caller)


ROWS = (
    Row("GET", "/v1/referrals", listing, "List referrals: waiting, decided, remembered", ReferralsQuery,
        answer=schema.ReferralList, scope=NARROWED),
    Row("GET", "/v1/referrals/events", watch, "Follow referrals", WatchQuery, answer="text/event-stream",
        errors=(429,), scope=NARROWED),
    Row("POST", "/v1/referrals/{number}", answer, "Answer a referral", NoQuery, body=schema.ReferralAnswer,
        answer=schema.ReferralRow, errors=(403, 404), scope=REFERRAL),
    Row("DELETE", "/v1/referrals/{number}", forget, "Forget a remembered answer", NoQuery, answer=schema.ReferralRow,
        errors=(403, 404), scope=REFERRAL),
    Row("GET", "/v1/quarantines", quarantines, "List quarantines", EverythingQuery, answer=schema.QuarantineList,
        scope=NARROWED),
    Row("POST", "/v1/quarantines", begin, "Put a workload in quarantine", NoQuery, body=schema.QuarantineRequest,
        answer=schema.QuarantineRow, status=201, errors=(403, 404, 409), scope=WORKLOAD),
    Row("POST", "/v1/quarantines/release", release, "Release a workload from quarantine", NoQuery,
        body=schema.ReleaseRequest, status=204, errors=(403, 404), scope=WORKLOAD),
)  # fmt: skip
