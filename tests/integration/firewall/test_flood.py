"""One pod opens connections as fast as it can, at the real bound of the host: the others' new connections go on."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import Iterator

import pytest
from tests.integration.firewall.lab import MAC_A, ROUTER_MAC, UDP, Lab, Packet, endpoint, inside

from casemate.host import conntrack, rtnetlink
from casemate.hostd import crowding
from casemate.network.firewall.sets import ALLOW, verdict_row

A, B, C = "192.168.6.1", "192.168.6.2", "192.168.6.3"
IDS = {A: 900, B: 901, C: 902}
#: More than the kernel tracks, so that a flood that nothing bounds ends with the table full.
FLOOD = 270_000
_BLOCK = 500
#: Of the bytes of an IPv4 packet without options: its number, both ports, UDP's checksum.
_NUMBER, _PORTS, _CHECKSUM = 4, 20, 26


def first_packets() -> Iterator[bytes]:
    """Each of a connection of its own, from A to C."""
    frame = rtnetlink.mac_bytes(ROUTER_MAC) + rtnetlink.mac_bytes(MAC_A) + b"\x08\0"
    packet = bytearray(frame + Packet(A, C, UDP, 1, 1, payload=b"?").bytes())
    at = len(frame)
    # 0: none.
    packet[at + _CHECKSUM : at + _CHECKSUM + 2] = bytes(2)
    for number in range(FLOOD):
        struct.pack_into("!HH", packet, at + _PORTS, 1024 + number % 60_000, 1024 + number // 60_000)
        yield packet


@pytest.fixture
def flooded(lab: Lab) -> Iterator[Lab]:
    lab.route(IDS)
    lab.route([A], "cm-a", MAC_A)
    rows = lab.hardware(IDS) + [endpoint(one, number) for one, number in IDS.items()]
    lab.make([*rows, *(verdict_row(2, IDS[one], IDS[other], 0, 0, 0, ALLOW) for one, other in ((A, C), (B, A)))])
    lab.flush_connections()
    try:
        yield lab
    finally:
        lab.flush_connections()
        list(lab.b.frames(0.01))


def test_a_pods_flood_is_bounded_and_others_connect(flooded: Lab) -> None:
    lab = flooded
    maximum = inside(lab.router, conntrack.fill)[1]
    tracked, connected = 0, 0

    async def watched() -> None:
        nonlocal tracked, connected
        keeper = asyncio.ensure_future(crowding.run(lab.kernel, {A: "a", B: "b", C: "c"}))
        looked = time.monotonic()
        for number, packet in enumerate(first_packets()):
            lab.a.raw.send(packet)
            if number % _BLOCK:
                continue
            await asyncio.sleep(0)
            if time.monotonic() - looked > 0.1:
                looked = time.monotonic()
                tracked = max(tracked, conntrack.fill()[0])
                connected += 1
                assert lab.passes([Packet(B, A, UDP, 53, 2000 + connected)], via=lab.b, at=lab.a) == [True]
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper

    inside(lab.router, lambda: asyncio.run(watched()))
    assert connected >= 5
    assert maximum // crowding.SHARE < tracked < maximum
    assert lab.kernel.counters()["crowded"] > 1000
