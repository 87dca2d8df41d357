"""The OpenAPI 3.1 document, generated from the table of routes and the values of :mod:`casemate.spec.api`."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

import msgspec

from casemate import __version__
from casemate.api.routing import PROBLEM_TYPE, Row, SocketRow
from casemate.spec import api as schema

_REF = "#/components/schemas/{name}"
_DESCRIPTION = (
    "The API of Casemate. On the unix socket a caller is root or a member of the group casemate; over TLS a client "
    "certificate is needed. Unknown fields and parameters are refused. Errors are RFC 9457 problems."
)
_ALWAYS = (400, 403, 404, 405, 500, 503)
_PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457, with a stable code, a remedy, and a trace id that the journal has too.",
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "remedy": {"type": "string"},
        "retryable": {"type": "boolean"},
        "exit_code": {"type": "integer"},
        "facts": {"type": "object"},
        "trace_id": {"type": "string"},
    },
    "required": ["title", "status", "code", "trace_id"],
}


def document(rows: tuple[Row, ...], sockets: tuple[SocketRow, ...]) -> dict[str, Any]:
    """The whole document."""
    bodies = [row.body for row in rows if row.body is not None]
    answers = [row.answer for row in rows if isinstance(row.answer, type)]
    others = [schema.Control, schema.EventRow, schema.Progress, schema.PathStat]
    kinds = list(dict.fromkeys([*bodies, *answers, *others]))
    _, components = msgspec.json.schema_components(kinds, ref_template=_REF, schema_hook=_any)
    components["Problem"] = _PROBLEM
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row)
    for socket in sockets:
        paths.setdefault(socket.path, {})["get"] = _socket(socket)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Casemate",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "unix:///run/casemate/api.sock"}],
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": dict(sorted((k, _python_patterns(v)) for k, v in components.items()))},
    }


def _any(kind: type) -> dict[str, Any]:
    """``object`` stands for any JSON value."""
    if kind is object:
        return {"description": "Any JSON value."}
    raise NotImplementedError(kind)


def _operation(row: Row) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": row.summary,
        "operationId": f"{row.method.lower()}_{re.sub(r'[^a-z]+', '_', row.path.removeprefix('/v1/')).strip('_')}",
        "tags": [row.path.removeprefix("/v1").split("/")[1]],
        "description": f"Where projects have operators, it is open to {row.scope.says}",
        "x-casemate-scope": row.scope.name,
        "parameters": [*_path_parameters(row.path), *_query_parameters(row.query)],
        "responses": _responses(row),
    }
    if row.body is not None:
        reference = {"$ref": _REF.format(name=row.body.__name__)}
        operation["requestBody"] = {
            "required": not row.optional_body,
            "content": {"application/json": {"schema": reference}},
        }
    elif row.stream_body:
        operation["requestBody"] = {"required": True, "content": {row.stream_body: {}}}
    return operation


def _socket(row: SocketRow) -> dict[str, Any]:
    responses: dict[str, Any] = {"101": {"description": "A WebSocket; its frames are described at Control."}}
    responses |= {str(status): _problem(status) for status in (400, 403, 404, 409, 500, 503)}
    return {
        "summary": row.summary,
        "operationId": f"socket_{re.sub(r'[^a-z]+', '_', row.path.removeprefix('/v1/')).strip('_')}",
        "tags": [row.path.removeprefix("/v1").split("/")[1]],
        "description": f"Where projects have operators, it is open to {row.scope.says}",
        "x-casemate-scope": row.scope.name,
        "parameters": [*_path_parameters(row.path), *_query_parameters(row.query)],
        "responses": responses,
    }


def _responses(row: Row) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(row.status).phrase}
    if isinstance(row.answer, str):
        answer["content"] = {row.answer: {}}
        if row.query.__name__ == "StatsQuery":
            answer["content"]["text/event-stream"] = {}
    elif row.answer is not None:
        answer["content"] = {"application/json": {"schema": {"$ref": _REF.format(name=row.answer.__name__)}}}
        if row.path == "/v1/stats":
            answer["content"]["text/event-stream"] = {}
    responses = {str(row.status): answer}
    statuses = {*_ALWAYS, *row.errors, *((404,) if "{" in row.path else ()), *((413,) if row.body else ())}
    # What hostd refuses comes through: a conflict, a thing that is not there, a host that lacks something.
    statuses |= {404, 409, 501, 504, 507} if row.method != "GET" else {409, 501, 504}
    for status in sorted(statuses):
        responses.setdefault(str(status), _problem(status))
    return responses


def _problem(status: int) -> dict[str, Any]:
    reference = {"$ref": _REF.format(name="Problem")}
    return {"description": HTTPStatus(status).phrase, "content": {PROBLEM_TYPE: {"schema": reference}}}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", path)
    ]


def _query_parameters(kind: type[msgspec.Struct]) -> list[dict[str, Any]]:
    described = msgspec.json.schema(kind)
    own = described["$defs"][kind.__name__]
    required = own.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _python_patterns(value)}
        for name, value in own["properties"].items()
    ]


def _python_patterns(value: Any) -> Any:
    r"""*value* with Python's ``\A`` and ``\Z`` in patterns as JSON Schema (ECMA 262) writes them."""
    if isinstance(value, dict):
        return {
            key: item.replace(r"\A", "^").replace(r"\Z", "$") if key == "pattern" and isinstance(item, str)
            else _python_patterns(item)
            for key, item in value.items()
        }  # fmt: skip
    if isinstance(value, list):
        return [_python_patterns(item) for item in value]
    return value
