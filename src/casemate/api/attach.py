"""Attached clients over WebSocket: containers and execs. The frames are described in :mod:`casemate.spec.api`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from casemate.api.frames import CONTROL, STDIN, control
from casemate.api.routing import Call, Project, SocketRow
from casemate.api.scopes import EXEC, IN_QUERY
from casemate.node import attaching, execs
from casemate.node.hub import Client
from casemate.node.signals import exit_reason
from casemate.spec.api import Control
from casemate.spec.errors import CasemateError

#: Frames that are there already are joined up to this size.
JOIN_BYTES = 64 << 10
_CONTROL = msgspec.json.Decoder(Control)
Resize = Callable[[int, int], Awaitable[None]]


class AttachQuery(Project, frozen=True, forbid_unknown_fields=True):
    """Query of an attach: *start* the container once its output is connected; *logs*: what it wrote so far first."""

    stdin: bool = False
    start: bool = False
    logs: bool = False


async def attach_container(socket: WebSocket, call: Call) -> None:
    """``WS /v1/containers/{ref}/attach``."""
    query: AttachQuery = call.query
    session = await attaching.open_session(call.core, call.reference, call.project, call.caller, start=query.start)
    try:
        await socket.accept()
        await socket.send_bytes(control(started=True, warnings=session.warnings))
        if query.logs:
            async for frame in attaching.written_so_far(call.core, session.container):
                await socket.send_bytes(frame)

        async def resize(rows: int, columns: int) -> None:
            await attaching.resize(call.core, session.container, rows, columns)

        if await _relay(socket, session.client, resize, stdin=query.stdin):
            answer = await attaching.ended(call.core, session)
            reason = "" if answer.reason == exit_reason(answer.exit_code) else answer.reason
            await socket.send_bytes(control(exit_code=answer.exit_code, oom_killed=answer.oom_killed, reason=reason))
            await socket.close()
    finally:
        session.client.leave()


async def attach_exec(socket: WebSocket, call: Call) -> None:
    """``WS /v1/exec/{id}/attach``: starts the exec."""
    id_ = call.path["id"]
    client, stdin = await execs.start_attached(call.core, id_, call.caller)
    try:
        await socket.accept()
        await socket.send_bytes(control(started=True))

        async def resize(rows: int, columns: int) -> None:
            await execs.resize(call.core, id_, rows, columns)

        if await _relay(socket, client, resize, stdin=stdin):
            await socket.send_bytes(control(exit_code=await execs.ended(call.core, id_)))
            await socket.close()
    finally:
        client.leave()


async def _relay(socket: WebSocket, client: Client, resize: Resize, *, stdin: bool) -> bool:
    """Pass frames both ways; True when the output came to its end, False when the client went away."""
    try:
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(_take_input(socket, client, resize, stdin=stdin))
            writing = tasks.create_task(_give_output(socket, client))
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
            is_over = writing.done()
            reading.cancel()
            writing.cancel()
    except ExceptionGroup as group:
        raise group.exceptions[0] from group  # ClientTooSlow: told to the client as it is
    return is_over and writing.result()


async def _give_output(socket: WebSocket, client: Client) -> bool:
    try:
        while (frame := await client.get()) is not None:
            for joined in _joined([frame, *client.get_more()]):
                await socket.send_bytes(joined)
    except (WebSocketDisconnect, RuntimeError, OSError):
        return False
    return True


def _joined(frames: list[bytes]) -> list[bytes]:
    """*frames* with neighbours of the same stream made one."""
    result: list[bytearray] = []
    for frame in frames:
        if result and result[-1][0] == frame[0] and len(result[-1]) + len(frame) <= JOIN_BYTES:
            result[-1] += frame[1:]
        else:
            result.append(bytearray(frame))
    return [bytes(frame) for frame in result]


async def _take_input(socket: WebSocket, client: Client, resize: Resize, *, stdin: bool) -> None:
    """Read the client's messages until it goes away."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        data = message.get("bytes")
        if not data:
            continue
        if data[0] == STDIN and stdin:
            if len(data) == 1:
                client.end_input()
            else:
                await client.send(data[1:])
        elif data[0] == CONTROL:
            await _take_control(data[1:], resize)


async def _take_control(data: bytes, resize: Resize) -> None:
    try:
        asked = _CONTROL.decode(data)
    except msgspec.MsgspecError:
        return
    if asked.rows and asked.columns and asked.rows <= 65_535 and asked.columns <= 65_535:
        try:
            await resize(asked.rows, asked.columns)
        except CasemateError:
            return  # the process has no terminal, or has ended: nothing that the client could do


SOCKETS = (
    SocketRow("/v1/containers/{ref}/attach", attach_container, "Attach to a container", AttachQuery, scope=IN_QUERY),
    SocketRow("/v1/exec/{id}/attach", attach_exec, "Start an exec and attach to it", scope=EXEC),
)
