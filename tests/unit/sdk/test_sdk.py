"""The SDK's own parts: frames of a WebSocket, and what an attach makes of them."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading

import pytest

from casemate.sdk import ApiAway, ApiBroken, ApiError, Client, Transport
from casemate.sdk.attach import Attached
from casemate.sdk.websocket import WebSocket
from casemate.spec.errors import Unavailable


class Pair(Transport):
    """A transport whose other end is this test."""

    def __init__(self) -> None:
        super().__init__()
        self.ours, self.theirs = socket.socketpair()

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("x")
        connection.sock = self.ours
        return connection


def shake_hands(theirs: socket.socket) -> None:
    import base64  # noqa: PLC0415
    import hashlib  # noqa: PLC0415

    head = theirs.recv(4096).decode()
    key = head.partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
    accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()
    theirs.sendall(f"HTTP/1.1 101 X\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode())


def connected() -> tuple[WebSocket, socket.socket]:
    pair = Pair()
    thread = threading.Thread(target=shake_hands, args=(pair.theirs,))
    thread.start()
    websocket = WebSocket(pair, "/x")
    thread.join()
    return websocket, pair.theirs


def frame(payload: bytes, opcode: int = 2, *, final: bool = True) -> bytes:
    head = (0x80 if final else 0) | opcode
    if len(payload) < 126:
        return struct.pack(">BB", head, len(payload)) + payload
    return struct.pack(">BBH", head, 126, len(payload)) + payload


def test_an_attach_collects_and_knows_the_end() -> None:
    websocket, theirs = connected()
    theirs.sendall(frame(b"\x03" + b'{"started":true}') + frame(b"\x01out") + frame(b"\x01a", 2, final=False))
    theirs.sendall(frame(b"b", 0) + frame(b"p", 9) + frame(b"\x02" + b"e" * 500) + frame(b"\x03" + b'{"exit_code":7}'))
    with Attached(websocket) as attached, theirs:
        assert attached.communicate() == (7, b"outab", b"e" * 500)


def test_a_problem_in_the_stream_is_raised() -> None:
    websocket, theirs = connected()
    theirs.sendall(frame(b"\x03" + json.dumps({"problem": {"code": "attach.too_slow", "status": 409}}).encode()))
    with Attached(websocket) as attached, theirs, pytest.raises(ApiError) as error:
        attached.communicate()
    assert error.value.problem_code == "attach.too_slow"


def test_a_connection_that_ends_early_is_told() -> None:
    websocket, theirs = connected()
    theirs.close()
    with Attached(websocket) as attached, pytest.raises(ApiAway):
        attached.communicate()


def test_masked_or_huge_frames_of_a_server_are_refused() -> None:
    for bad in (b"\x82\x81abcd1", struct.pack(">BBQ", 0x82, 127, 1 << 40)):
        websocket, theirs = connected()
        theirs.sendall(bad)
        with theirs, pytest.raises(ApiBroken):
            websocket.receive()
        websocket.close()


def test_a_refusal_in_place_of_a_websocket_is_the_problem() -> None:
    pair = Pair()
    body = b'{"code":"container.not_found","status":404,"detail":"x"}'
    pair.theirs.sendall(b"HTTP/1.1 404 X\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
    with pair.theirs, pytest.raises(ApiError) as error:
        WebSocket(pair, "/x")
    assert error.value.problem_code == "container.not_found"


def test_no_daemon(tmp_path: object) -> None:
    with pytest.raises(Unavailable) as error:
        Client(Transport(f"{tmp_path}/none.sock")).version()
    assert isinstance(error.value, ApiAway)
    assert error.value.retryable


def test_an_answer_that_breaks_off_is_told() -> None:
    for ask in (lambda pair: pair.ask("GET", "/x"), lambda pair: list(pair.stream("GET", "/x"))):
        pair = Pair()
        pair.theirs.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        pair.theirs.shutdown(socket.SHUT_WR)
        with pair.theirs, pytest.raises(ApiAway, match="broke off"):
            ask(pair)
