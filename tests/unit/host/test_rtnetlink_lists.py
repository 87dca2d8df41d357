"""A list of interfaces that changes while it is read: read again; what was seen of it where it never holds still."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any, cast

import pytest

from casemate.host.netlink import attribute
from casemate.host.rtnetlink import NetlinkFailed, RouteSocket

_DONE, _NEWLINK, _INTERRUPTED = 3, 16, 0x10


class Kernel:
    """Answers each request with the list that *answer* makes of its number."""

    def __init__(self, answer: Callable[[int], list[tuple[int, int, bytes]]]) -> None:
        self._answer, self._asked = answer, 0
        self._waiting: list[bytes] = []

    def send(self, message: bytes) -> None:
        self._asked += 1
        sequence = struct.unpack_from("=I", message, 8)[0]
        for kind, flags, body in self._answer(self._asked):
            self._waiting.append(struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body)

    def recv(self, _most: int) -> bytes:
        return self._waiting.pop(0)


def socket(answer: Callable[[int], list[tuple[int, int, bytes]]]) -> RouteSocket:
    made = object.__new__(RouteSocket)
    made._socket, made._sequence = cast(Any, Kernel(answer)), 0
    return made


def link(name: str, index: int = 7) -> bytes:
    return (
        struct.pack("=BBHiII", 0, 0, 0, index, 1, 0) + attribute(3, name.encode() + b"\0") + attribute(4, b"\0\0\5\0")
    )


def test_it_is_read_again() -> None:
    def answer(asked: int) -> list[tuple[int, int, bytes]]:
        flags = _INTERRUPTED if asked < 3 else 0
        return [(_NEWLINK, 0, link(f"eth{asked}")), (_NEWLINK, flags, link("more", 8)), (_DONE, flags, b"\0\0\0\0")]

    assert [one.name for one in socket(answer).links()] == ["eth3", "more"]


def test_one_that_never_holds_still_has_what_was_seen_of_it() -> None:
    """hostd starts on a host whose interfaces never stop to come and go."""

    def answer(asked: int) -> list[tuple[int, int, bytes]]:
        body = link("kept", 3) if asked % 2 else link(f"renamed{asked}", 9)
        return [(_NEWLINK, _INTERRUPTED, body), (_DONE, _INTERRUPTED, b"\0\0\0\0")]

    assert [one.name for one in socket(answer).links()] == ["kept", "renamed20"]


def test_a_list_of_routes_that_never_holds_still_is_an_error() -> None:
    with pytest.raises(NetlinkFailed) as caught:
        socket(lambda _: [(_DONE, _INTERRUPTED, b"\0\0\0\0")]).default_route_index()
    assert caught.value.errno == errno.EAGAIN
