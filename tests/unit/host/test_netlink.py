"""The netlink codec against what a kernel would never, and an attacker could not, but a bug might send."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from casemate.host import netlink, route_messages, rtnetlink


def test_attributes_are_padded_and_read_back() -> None:
    data = netlink.attribute(3, b"abc\0\0") + netlink.attribute(4, struct.pack("=I", 1500))
    assert len(data) % 4 == 0
    assert list(netlink.attributes(data)) == [(3, b"abc\0\0"), (4, struct.pack("=I", 1500))]


@pytest.mark.parametrize("data", [b"\3\0\1\0", b"\0\0\0\0", b"\xff\0\1\0abcd"])
def test_a_length_that_cannot_be_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="netlink attribute"):
        list(netlink.attributes(data))


@pytest.mark.parametrize("text", ["aa:bb", "zz:00:00:00:00:00", ""])
def test_a_hardware_address_has_six_bytes(text: str) -> None:
    with pytest.raises(ValueError, match=r"hex|hardware address"):
        route_messages.mac_bytes(text)


def test_an_error_names_the_errno() -> None:
    error = rtnetlink.NetlinkFailed("adding x", 17, "File exists")
    assert "EEXIST" in error.detail
    assert error.facts == {"errno": "EEXIST"}


def test_a_list_that_changed_while_it_was_told_is_asked_for_again() -> None:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    route = rtnetlink.RouteSocket()
    route._socket.close()
    route._socket = ours
    with kernel, route:

        def done(sequence: int, flags: int) -> bytes:
            return struct.pack("=IHHIIi", 20, 3, flags, sequence, 0, 0)

        interrupted, multi = 0x10, 2
        kernel.send(done(1, interrupted | multi))
        # What is left of the first list is no part of the second.
        kernel.send(struct.pack("=IHHII", 20, 16, multi, 1, 0) + bytes(4))
        kernel.send(done(2, multi))
        assert route.links() == []
        for sequence in range(3, 200):
            kernel.send(done(sequence, interrupted | multi))
        with pytest.raises(rtnetlink.NetlinkFailed) as failed:
            route.default_route_index()
        assert failed.value.errno == errno.EAGAIN


def _ack(sequence: int, number: int = 0) -> bytes:
    return struct.pack("=IHHIIi", 36, 2, 0, sequence, 0, -number) + bytes(16)


@pytest.fixture
def talk() -> Iterator[tuple[rtnetlink.RouteSocket, socket.socket]]:
    """A socket, and the kernel's end of it."""
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    route = rtnetlink.RouteSocket()
    route._socket.close()
    route._socket = ours
    with kernel, route:
        yield route, kernel


def test_messages_sent_at_once_are_answered_each_for_itself(talk: tuple[rtnetlink.RouteSocket, socket.socket]) -> None:
    route, kernel = talk
    answer = struct.pack("=IHHII", 20, 16, 0, 2, 0) + b"body"
    for data in (_ack(99), _ack(1) + answer + _ack(2), _ack(3)):
        kernel.send(data)
    assert route.run(*map(route_messages.up, (7, 8, 9))) == [[], [b"body"], []]
    sent = kernel.recv(4096)
    assert [struct.unpack_from("=IHHI", sent, at) for at in (0, 32, 64)] == [(32, 16, 5, one) for one in (1, 2, 3)]
    assert len(sent) == 96


def test_the_first_message_that_was_refused_is_named_and_all_answers_are_taken(
    talk: tuple[rtnetlink.RouteSocket, socket.socket],
) -> None:
    route, kernel = talk
    for data in (_ack(1), _ack(2, errno.ENODEV), _ack(3, errno.EPERM), _ack(4), _ack(5)):
        kernel.send(data)
    with pytest.raises(rtnetlink.NetlinkFailed, match=r"interface 12 up: ENODEV"):
        route.run(*map(route_messages.up, (11, 12, 13, 14)))
    assert route.run(route_messages.up(15)) == [[]]


@pytest.mark.parametrize(
    "data", [struct.pack("=IHHII", 8, 2, 0, 1, 0), struct.pack("=IHHII", 400, 2, 0, 1, 0) + bytes(20), b""]
)
def test_an_answer_that_is_cut_short_is_an_error(
    talk: tuple[rtnetlink.RouteSocket, socket.socket], data: bytes
) -> None:
    route, kernel = talk
    if data:
        kernel.send(data)
    else:
        kernel.close()
    with pytest.raises(rtnetlink.NetlinkFailed, match="interface 7 up: E"):
        route.run(route_messages.up(7))
