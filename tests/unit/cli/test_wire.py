"""HTTP, WebSocket, events and JSON as parsers: what they read, what they refuse, and that garbage is bounded."""

from __future__ import annotations

import json as reference
import os
from urllib.parse import quote, unquote

import pytest
import wsproto
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping

from casemate.cli.commands.logs import frames
from casemate.cli.errors import AnswerInvalid, ConnectionLost
from casemate.cli.wire import http, json, websocket
from casemate.cli.wire.events import read_events


def reader(data: bytes, step: int = 1 << 20) -> http.Reader:
    left = [data]

    def receive(size: int) -> bytes:
        found, left[0] = left[0][: min(size, step)], left[0][min(size, step) :]
        return found

    return http.Reader(receive)


def whole(data: bytes, method: str = "GET", step: int = 1 << 20) -> tuple[http.Head, bytes]:
    found = reader(data, step)
    head = http.read_head(found)
    return head, b"".join(http.read_body(found, head, method))


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_answers_are_read(step: int) -> None:
    head, body = whole(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\nx-a:2\r\n\r\nhello", step=step)
    assert (head.status, body, head.fields["x-a"], head.keeps) == (200, b"hello", "1, 2", True)
    _, body = whole(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n", step=step
    )
    assert body == b"abcde"
    head, body = whole(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\n\r\nuntil the end", step=step)
    assert (body, head.keeps) == (b"until the end", False)
    assert whole(b"HTTP/1.1 204 No\r\n\r\n")[1] == b""
    assert whole(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "HEAD")[1] == b""


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nSpace : x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: x\ny\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 100,
        b"HTTP/1.1 200 OK\r\n" + b"A: x\r\n" * 101 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * (1 << 17) + b"\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9,
        b"x" * (1 << 17),
    ],
)
def test_what_is_not_http_is_refused(data: bytes) -> None:
    with pytest.raises(AnswerInvalid):
        whole(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
)
def test_what_is_cut_off_is_told(data: bytes) -> None:
    with pytest.raises(ConnectionLost):
        whole(data)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda tail: b"HTTP/1.1 200 OK\r\n" + tail)))
def test_garbage_raises_only_our_errors(data: bytes) -> None:
    try:
        whole(data)
    except (AnswerInvalid, ConnectionLost):
        return


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_chunked_garbage_raises_only_our_errors(tail: bytes) -> None:
    try:
        whole(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + tail)
    except (AnswerInvalid, ConnectionLost):
        return


@given(st.text(max_size=40))
def test_quoting_is_that_of_urllib(text: str) -> None:
    assert unquote(http.quote(text)) == text
    assert http.quote(text) == quote(text, safe="/:-._~")
    assert all(character.isascii() and character.isprintable() and character != " " for character in http.quote(text))


def test_accept_is_the_rfcs_example() -> None:
    assert websocket.expected_accept(b"dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=70_000), max_size=4), st.integers(1, 5000))
def test_frames_are_those_of_another_implementation(payloads: list[bytes], step: int) -> None:
    """Ours to wsproto, and wsproto's to ours, cut anywhere."""
    server = Connection(ConnectionType.SERVER)
    for payload in payloads:
        server.receive_data(websocket.encode_frame(websocket.BINARY, payload, os.urandom(4)))
    got, parts = [], []
    for event in server.events():
        assert isinstance(event, BytesMessage)
        parts.append(bytes(event.data))
        if event.message_finished:
            got.append(b"".join(parts))
            parts = []
    assert got == payloads
    sent = b"".join(server.send(BytesMessage(data=payload)) for payload in payloads)
    sent += server.send(Ping(b"x")) + server.send(CloseConnection(1000, "bye"))
    ours = websocket.Frames()
    received = []
    for at in range(0, len(sent), step):
        ours.feed(sent[at : at + step])
        received += ours.messages()
    assert received == [
        *((websocket.BINARY, payload) for payload in payloads),
        (websocket.PING, b"x"),
        (websocket.CLOSE, b"\x03\xe8bye"),
    ]
    assert wsproto


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\x80\0\0\0\0",  # masked
        b"\xc2\x00",  # a reserved bit
        b"\x83\x00",  # an unknown opcode
        b"\x09\x00",  # a fragmented ping
        b"\x89\x7e\x00\x80",  # a long ping
        b"\x80\x00",  # goes on without a beginning
        b"\x02\x00\x02\x00",  # begins within another
        b"\x82\x7f\x00\x00\x00\x01\x00\x00\x00\x00",  # 4 GiB
        b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff",
    ],
)
def test_frames_that_no_server_may_send(data: bytes) -> None:
    found = websocket.Frames(data)
    with pytest.raises(AnswerInvalid):
        found.messages()


def test_fragments_are_joined_and_bounded() -> None:
    found = websocket.Frames(b"\x02\x01a\x89\x00\x00\x01b\x80\x01c")
    assert found.messages() == [(websocket.PING, b""), (websocket.BINARY, b"abc")]
    found = websocket.Frames(b"\x02\x00" + b"\x00\x00" * 5000)
    with pytest.raises(AnswerInvalid):
        found.messages()


@settings(max_examples=400, deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=6))
def test_frame_garbage_raises_only_our_error(pieces: list[bytes]) -> None:
    found = websocket.Frames()
    try:
        for piece in pieces:
            found.feed(piece)
            for opcode, payload in found.messages():
                assert opcode in (1, 2, 8, 9, 10)
                assert isinstance(payload, bytes)
    except AnswerInvalid:
        return


@given(st.binary(max_size=100), st.binary(min_size=4, max_size=4))
def test_masking(payload: bytes, mask: bytes) -> None:
    wanted = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    assert websocket.masked(payload, mask) == wanted


def test_events_are_read() -> None:
    text = b': keep-alive\n\nid: 1\nevent: progress\ndata: {"a":1}\n\nevent: end\r\ndata: [2]\r\n\r\n'
    text += b'data:{"x":\ndata: 3}\n\nevent: none\n\n'
    for step in (1, 7, 1000):
        pieces = [text[at : at + step] for at in range(0, len(text), step)]
        assert list(read_events(pieces)) == [("progress", {"a": 1}), ("end", [2]), ("message", {"x": 3})]
    with pytest.raises(AnswerInvalid):
        list(read_events([b"x" * (1 << 20)] * 9))
    with pytest.raises(AnswerInvalid):
        list(read_events([b"data: {\n\n"]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=5))
def test_event_garbage_raises_only_our_error(pieces: list[bytes]) -> None:
    try:
        list(read_events(pieces))
    except AnswerInvalid:
        return


def test_log_frames() -> None:
    data = b"\x01\0\0\0\0\0\0\x03abc\x02\0\0\0\0\0\0\x00\x02\0\0\0\0\0\0\x01x"
    for step in (1, 5, 100):
        assert list(frames(data[at : at + step] for at in range(0, len(data), step))) == [
            (1, b"abc"),
            (2, b""),
            (2, b"x"),
        ]
    for bad in (b"\x03\0\0\0\0\0\0\0", b"\x01\0\1\0\0\0\0\0", b"\x01\0\0\0\xff\0\0\0", b"\x01\0\0", data[:-1]):
        with pytest.raises(AnswerInvalid):
            list(frames([bad]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=5))
def test_log_garbage_raises_only_our_error(pieces: list[bytes]) -> None:
    try:
        list(frames(pieces))
    except AnswerInvalid:
        return


values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=10,
)


@given(values)
def test_json_is_that_of_json(value: object) -> None:
    assert json.loads(reference.dumps(value)) == value
    assert reference.loads(json.dumps(value)) == value
    assert reference.loads(json.indented(value)) == value


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"nul", b"[1,]", b"{} x", b"\xff", b'"\\ud8"', b"[" * 200_000, b"1" * 5000, b"NaN", b'{"a":Infinity}'],
)
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(AnswerInvalid):
        json.loads(data)


@given(st.text(max_size=40))
def test_json_garbage_raises_only_our_error(text: str) -> None:
    try:
        json.loads(text)
    except AnswerInvalid:
        return
