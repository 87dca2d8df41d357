"""The table of routes: from one row come the ASGI route, the checks of a request, and the OpenAPI document.

A handler takes a :class:`Call` and answers a value (sent as JSON), None (204), or a Starlette response for streams.
Path, query and body are checked against the row's types before it is called.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from casemate.api.errors import BodyInvalid, BodyTooLarge, Ending, MethodRefused, PeerRefused, RouteMissing
from casemate.api.frames import control
from casemate.api.peer import Peer
from casemate.node.core import Caller, Core
from casemate.node.errors import AdministratorNeeded, ProjectDenied
from casemate.spec.errors import CasemateError

if TYPE_CHECKING:
    from casemate.api.scopes import RouteScope
    from casemate.node.node import Node

#: A request is a specification, not content: 1 MiB holds a command line of ARG_MAX's usual use with room.
MAX_BODY_BYTES = 1 << 20
T = TypeVar("T")
PROBLEM_TYPE = "application/problem+json"


class Project(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Query of the routes that only take the project."""

    project: str = "default"


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Query of the routes that take none."""


@dataclass(slots=True)
class Call:
    """One request, checked: *body* and *query* are of the route's types."""

    node: Node
    caller: Caller
    peer: Peer
    path: Mapping[str, str]
    query: Any
    body: Any
    request: Request | None = None

    @property
    def core(self) -> Core:
        return self.node.core

    @property
    def reference(self) -> str:
        return self.path["ref"]

    async def until_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of a long wait, given up when the client goes away or the daemon ends."""

        async def settled() -> T | CasemateError:
            try:
                return await work
            except CasemateError as error:
                return error  # out of the group it would come as an ExceptionGroup, and be answered as unforeseen

        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(settled())
            gone = tasks.create_task(self._gone())
            await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            waiting.cancel()
        if waiting.cancelled():
            raise Ending("the daemon ends, or the client went away")
        result = waiting.result()
        if isinstance(result, CasemateError):
            raise result
        return result

    async def _gone(self) -> None:
        async def disconnected() -> None:
            assert self.request is not None
            while (await self.request.receive())["type"] != "http.disconnect":
                pass

        async with asyncio.TaskGroup() as tasks:
            both = [tasks.create_task(disconnected()), tasks.create_task(self.node.ending.wait())]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in both:
                task.cancel()

    @property
    def project(self) -> str:
        return str(self.query.project)


Handler = Callable[[Call], Awaitable[Any]]
SocketHandler = Callable[[WebSocket, Call], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Row:
    """One route. *answer* is a type, or a media type for a stream; *status* that of success.

    *scope* says whose the route is where projects have operators, and is looked at before *handler* is called.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    scope: RouteScope = field(kw_only=True)
    query: type[msgspec.Struct] = Project
    body: type[msgspec.Struct] | None = None
    answer: Any = None
    status: int = 200
    optional_body: bool = False
    #: Media type of a body that the handler reads itself, piece by piece.
    stream_body: str = ""
    errors: tuple[int, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class SocketRow:
    """One WebSocket route."""

    path: str
    handler: SocketHandler
    summary: str
    scope: RouteScope = field(kw_only=True)
    query: type[msgspec.Struct] = Project


def application(rows: tuple[Row, ...], sockets: tuple[SocketRow, ...], node: Node) -> ASGIApp:
    """The ASGI application of the table."""
    by_path: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_path.setdefault(row.path, {})[row.method] = row
    routes: list[BaseRoute] = [Route(path, endpoint=_Endpoint(methods, node)) for path, methods in by_path.items()]
    routes += [WebSocketRoute(row.path, endpoint=_SocketEndpoint(row, node)) for row in sockets]
    return Router(routes=routes, redirect_slashes=False, default=_no_route)


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:
    error = RouteMissing(f"{scope.get('path', '')[:200]} is no path of the API")
    await problem_response(error)(scope, receive, send)


class _Endpoint:
    """The methods of one path, as an ASGI application."""

    def __init__(self, methods: dict[str, Row], node: Node) -> None:
        self._methods = methods
        self._node = node

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except ClientDisconnect:
            return
        except Exception as error:  # the edge: nothing may leave the API but a problem document
            await _note_refusal(self._node, scope, request.method, error)
            response = problem_response(error)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        row = self._methods.get(request.method)
        if row is None:
            allowed = ", ".join(sorted(self._methods))
            response = problem_response(MethodRefused(f"{request.method} {request.url.path}: {allowed} are allowed"))
            response.headers["allow"] = allowed
            return response
        peer = check_peer(request.scope)
        query = decode_query(request.query_params.multi_items(), row.query)
        body = await _read_body(request, row) if row.body is not None else None
        call = Call(self._node, peer.caller(), peer, request.path_params, query, body, request)
        if call.caller.projects is not None:
            await row.scope.check(call)
        answer = await row.handler(call)
        if isinstance(answer, Response):
            return answer
        if answer is None:
            return Response(status_code=204)
        return json_response(answer, row.status)


class _SocketEndpoint:
    """One WebSocket route as an ASGI application; what fails before it is accepted is answered over HTTP."""

    def __init__(self, row: SocketRow, node: Node) -> None:
        self._row = row
        self._node = node

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = WebSocket(scope, receive, send)
        try:
            peer = check_peer(scope)
            query = decode_query(socket.query_params.multi_items(), self._row.query)
            call = Call(self._node, peer.caller(), peer, socket.path_params, query, None)
            if call.caller.projects is not None:
                await self._row.scope.check(call)
            await self._row.handler(socket, call)
        except WebSocketDisconnect:
            return
        except Exception as error:
            await _note_refusal(self._node, scope, "GET", error)
            if socket.application_state.name == "CONNECTING":
                await socket.send_denial_response(problem_response(error))
            elif socket.application_state.name == "CONNECTED":
                await socket.send_bytes(control(problem=problem_of(error)))
                await socket.close()


async def _note_refusal(node: Node, scope: Scope, method: str, error: Exception) -> None:
    """On the audit log, where *error* is what the rights of projects say."""
    peer = scope["state"].get("peer")
    if isinstance(error, ProjectDenied | AdministratorNeeded) and isinstance(peer, Peer):
        await node.refusals.note(peer.caller().who, f"{method} {scope['path']}", error.code)


def check_peer(scope: Scope) -> Peer:
    """The peer of the connection; raises :class:`PeerRefused`."""
    peer = scope["state"].get("peer")
    if not isinstance(peer, Peer) or not peer.allowed:
        name = peer.name if isinstance(peer, Peer) else "unknown"
        raise PeerRefused(f"user {name} is neither root nor in the group of the daemon")
    return peer


def decode_query(items: list[tuple[str, str]], kind: type[msgspec.Struct]) -> msgspec.Struct:
    """The query string as a *kind*; a field that is a tuple may be repeated. Raises :class:`BodyInvalid`."""
    if len(items) > 256:
        raise BodyInvalid(f"the query has {len(items)} parameters, 256 are allowed")
    many = {f.name for f in msgspec.structs.fields(kind) if "tuple" in str(f.type)}
    values: dict[str, Any] = {}
    for key, value in items:
        if key in many:
            values.setdefault(key, []).append(value)
        elif key in values:
            raise BodyInvalid(f"parameter {key[:80]!r} stands twice")
        else:
            # ?follow and ?follow= both mean yes, as people type them.
            values[key] = value if value or kind.__annotations__.get(key) != "bool" else "true"
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise BodyInvalid(f"query: {error}") from error


async def _read_body(request: Request, row: Row) -> msgspec.Struct:
    assert row.body is not None
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"the body is longer than {MAX_BODY_BYTES} bytes", limit=MAX_BODY_BYTES)
    if not data and row.optional_body:
        return row.body()
    try:
        return msgspec.json.decode(data, type=row.body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BodyInvalid(f"body: {error}") from error


def json_response(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def problem_of(error: BaseException) -> dict[str, object]:
    """The problem document of *error*; what is unknown is told by its trace id alone, its text goes to the journal."""
    trace_id = secrets.token_hex(8)
    if isinstance(error, CasemateError) and type(error) is not CasemateError:
        return {**error.to_problem(), "trace_id": trace_id}
    text = "".join(traceback.format_exception(error, limit=30))
    sys.stderr.write(f"casemated: trace {trace_id}: {text}")
    sys.stderr.flush()
    root = CasemateError("an error that Casemate did not expect")
    return {**root.to_problem(), "trace_id": trace_id}


def problem_response(error: BaseException) -> Response:
    """*error* as an RFC 9457 answer."""
    problem = problem_of(error)
    status = problem.get("status", 500)
    code = status if isinstance(status, int) and 400 <= status <= 599 else 500
    return Response(msgspec.json.encode(problem), code, media_type=PROBLEM_TYPE)
