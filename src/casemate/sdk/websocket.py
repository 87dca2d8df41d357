"""A WebSocket client (RFC 6455), as much of it as an attach needs: binary messages, ping, close. Blocking."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import socket
import struct
from typing import Any

from casemate.sdk.errors import ApiAway, ApiBroken, ApiError
from casemate.sdk.transport import Transport

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_BINARY, _CLOSE, _PING, _PONG = 2, 8, 9, 10
MAX_HEAD_BYTES = 64 << 10
MAX_MESSAGE_BYTES = 16 << 20


class WebSocket:
    """A connected WebSocket."""

    def __init__(self, transport: Transport, target: str) -> None:
        connection = transport.connect()
        assert connection.sock is not None
        self._socket: socket.socket = connection.sock
        self._data = b""
        try:
            self._shake_hands(target)
        except BaseException:
            self._socket.close()
            raise

    def send(self, message: bytes) -> None:
        """One binary message."""
        self._send_frame(_BINARY, message)

    def receive(self) -> bytes | None:
        """The next binary message; None when the server has closed."""
        message = b""
        while True:
            first, second = self._take(2)
            final, opcode = first & 0x80, first & 0x0F
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack(">H", self._take(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self._take(8))
            if second & 0x80 or length + len(message) > MAX_MESSAGE_BYTES:
                raise ApiBroken("a frame of the server is masked or too long")
            payload = self._take(length)
            if opcode == _CLOSE:
                self._send_frame(_CLOSE, payload[:2])
                return None
            if opcode == _PING:
                self._send_frame(_PONG, payload)
            elif opcode in (0, 1, _BINARY):
                message += payload
                if final:
                    return message

    def close(self) -> None:
        """Say goodbye and close; may be called twice."""
        with contextlib.suppress(OSError, ApiAway):
            self._send_frame(_CLOSE, struct.pack(">H", 1000))
        self._socket.close()

    def _shake_hands(self, target: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {target} HTTP/1.1\r\nHost: casemate\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self._data:
            if len(self._data) > MAX_HEAD_BYTES:
                raise ApiBroken("the answer's head is too long")
            self._fill()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if status != 101:
            raise self._refused(status, headers)
        accept = base64.b64encode(hashlib.sha1(f"{key}{_GUID}".encode()).digest()).decode()  # noqa: S324 - RFC 6455
        if headers.get("sec-websocket-accept") != accept:
            raise ApiBroken("the WebSocket's handshake is wrong")

    def _refused(self, status: int, headers: dict[str, str]) -> ApiError:
        """The problem that stands in place of a WebSocket: its body ends with its length, or with the connection."""
        length = int(headers.get("content-length", "-1"))
        while len(self._data) < MAX_HEAD_BYTES and (length < 0 or len(self._data) < length):
            try:
                self._fill()
            except ApiAway:
                break
        start, end = self._data.find(b"{"), self._data.rfind(b"}")
        try:
            problem: Any = json.loads(self._data[start : end + 1])
        except ValueError:
            problem = {"detail": f"HTTP {status}", "code": "internal", "status": status}
        return ApiError(problem, status)

    def _send_frame(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        length = len(payload)
        if length < 126:
            head = struct.pack(">BB", 0x80 | opcode, 0x80 | length)
        elif length < 1 << 16:
            head = struct.pack(">BBH", 0x80 | opcode, 0x80 | 126, length)
        else:
            head = struct.pack(">BBQ", 0x80 | opcode, 0x80 | 127, length)
        repeated = (mask * (length // 4 + 1))[:length]
        masked = (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(length, "big")
        try:
            self._socket.sendall(head + mask + masked)
        except OSError as error:
            raise ApiAway(f"the connection is lost: {error}") from error

    def _take(self, length: int) -> bytes:
        while len(self._data) < length:
            self._fill()
        taken, self._data = self._data[:length], self._data[length:]
        return taken

    def _fill(self) -> None:
        try:
            data = self._socket.recv(256 << 10)
        except OSError as error:
            raise ApiAway(f"the connection is lost: {error}") from error
        if not data:
            raise ApiAway("the server closed the connection")
        self._data += data
