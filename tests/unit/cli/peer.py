"""A small server that speaks the API's contract on a unix socket: HTTP/1.1 with keep-alive, streams, WebSockets.

It is scripted by a test: routes answer values, bytes, or run a function with the connection. It records each request.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Request:
    method: str
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None

    def params(self) -> dict[str, str]:
        return dict(self.query)


@dataclass
class Reply:
    """What a route answers: *value* as JSON, or *body* (bytes, or pieces that go out as chunks)."""

    status: int = 200
    value: Any = None
    body: bytes | list[bytes] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    close: bool = False


def problem(status: int, code: str, detail: str, exit_code: int = 125, remedy: str = "do this") -> Reply:
    document = {
        "code": code,
        "status": status,
        "detail": detail,
        "exit_code": exit_code,
        "remedy": remedy,
        "title": "T",
    }
    return Reply(status, document, headers={"Content-Type": "application/problem+json"})


class WebSocket:
    """The server's side of a WebSocket: whole messages out, whole messages in."""

    def __init__(self, connection: socket.socket, first: bytes) -> None:
        self.connection = connection
        self.buffer = first

    def send(self, payload: bytes, opcode: int = 2, final: bool = True) -> None:
        size = len(payload)
        head = bytes([(0x80 if final else 0) | opcode])
        if size < 126:
            head += bytes([size])
        elif size < 1 << 16:
            head += bytes([126]) + struct.pack(">H", size)
        else:
            head += bytes([127]) + struct.pack(">Q", size)
        self.connection.sendall(head + payload)

    def output(self, data: bytes, stream: int = 1) -> None:
        self.send(bytes([stream]) + data)

    def control(self, **members: Any) -> None:
        self.send(b"\x03" + json.dumps(members).encode())

    def _exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            data = self.connection.recv(65536)
            if not data:
                raise EOFError
            self.buffer += data
        found, self.buffer = self.buffer[:count], self.buffer[count:]
        return found

    def receive(self) -> tuple[int, bytes]:
        """The next frame: opcode and unmasked payload. Raises EOFError at the end."""
        first, second = self._exactly(2)
        assert second & 0x80, "a client must mask"
        assert first & 0x80
        size = second & 0x7F
        if size == 126:
            size = struct.unpack(">H", self._exactly(2))[0]
        elif size == 127:
            size = struct.unpack(">Q", self._exactly(8))[0]
        mask = self._exactly(4)
        payload = self._exactly(size)
        return first & 0x0F, bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


Route = Reply | Callable[[Request], Reply] | Callable[[Request, WebSocket], None]


class Peer:
    """``peer.on("GET", "/v1/x", Reply(...))``; ``peer.websocket("/v1/y", function)``; ``peer.requests``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.host = f"unix://{path}"
        self.requests: list[Request] = []
        self.connections = 0
        self.routes: dict[tuple[str, str], Any] = {}
        self.sockets: dict[str, Any] = {}
        self.failures: list[BaseException] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def on(self, method: str, path: str, reply: Any) -> None:
        self.routes[(method, path)] = reply

    def websocket(self, path: str, serve: Callable[[Request, WebSocket], None]) -> None:
        self.sockets[path] = serve

    def asked(self, method: str, path: str) -> list[Request]:
        return [request for request in self.requests if (request.method, request.path) == (method, path)]

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            buffer = b""
            while True:
                request, buffer = _read_request(connection, buffer)
                self.requests.append(request)
                if request.headers.get("upgrade") == "websocket" and request.path in self.sockets:
                    _accept_websocket(connection, request)
                    self.sockets[request.path](request, WebSocket(connection, buffer))
                    connection.close()
                    return
                route = self.routes.get((request.method, request.path))
                reply = route(request) if callable(route) else route
                if reply is None:
                    reply = problem(404, "object.not_found", f"no {request.method} {request.path}")
                _write_reply(connection, request, reply)
                if reply.close:
                    connection.close()
                    return
        except (OSError, EOFError, ValueError):
            return
        except BaseException as error:
            self.failures.append(error)
            raise


def _read_request(connection: socket.socket, buffer: bytes) -> tuple[Request, bytes]:
    def more() -> bytes:
        data = connection.recv(65536)
        if not data:
            raise EOFError
        return data

    while b"\r\n\r\n" not in buffer:
        buffer += more()
    head, buffer = buffer.split(b"\r\n\r\n", 1)
    first, *lines = head.decode("ascii").split("\r\n")
    method, target, version = first.split(" ")
    assert version == "HTTP/1.1"
    headers = {line.split(": ", 1)[0].lower(): line.split(": ", 1)[1] for line in lines}
    assert headers["host"] == "casemate"
    parts = urlsplit(target)
    request = Request(method, parts.path, parse_qsl(parts.query, keep_blank_values=True), headers)
    if headers.get("transfer-encoding") == "chunked":
        while True:
            while b"\r\n" not in buffer:
                buffer += more()
            line, buffer = buffer.split(b"\r\n", 1)
            size = int(line, 16)
            while len(buffer) < size + 2:
                buffer += more()
            request.body += buffer[:size]
            assert buffer[size : size + 2] == b"\r\n"
            buffer = buffer[size + 2 :]
            if not size:
                return request, buffer
    length = int(headers.get("content-length", "0"))
    while len(buffer) < length:
        buffer += more()
    request.body = buffer[:length]
    return request, buffer[length:]


def _write_reply(connection: socket.socket, request: Request, reply: Reply) -> None:
    headers = dict(reply.headers)
    body = reply.body
    if body is None:
        body = b"" if reply.value is None else json.dumps(reply.value).encode()
        headers.setdefault("Content-Type", "application/json")
    if reply.close:
        headers["Connection"] = "close"
    if isinstance(body, bytes) and request.method != "HEAD" and reply.status != 204:
        headers["Content-Length"] = str(len(body))
    elif isinstance(body, list):
        headers["Transfer-Encoding"] = "chunked"
    lines = [f"HTTP/1.1 {reply.status} X", *(f"{name}: {text}" for name, text in headers.items()), "", ""]
    connection.sendall("\r\n".join(lines).encode())
    if request.method == "HEAD" or reply.status == 204:
        return
    if isinstance(body, bytes):
        connection.sendall(body)
        return
    for piece in body:
        if piece:
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
    connection.sendall(b"0\r\n\r\n")


def _accept_websocket(connection: socket.socket, request: Request) -> None:
    key = request.headers["sec-websocket-key"]
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )


def events(*pairs: tuple[str, Any]) -> Reply:
    """A stream of server-sent events."""
    pieces = [b": hello\n\n"]
    pieces += [
        f"id: {number}\nevent: {name}\ndata: {json.dumps(value)}\n\n".encode()
        for number, (name, value) in enumerate(pairs, 1)
    ]
    return Reply(body=pieces, headers={"Content-Type": "text/event-stream"})
