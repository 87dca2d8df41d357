"""What is looked at in the first packets of a TCP connection alone: TLS' first is copied once, and nothing later."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.firewall.lab import ACK, TCP, Lab, Packet, endpoint, inside

from casemate.host import flowsockets
from casemate.network.firewall.kernel import Change
from casemate.network.firewall.sets import ALLOW, verdict_row
from casemate.network.flowlog import HELLO_COPY_BYTES

A, B = "192.168.5.1", "192.168.5.2"
IDS = {A: 800, B: 801}
HELLO = b"\x16\x03\x01\x00\x40" + bytes(64)


@pytest.fixture(params=["policy", "none"])
def copies(lab: Lab, request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """The reader of the log group, with a policy in force and with none."""
    lab.route(IDS)
    rows = lab.hardware(IDS) + [endpoint(one, number) for one, number in IDS.items()]
    lab.make([*rows, verdict_row(2, IDS[A], IDS[B], 0, 0, 0, ALLOW)], generation=request.param == "policy")
    lab.flush_connections()
    lab.route([A], "cm-a", "0e:01:00:00:00:0a")
    with contextlib.closing(
        inside(lab.router, lambda: flowsockets.packet_log(lab.kernel.spec.hello_group, HELLO_COPY_BYTES))
    ) as reader:
        yield reader


def copied(reader: socket.socket) -> int:
    """How many copies came of what went through; they are sent before the packet goes on."""
    found = 0
    while select.select([reader], [], [], 0.05)[0]:
        found += reader.recv(1 << 17).count(HELLO[:5])
    return found


def data(payload: bytes = b"", *, port: int, back: bool = False) -> Packet:
    if back:
        return Packet(B, A, TCP, 40_000, port, ACK, 5001, acknowledged=1001, payload=payload)
    return Packet(A, B, TCP, port, flags=ACK, sequence=1001, acknowledged=5001, payload=payload)


def test_the_first_packet_of_tls_is_copied_and_later_ones_are_not(lab: Lab, copies: socket.socket) -> None:
    assert lab.kernel.spec.hello_group, "the kernel knows what is in a TCP packet"
    assert lab.connect(A, B, 443)
    assert lab.passes([data(HELLO, port=443, back=True)], via=lab.b, at=lab.a) == [True]
    assert copied(copies) == 0, "what the server says is none"
    assert lab.passes([data(HELLO, port=443)]) == [True]
    assert copied(copies) == 1
    assert lab.passes([data(b"x" * 60, port=443)] * 8) == [True] * 8
    assert lab.passes([data(HELLO, port=443)]) == [True]
    assert copied(copies) == 0


def test_a_connection_grows_old_without_tls_as_well(lab: Lab, copies: socket.socket) -> None:
    assert lab.connect(A, B, 80)
    assert lab.passes([data(b"GET", port=80)] * 6) == [True] * 6
    assert lab.passes([data(HELLO, port=80)]) == [True]
    assert copied(copies) == 0
    lab.change(Change(generation=7))
    assert lab.passes([data(HELLO, port=80)] * 2) == [True] * 2, "judged anew, and old at once"
    assert copied(copies) == 0


def test_closed_connections_are_soon_forgotten(lab: Lab, copies: socket.socket) -> None:
    """What a connection in TIME_WAIT has still to live, in seconds: 10 at most, where the host's is 120."""
    assert lab.kernel.spec.brief
    assert lab.connect(A, B, 81)
    finish = Packet(A, B, TCP, 81, flags=ACK | 1, sequence=1001, acknowledged=5001)
    answer = Packet(B, A, TCP, 40_000, 81, ACK | 1, 5001, acknowledged=1002)
    assert lab.passes([finish]) == [True]
    assert lab.passes([answer], via=lab.b, at=lab.a) == [True]
    assert lab.passes([Packet(A, B, TCP, 81, flags=ACK, sequence=1002, acknowledged=5002)]) == [True]
    listed = inside(lab.router, lambda: Path("/proc/thread-self/net/nf_conntrack").read_text())
    (found,) = [line.split() for line in listed.splitlines() if "dport=81 " in line]
    assert found[5] == "TIME_WAIT"
    assert int(found[4]) <= 10
