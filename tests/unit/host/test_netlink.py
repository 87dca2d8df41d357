"""The netlink codec against what a kernel would never, and an attacker could not, but a bug might send."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from casemate.host import rtnetlink


def test_attributes_are_padded_and_read_back() -> None:
    data = rtnetlink.attribute(3, b"abc\0\0") + rtnetlink.attribute(4, struct.pack("=I", 1500))
    assert len(data) % 4 == 0
    assert list(rtnetlink.attributes(data)) == [(3, b"abc\0\0"), (4, struct.pack("=I", 1500))]


@pytest.mark.parametrize("data", [b"\3\0\1\0", b"\0\0\0\0", b"\xff\0\1\0abcd"])
def test_a_length_that_cannot_be_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="netlink attribute"):
        list(rtnetlink.attributes(data))


@pytest.mark.parametrize("text", ["aa:bb", "zz:00:00:00:00:00", ""])
def test_a_hardware_address_has_six_bytes(text: str) -> None:
    with pytest.raises(ValueError, match=r"hex|hardware address"):
        rtnetlink.mac_bytes(text)


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
