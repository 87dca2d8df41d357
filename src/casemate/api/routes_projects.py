"""Routes of projects."""

from __future__ import annotations

from casemate.api.routing import Call, NoQuery, Row
from casemate.api.scopes import ADMINISTRATOR, IN_PATH, NARROWED
from casemate.node import projects
from casemate.spec.api import projects as schema


async def listing(call: Call) -> object:
    return await projects.listing(call.core, call.caller)


async def create(call: Call) -> object:
    return await projects.create(call.core, call.body, call.caller)


async def inspect(call: Call) -> object:
    return await projects.inspect(call.core, call.path["name"])


async def label(call: Call) -> object:
    return await projects.label(call.core, call.path["name"], call.body, call.caller)


async def remove(call: Call) -> None:
    await projects.remove(call.core, call.path["name"], call.caller)


ROWS = (
    Row("GET", "/v1/projects", listing, "List projects", NoQuery, answer=schema.ProjectList, scope=NARROWED),
    Row("POST", "/v1/projects", create, "Make a project", NoQuery, body=schema.ProjectRequest,
        answer=schema.ProjectRow, status=201, errors=(403, 409), scope=ADMINISTRATOR),
    Row("GET", "/v1/projects/{name}", inspect, "Show a project", NoQuery, answer=schema.ProjectRow, errors=(404,),
        scope=IN_PATH),
    Row("POST", "/v1/projects/{name}/labels", label, "Give a project other labels", NoQuery,
        body=schema.ProjectLabels, answer=schema.ProjectRow, errors=(403, 404), scope=ADMINISTRATOR),
    Row("DELETE", "/v1/projects/{name}", remove, "Remove an empty project", NoQuery, status=204,
        errors=(403, 404, 409), scope=ADMINISTRATOR),
)  # fmt: skip
