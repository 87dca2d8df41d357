"""The few calls of Kubernetes' container runtime interface (CRI, runtime.v1) that the tests make.

gRPC is a POST over HTTP/2 with a length before the message, which curl speaks; the messages are encoded by hand, since
no client library is at hand. Field numbers: k8s.io/cri-api, pkg/apis/runtime/v1/api.proto. A test's tool, no client.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
from pathlib import Path

Fields = dict[int, list[int | bytes]]


def _varint(number: int) -> bytes:
    out = bytearray()
    while True:
        out.append(number & 127 | (128 if number > 127 else 0))
        number >>= 7
        if not number:
            return bytes(out)


def field(number: int, value: int | str | bytes) -> bytes:
    """One field: a number, or a text, or a message that is encoded already."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def parse(data: bytes) -> Fields:
    """The fields of a message by number: varints and byte strings are all that CRI's answers hold."""
    found: Fields = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if not byte & 128:
                return value

    while at < len(data):
        key = varint()
        value: int | bytes
        if key & 7 == 0:
            value = varint()
        else:
            assert key & 7 == 2
            size = varint()
            value = data[at : at + size]
            at += size
        found.setdefault(key >> 3, []).append(value)
    return found


def text(fields: Fields, number: int) -> str:
    value = fields.get(number, [b""])[0]
    assert isinstance(value, bytes)
    return value.decode()


def call(socket: Path, method: str, body: bytes = b"") -> Fields:
    """``runtime.v1.<method>``; AssertionError with the server's words."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "in").write_bytes(b"\0" + struct.pack(">I", len(body)) + body)
        words = ["curl", "-sS", "--http2-prior-knowledge", "--unix-socket", str(socket)]
        words += ["-H", "content-type: application/grpc", "--data-binary", f"@{place}/in"]
        words += ["-o", str(place / "out"), "-D", str(place / "head"), f"http://localhost/runtime.v1.{method}"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
        head = (place / "head").read_text() if (place / "head").exists() else ""
        lines = [line.strip() for line in head.splitlines() if line.lower().startswith("grpc-")]
        assert "grpc-status: 0" in lines, (method, lines, done.stderr)
        return parse((place / "out").read_bytes()[5:])
