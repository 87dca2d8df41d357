"""The server name in the first bytes of a TLS connection. Pure, hostile input: every length is checked, none believed.

Only what stands in the first packet is looked at; a ClientHello may go on in the next, and its name then is shown
when it stands before the cut. Sources: RFC 8446 (4.1.2, 5.1), RFC 6066 (3).
"""

from __future__ import annotations

import re

_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME = 22, 1, 0
#: A DNS name (RFC 6066: ASCII, no trailing dot); what else stands there is not shown.
_NAME = re.compile(rb"[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\Z")
_MAX_NAME_BYTES = 253
#: Real ones have about 20.
_MAX_EXTENSIONS = 64


class _Cut(Exception):
    """The bytes end before the field does."""


class _Reader:
    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data, self._at, self._end = data, at, end

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def take(self, size: int) -> bytes:
        if self._at + size > self._end:
            raise _Cut
        self._at += size
        return self._data[self._at - size : self._at]

    def left(self) -> int:
        return self._end - self._at


def server_name(data: bytes) -> str:
    """The name that the client asks for, in lower case; empty when *data* shows none."""
    try:
        return _server_name(_Reader(data, 0, len(data)))
    except _Cut:
        return ""


def _server_name(reader: _Reader) -> str:
    if reader.number(1) != _HANDSHAKE or reader.number(1) != 3:
        return ""
    reader.take(3)  # minor version, and the record's length: the packet's end is the bound
    if reader.number(1) != _CLIENT_HELLO:
        return ""
    reader.take(3 + 2 + 32)  # length, version, random
    reader.take(reader.number(1))  # session id
    reader.take(reader.number(2))  # cipher suites
    reader.take(reader.number(1))  # compression
    reader.take(2)  # length of all extensions
    for _ in range(_MAX_EXTENSIONS):
        kind, size = reader.number(2), reader.number(2)
        if kind == _SERVER_NAME:
            content = reader.take(size)
            return _first_name(_Reader(content, 0, len(content)))
        reader.take(size)
    return ""


def _first_name(reader: _Reader) -> str:
    reader.take(2)  # length of the list
    if reader.number(1) != 0:  # host_name
        return ""
    name = reader.take(reader.number(2))
    return name.decode("ascii").lower() if len(name) <= _MAX_NAME_BYTES and _NAME.match(name) else ""
