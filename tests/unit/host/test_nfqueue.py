"""What is read of a queued packet: fixed fields with bounds, and nothing where a packet is not whole."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.host.netlink import attribute
from casemate.host.nfqueue import COPY_BYTES, Queued, dropped, ends, parse

A, B = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
A6, B6 = bytes.fromhex("fd00" + "00" * 13 + "01"), bytes.fromhex("fd00" + "00" * 13 + "02")


def ipv4(protocol: int, body: bytes, *, words: int = 5, fragment: int = 0) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x40 | words, 0, 20 + len(body), 1, fragment, 64, protocol, 0, A, B)
    return head + bytes(max(0, (words - 5) * 4)) + body


def ipv6(protocol: int, body: bytes) -> bytes:
    return struct.pack("!IHBB16s16s", 6 << 28, len(body), protocol, 64, A6, B6) + body


PORTS = struct.pack("!HH", 40_000, 443)


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (ipv4(6, PORTS), (A, B, 6, 40_000, 443)),
        (ipv4(17, PORTS, words=15), (A, B, 17, 40_000, 443)),
        (ipv4(132, PORTS), (A, B, 132, 40_000, 443)),
        (ipv4(1, bytes([8, 0])), (A, B, 1, 0, 8)),
        (ipv4(47, b""), (A, B, 47, 0, 0)),
        (ipv6(6, PORTS), (A6, B6, 6, 40_000, 443)),
        (ipv6(58, bytes([128])), (A6, B6, 58, 0, 128)),
        (ipv6(0, bytes([6, 0, *bytes(6)]) + PORTS), (A6, B6, 6, 40_000, 443)),
        (ipv6(60, bytes([0, 1, *bytes(14)]) + bytes([17, 0, *bytes(6)]) + PORTS), (A6, B6, 17, 40_000, 443)),
        # Not whole: no protocol, so that nothing is decided by what is not there.
        (ipv4(6, PORTS[:3]), (A, B, 0, 0, 0)),
        (ipv4(1, b""), (A, B, 0, 0, 0)),
        (ipv4(6, PORTS, fragment=1), (A, B, 0, 0, 0)),
        (ipv4(6, PORTS, words=4), (A, B, 0, 0, 0)),
        (ipv6(0, b""), (A6, B6, 0, 0, 0)),
        (ipv6(0, bytes([0, 0, *bytes(6)]) * 5 + PORTS), (A6, B6, 0, 0, 0)),
        (ipv6(43, bytes([6, 255, *bytes(6)])), (A6, B6, 0, 0, 0)),
        (b"", (b"", b"", 0, 0, 0)),
        (b"\x45" + bytes(18), (b"", b"", 0, 0, 0)),
        (b"\x60" + bytes(38), (b"", b"", 0, 0, 0)),
        (b"\x50" + bytes(60), (b"", b"", 0, 0, 0)),
    ],
)
def test_ends_of_a_packet(packet: bytes, expected: tuple[bytes, bytes, int, int, int]) -> None:
    assert ends(packet) == expected


@given(st.binary(max_size=COPY_BYTES))
def test_any_bytes_give_ends_within_their_ranges(packet: bytes) -> None:
    source, destination, protocol, source_port, port = ends(packet)
    assert len(source) == len(destination)
    assert len(source) in (0, 4, 16)
    assert 0 <= protocol < 256
    assert 0 <= source_port < 65_536
    assert 0 <= port < 65_536


def message(body: bytes, kind: int = 0x300, size: int | None = None) -> bytes:
    body = bytes(4) + body
    return struct.pack("=IHHII", 16 + len(body) if size is None else size, kind, 0, 0, 0) + body


HEADER = attribute(1, struct.pack("!IHB", 7, 0x0800, 1))


def test_a_message_of_the_kernels() -> None:
    data = message(HEADER + attribute(5, struct.pack("!I", 3)) + attribute(10, ipv4(6, PORTS)))
    assert parse(data) == Queued(7, 3, A, B, 6, 40_000, 443)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        message(b""),
        message(attribute(1, b"123")),
        message(HEADER, kind=0x301),
        message(HEADER, size=4000),
        message(struct.pack("=HH", 40, 1)),
        message(HEADER)[:18],
    ],
)
def test_what_is_no_packet_is_none(data: bytes) -> None:
    assert parse(data) is None


@given(st.binary(max_size=200))
def test_any_datagram_is_read_without_an_error(data: bytes) -> None:
    parse(data)
    parse(message(data))


def test_what_the_kernel_dropped_by_queue() -> None:
    states = "58864 2581423122 0 2   160     3     0     1204  1\n    2      7     5 2   160     4     6    9  1\nx\n"
    assert dropped(states) == {58864: 3, 2: 10}
