"""uvicorn, as Casemate needs it: the peer of each connection, no polling, no signals of its own."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

from starlette.types import ASGIApp

from casemate.api import http_server
from casemate.api.peer import of_transport
from casemate.spec.settings import Settings

#: Connections at a time; above it the answer is 503.
MAX_CONNECTIONS = 2048
#: One message of a WebSocket: a piece of standard input.
MAX_FRAME_BYTES = 1 << 20
#: How long open requests may take to end when the daemon is told to.
GRACE_S = 2
SOCKET_NAME = "api.sock"


def protocol_class(settings: Settings) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol, with the peer of the connection in ``scope["state"]["peer"]``."""

    class PeerProtocol(http_server.HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # A copy of its own for this connection; uvicorn hands it on when it becomes a WebSocket.
            self.app_state = {**self.app_state, "peer": of_transport(transport, settings)}

    return PeerProtocol


class Server(http_server.Server):
    """A server that waits to be told to end instead of looking ten times a second, and leaves signals alone."""

    def __init__(self, config: http_server.Config) -> None:
        super().__init__(config)
        self._told = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self._told.wait()

    def end(self) -> None:
        self.should_exit = True
        self._told.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def websocket(*arguments: Any, **named: Any) -> asyncio.Protocol:
    """uvicorn's protocol of one WebSocket, imported with the first: it and its libraries take 0.8 MiB."""
    from uvicorn.protocols.websockets.wsproto_impl import WSProtocol  # noqa: PLC0415

    return WSProtocol(*arguments, **named)


def make_server(app: ASGIApp, settings: Settings, **options: Any) -> Server:
    """A server of *app*; *options* are uvicorn's (TLS)."""
    config = http_server.Config(
        app,
        http=protocol_class(settings),
        ws=cast("type[asyncio.Protocol]", websocket),
        loop="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        ws_per_message_deflate=False,
        ws_max_size=MAX_FRAME_BYTES,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=GRACE_S,
        **options,
    )
    return Server(config)


def unix_listener(settings: Settings) -> socket.socket:
    """The API's socket, 0660 for the group; one that a dead daemon left is replaced in one step."""
    path = Path(settings.text("paths.run")) / SOCKET_NAME
    temporary = path.with_name(f".{SOCKET_NAME}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        before = os.umask(0o117)
        try:
            listener.bind(str(temporary))
        finally:
            os.umask(before)
        with contextlib.suppress(KeyError, PermissionError):
            os.chown(temporary, -1, grp.getgrnam(settings.text("daemon.group")).gr_gid)
        listener.listen(512)
        temporary.rename(path)
    except BaseException:
        listener.close()
        raise
    return listener
