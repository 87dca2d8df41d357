"""What a pod may send to get around the firewall, sent: it gets nowhere, and others are not hurt."""

from __future__ import annotations

import asyncio
import functools
import itertools
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest
from tests.integration.firewall.lab import (
    ACK,
    ICMP,
    MAC_A,
    MAC_B,
    OUTSIDE,
    ROUTER_MAC,
    SYN,
    TCP,
    UDP,
    Lab,
    Packet,
    Wire,
    address,
    checksum,
    endpoint,
    inside,
    world,
)

from casemate.host import conntrack, fragments, nfqueue, rtnetlink
from casemate.hostd import straining
from casemate.hostd.crowding import crowding, is_due, is_worth_a_count
from casemate.hostd.protocol_firewall import METADATA
from casemate.network.firewall import guard, kept, sets
from casemate.network.firewall.kernel import Change
from casemate.network.firewall.sets import ALLOW, DENY, REFER, verdict_row

A, B, C, X = "192.168.2.1", "192.168.2.2", "192.168.2.3", "192.168.2.99"
IDS = {A: 500, B: 501, C: 502}
WORLD = 600


@pytest.fixture
def open_lab(lab: Lab) -> Lab:
    """Everything is allowed but TCP port 22 of C: what is stopped is stopped by the guard."""
    lab.route([*IDS, X])
    rows = lab.hardware(IDS) + [endpoint(one, number) for one, number in IDS.items()] + [world(WORLD)]
    rows += [sets.metadata_row(address(one)) for one in METADATA]
    rows += [verdict_row(2, one, other, 0, 0, 0, ALLOW) for one in IDS.values() for other in (*IDS.values(), WORLD)]
    rows.append(verdict_row(0, IDS[A], IDS[C], TCP, 22, 22, DENY))
    lab.make(rows)
    lab.flush_connections()
    return lab


def counted(lab: Lab, name: str) -> int:
    return lab.kernel.counters()[name]


def test_a_pods_own_address_and_hardware_address_pass_and_no_other(open_lab: Lab) -> None:
    lab = open_lab
    assert lab.passes([Packet(A, B)]) == [True]
    for packet, mac in (
        (Packet(X, B), None),
        (Packet(OUTSIDE, B), None),
        (Packet("127.0.0.1", B), None),
        (Packet("0.0.0.0", B), None),
        (Packet(A, B, UDP), rtnetlink.mac_bytes("0e:01:00:00:00:77")),
        (Packet(A, B, UDP), rtnetlink.mac_bytes(ROUTER_MAC)),
    ):
        before = counted(lab, "spoofed")
        packet.number = 77
        lab.a.send([packet], mac)
        assert 77 not in {number for number, _ in lab.b.numbers()}
        assert counted(lab, "spoofed") == before + 1, packet


def part_of(whole: bytes, number: int, offset: int, data: bytes, *, more: bool) -> bytes:
    """A part of the packet *whole*: with *data* from *offset* on, and more behind it or not."""
    head = whole[:20]
    field = (offset // 8) | (0x2000 if more else 0)
    new = head[:2] + struct.pack("!HHH", 20 + len(data), number, field) + head[8:10] + b"\0\0" + head[12:]
    return new[:10] + struct.pack("!H", checksum(new)) + new[12:] + data


@pytest.mark.parametrize(
    ("destination", "counter"),
    [
        ("169.254.169.254", "metadata"), ("100.100.100.200", "metadata"), ("168.63.129.16", "metadata"),
        ("169.254.7.7", "link_local"), ("224.0.0.251", "multicast"), ("239.255.255.250", "multicast"),
        ("255.255.255.255", "multicast"), ("240.0.0.1", "multicast"),
    ],
)  # fmt: skip
def test_metadata_link_local_and_multicast_are_not_reached(open_lab: Lab, destination: str, counter: str) -> None:
    before = counted(open_lab, counter)
    for kind in (TCP, UDP, ICMP):
        packet = Packet(A, destination, kind, 8)
        packet.number = 78
        open_lab.a.send([packet])
    assert 78 not in {number for number, _ in open_lab.b.numbers() | open_lab.w.numbers(0.01)}
    assert counted(open_lab, counter) == before + 3


def test_ip_options_are_refused(open_lab: Lab) -> None:
    """Loose source routing to where the pod may not; and an option that says nothing."""
    route = bytes([131, 7, 4]) + socket.inet_aton(C) + b"\0"
    for options in (route, b"\x01\x01\x01\x01", bytes([7, 7, 4, 0, 0, 0, 0, 0])):
        before = counted(open_lab, "options")
        assert open_lab.passes([Packet(A, B, options=options)]) == [False]
        assert counted(open_lab, "options") == before + 1


def test_fragments_are_judged_as_the_packet_that_they_make(open_lab: Lab) -> None:
    """The ports in the second fragment, overlaps that write the port over: never through to the port that is closed."""
    whole = Packet(A, C, TCP, 22, 42_000, payload=bytes(32)).bytes()
    body = whole[20:]
    part = functools.partial(part_of, whole)
    lying = Packet(A, C, TCP, 80, 42_000, payload=bytes(32)).bytes()[20:]
    floods = [
        [part(501, 0, body[:8], more=True), part(501, 8, body[8:], more=False)],
        [part(502, 0, lying[:16], more=True), part(502, 0, body[:16], more=True), part(502, 16, body[16:], more=False)],
        [part(503, 8, body[8:], more=False), part(503, 0, body[:8], more=True)],
        [part(504, 8, body[8:], more=False)],
    ]
    frame = rtnetlink.mac_bytes(ROUTER_MAC) + rtnetlink.mac_bytes(MAC_A) + b"\x08\0"
    for parts in floods:
        for one in parts:
            open_lab.a.raw.send(frame + one)
    seen = [packet for packet in open_lab.b.frames() if packet[9] == TCP]
    assert not [packet for packet in seen if packet[22:24] == struct.pack("!H", 22)]


def test_a_part_with_anothers_address_is_not_joined_to_its_packets(lab: Lab) -> None:
    """A sends the first part of a datagram to C; the second comes from B, and bears A's address."""
    lab.route(IDS)
    macs = {A: rtnetlink.mac_bytes(MAC_A), B: rtnetlink.mac_bytes(MAC_B)}
    rows = [*lab.source("cm-a", MAC_A, A), *lab.source("cm-b", MAC_B, B)]
    rows += [endpoint(one, number) for one, number in IDS.items()]
    lab.make([*rows, verdict_row(2, IDS[A], IDS[C], 0, 0, 0, ALLOW)])
    lab.flush_connections()
    whole = Packet(A, C, UDP, 53, payload=b"what A says and B would say".ljust(56)).bytes()
    first, second = whole[20:44], whole[44:]
    router, ip = rtnetlink.mac_bytes(ROUTER_MAC), b"\x08\0"

    def arrives(number: int, wire: Wire, mac: bytes) -> bool:
        lab.a.raw.send(router + macs[A] + ip + part_of(whole, number, 0, first, more=True))
        wire.raw.send(router + mac + ip + part_of(whole, number, 24, second, more=False))
        return address(A) in [packet[12:16] for packet in lab.b.frames()]

    assert arrives(601, lab.a, macs[A])
    before = counted(lab, "spoofed")
    assert not arrives(602, lab.b, macs[B])
    assert counted(lab, "spoofed") == before + 1


def test_beginnings_alone_do_not_take_the_memory_for_parts_from_others(open_lab: Lab) -> None:
    """A sends thousands of first parts and never the rest; what B sends in parts arrives, before and after hostd has
    seen the memory fill, and whoever sent a few in the meantime is not hurt. When they are forgotten, all is as before.
    """
    lab = open_lab
    lab.route([A], "cm-a", MAC_A)
    frame = rtnetlink.mac_bytes(ROUTER_MAC) + rtnetlink.mac_bytes(MAC_A) + b"\x08\0"
    whole = Packet(A, C, UDP, 53, payload=bytes(1200)).bytes()

    numbers = itertools.cycle(range(1000, 60_000))

    def flood(count: int) -> None:
        for number in itertools.islice(numbers, count):
            lab.a.raw.send(frame + part_of(whole, number, 0, whole[20:1220], more=True))

    def arrives(number: int) -> bool:
        said = Packet(B, A, UDP, 53, payload=b"B's own datagram, in three parts".ljust(64)).bytes()
        to_router = rtnetlink.mac_bytes(ROUTER_MAC) + lab.b.mac + b"\x08\0"
        for at in (0, 24, 48):
            piece = part_of(said, number, at, said[20 + at : 44 + at], more=at < 48)
            lab.b.raw.send(to_router + piece)
        return address(B) in [packet[12:16] for packet in lab.a.frames()]

    def held() -> tuple[int, int]:
        return inside(lab.router, fragments.fill)

    def look() -> bool:
        inside(lab.router, lambda: asyncio.run(straining.look(lab.kernel)))
        return lab.kernel.strained > 0

    # The kernel keeps them 30 s as it is.
    inside(lab.router, lambda: Path("/proc/sys/net/ipv4/ipfrag_time").write_text("5"))
    assert arrives(1)
    assert not look()
    before = counted(lab, "parts")
    deadline = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline, held()
        flood(200)
    assert arrives(2)
    flood(10_000)
    assert held()[0] < held()[1] // 2
    assert counted(lab, "parts") > before
    assert arrives(3)
    while look():
        assert time.monotonic() < deadline, held()
        time.sleep(0.2)
    assert arrives(4)


def test_many_that_send_beginnings_together_do_not_take_the_memory_for_parts(lab: Lab) -> None:
    """Eight pods begin in the same moment, before hostd can see it, and go on: there is room left at any time, and
    what another sends in parts arrives."""
    flooding = [f"192.168.2.{number}" for number in range(100, 108)]
    lab.route([A, B])
    lab.route([A], "cm-a", MAC_A)
    rows = lab.hardware([A, B, *flooding])
    rows += [endpoint(one, number) for number, one in enumerate((A, B, *flooding), 500)]
    lab.make(
        [*rows, *(verdict_row(2, number, other, 0, 0, 0, ALLOW) for number in range(500, 510) for other in (500, 501))]
    )
    lab.flush_connections()
    frame = rtnetlink.mac_bytes(ROUTER_MAC) + rtnetlink.mac_bytes(MAC_A) + b"\x08\0"
    beginnings = []
    for one in flooding:
        whole = Packet(one, B, UDP, 53, payload=bytes(1480)).bytes()
        beginnings.append(lambda number, whole=whole: part_of(whole, number, 0, whole[20:1492], more=True))
    numbers = itertools.cycle(range(1000, 60_000))

    def room() -> int:
        held, maximum = inside(lab.router, fragments.fill)
        return maximum - held

    def flood(times: int) -> None:
        for _ in range(times):
            for make in beginnings:
                lab.a.raw.send(frame + make(next(numbers)))

    def arrives(number: int) -> bool:
        said = Packet(B, A, UDP, 53, payload=b"B's own datagram, in two parts".ljust(40)).bytes()
        to_router = rtnetlink.mac_bytes(ROUTER_MAC) + lab.b.mac + b"\x08\0"
        for at in (0, 24):
            lab.b.raw.send(to_router + part_of(said, number, at, said[20 + at : 44 + at], more=not at))
        return address(B) in [packet[12:16] for packet in lab.a.frames()]

    def look() -> int:
        inside(lab.router, lambda: asyncio.run(straining.look(lab.kernel)))
        return lab.kernel.strained

    inside(lab.router, lambda: Path("/proc/sys/net/ipv4/ipfrag_time").write_text("2"))
    before = counted(lab, "parts")
    flood(250)
    assert counted(lab, "parts") > before
    assert arrives(11)
    assert look() == 16, "eight and one that sent parts, and the next power of two"
    flood(250)
    assert room() > 200 * guard.PART_BYTES
    assert arrives(12)
    deadline = time.monotonic() + 60
    while look():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ipv6_is_refused_as_a_whole(open_lab: Lab) -> None:
    """Also what hides behind extension headers, and a neighbour's or router's advertisement."""
    source, destination = bytes.fromhex("fe80" + "00" * 13 + "01"), bytes.fromhex("ff02" + "00" * 13 + "01")
    bodies = [
        (6, bytes(20)), (58, bytes([134, 0, *bytes(14)])), (58, bytes([136, 0, *bytes(22)])),
        (0, bytes([43, 0, *bytes(6)]) + bytes([6, 0, *bytes(6)]) + bytes(20)),
    ]  # fmt: skip
    before = counted(open_lab, "ipv6")
    for protocol, body in bodies:
        packet = struct.pack("!IHBB16s16s", 6 << 28, len(body), protocol, 255, source, destination) + body
        open_lab.a.raw.send(rtnetlink.mac_bytes(ROUTER_MAC) + rtnetlink.mac_bytes(MAC_A) + b"\x86\xdd" + packet)
    time.sleep(0.05)
    # The sender's own kernel looks for neighbours now and then, and those packets are refused as well.
    assert counted(open_lab, "ipv6") >= before + len(bodies)


def test_arp_cannot_take_an_address(open_lab: Lab) -> None:
    """A says that B's address is at its own hardware address: the router's entry is permanent."""
    claim = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + rtnetlink.mac_bytes(MAC_A) + socket.inet_aton(B)
    claim += rtnetlink.mac_bytes(ROUTER_MAC) + socket.inet_aton("169.254.1.1")
    for to in (rtnetlink.mac_bytes(ROUTER_MAC), b"\xff" * 6):
        open_lab.a.raw.send(to + rtnetlink.mac_bytes(MAC_A) + b"\x08\x06" + claim)
    time.sleep(0.05)
    assert open_lab.passes([Packet(A, B)], at=open_lab.b) == [True]


def test_an_icmp_error_is_of_who_got_the_packet(lab: Lab) -> None:
    """C says of A's connection with B that it goes another way, that B is not there; B itself may say so."""
    macs = {A: MAC_A, B: MAC_B, C: "0e:01:00:00:00:0d"}
    lab.route(IDS)
    rows = [row for one, mac in macs.items() for row in lab.source("cm-a" if one == A else "cm-b", mac, one)]
    rows += [endpoint(one, number) for one, number in IDS.items()]
    lab.make([*rows, verdict_row(2, IDS[A], IDS[B], 0, 0, 0, ALLOW)])
    lab.flush_connections()
    assert lab.connect(A, B)
    asked, answered = Packet(A, B).bytes()[:28], Packet(B, A, TCP, 40_000, 80).bytes()[:28]

    def arrives(source: str, to: str, kind: int, about: bytes) -> bool:
        packet = Packet(source, to, ICMP, kind, payload=about, number=0x4C4C)
        wire, at = (lab.a, lab.b) if source == A else (lab.b, lab.a)
        wire.send([packet], rtnetlink.mac_bytes(macs[source]))
        return (packet.number, ICMP) in at.numbers()

    unreachable, elsewhere, late = 3, 5, 11
    for kind in (unreachable, elsewhere, late):
        before = counted(lab, "spoofed")
        assert not arrives(C, A, kind, asked)
        assert counted(lab, "spoofed") == before + 1
    assert arrives(B, A, unreachable, asked)
    lab.route([B])
    assert arrives(A, B, unreachable, answered)
    assert not arrives(B, A, unreachable, answered), "about what it sent itself"


def test_a_tiny_ttl_is_no_way_through(open_lab: Lab) -> None:
    assert open_lab.passes([Packet(A, B, ttl=1), Packet(A, C, TCP, 22, ttl=2)]) == [False, False]


def test_a_flood_of_first_packets_leaves_others_their_way(open_lab: Lab) -> None:
    flood = [Packet(A, C, TCP, 22, 1024 + n) for n in range(5000)]
    open_lab.a.send(flood)
    assert open_lab.passes([Packet(B, C, TCP, 80, source_port=30_000 + n) for n in range(20)]) == [True] * 20


def test_a_pod_with_too_many_connections_gets_no_more_and_others_do(open_lab: Lab) -> None:
    assert all(open_lab.passes([Packet(A, B, UDP, 1000 + n) for n in range(500)]))
    total = inside(open_lab.router, lambda: conntrack.fill()[0])
    counts = inside(open_lab.router, conntrack.count_by_source)
    assert counts[address(A)] == 500
    assert total >= 500
    assert open_lab.connect(A, C)
    found = crowding(counts, total, 1000)
    assert found == [address(A)]
    open_lab.change(Change(adds=[sets.address_set_row("crowded", one, 60_000) for one in found]))
    assert open_lab.passes([Packet(A, B, UDP, 5000), Packet(C, B, UDP, 5000)]) == [False, True]
    middle = Packet(A, C, TCP, flags=ACK, sequence=1001, acknowledged=5001)
    assert open_lab.passes([middle]) == [True], "what is open lives on"
    assert counted(open_lab, "crowded") == 1


def test_the_short_way_lets_nothing_through_that_the_long_way_would_not(open_lab: Lab) -> None:
    """An exact port that is allowed is asked for by one rule, before all others: still not by a pod with too many
    connections, not to a metadata service that somebody gave an identity, not with another's address or options, and
    no packet that is none of its connection.
    """
    lab, port = open_lab, 8080
    metadata = METADATA[0]
    rows = [verdict_row(0, IDS[A], IDS[B], kind, port, port, ALLOW) for kind in (TCP, UDP)]
    rows += [verdict_row(0, IDS[A], 700, TCP, port, port, ALLOW), endpoint(metadata, 700)]
    lab.change(Change(adds=rows, generation=2))

    def allowed() -> int:
        return counted(lab, "allowed")

    before = allowed()
    assert lab.connect(A, B, port)
    assert lab.passes([Packet(A, B, UDP, port)]) == [True]
    assert allowed() == before + 2
    assert lab.passes([Packet(A, metadata, TCP, port)], at=lab.w) == [False]
    assert counted(lab, "metadata") == 1
    assert lab.passes([Packet(C, B, TCP, port, 41_000, options=b"\x01" * 4)]) == [False]
    assert lab.passes([Packet(X, B, TCP, port, 41_001)]) == [False]
    open_flow = {"protocol": TCP, "port": port, "sequence": 1001, "acknowledged": 5001}
    assert lab.passes([Packet(A, B, flags=ACK, **open_flow)]) == [True]
    assert lab.passes([Packet(A, B, flags=ACK, options=b"\x01" * 4, **open_flow)]) == [False]
    invalid = counted(lab, "invalid")
    assert lab.passes([Packet(A, B, flags=SYN | 1, **open_flow)]) == [False]
    assert counted(lab, "invalid") == invalid + 1
    lab.change(Change(adds=[sets.address_set_row("crowded", address(A), 60_000)]))
    assert lab.passes([Packet(A, B, kind, port, 41_002) for kind in (TCP, UDP)]) == [False, False]
    assert lab.passes([Packet(A, B, flags=ACK, **open_flow)]) == [True], "what is open lives on"
    lab.change(Change(deletes=rows[:2], adds=[verdict_row(0, IDS[A], IDS[B], TCP, port, port, DENY)], generation=3))
    assert lab.passes([Packet(A, B, flags=ACK, **open_flow)]) == [False]


def test_shares_of_tracked_connections() -> None:
    assert crowding({b"a": 26, b"b": 25}, 51, 100) == [b"a"]
    assert crowding({b"a": 13, b"b": 12}, 61, 100) == [b"a"]
    assert crowding({b"a": 13, b"b": 12}, 60, 100) == []
    assert is_worth_a_count(26, 100)
    assert not is_worth_a_count(25, 100)
    assert [is_due(0.3, 100, 1600), is_due(0.3, 101, 1600), is_due(1.0, -5, 1600)] == [False, True, True]


def test_one_callers_direct_connections_leave_the_others_theirs(open_lab: Lab) -> None:
    """A begins thousands of connections to a kept port of B while no relay listens: they are remembered up to its
    part, and what another begins is remembered as well, as long as it is open."""
    lab = open_lab
    table = kept.table_name("casemate")

    def nft(*words: str) -> bytes:
        return inside(lab.router, lambda: subprocess.run(["nft", *words], check=True, capture_output=True).stdout)

    def direct(source: str) -> list[str]:
        listed = nft("list", "set", "inet", table, "direct").decode().partition("elements = {")[2]
        return [one for one in listed.split(",") if one.split()[0] == source]

    nft(kept.script("casemate", "cm-", 0, 0, 64))
    nft(f"add element inet {table} kept {{ {B} . 80 }}")
    begun = [Packet(A, B, source_port=1024 + n) for n in range(3000)]
    lab.a.send(begun)
    assert kept.DIRECT_BURST <= len(direct(A)) < len(begun) // 2
    assert lab.connect(C, B)
    (found,) = direct(C)
    assert "expires 1h59m" in found, "open: remembered long"
    lab.passes([Packet(C, B, flags=ACK | 4, sequence=1001, acknowledged=5001)])
    (found,) = direct(C)
    assert "expires 1m" in found, "over"


def test_one_pods_flood_of_referrals_leaves_the_others_theirs(lab: Lab) -> None:
    """The kernel bounds each pod's referrals: beyond its rate it is denied, while another's still come."""
    lab.route(IDS)
    rows = lab.hardware(IDS) + [endpoint(one, number) for one, number in IDS.items()]
    rows += [verdict_row(2, IDS[one], IDS[C], 0, 0, 0, REFER) for one in (A, B)]
    lab.make(rows)
    lab.flush_connections()
    queue = lab.queue()
    try:
        lab.a.send([Packet(A, C, UDP, 53, 1024 + n) for n in range(3000)])
        first = queue.receive(5000)
        assert 512 <= len(first) < 2000
        lab.a.send([Packet(B, C, UDP, 53, 1024)])
        time.sleep(0.05)
        assert [one.source for one in queue.receive(5000) if one.source == address(B)] == [address(B)]
        assert counted(lab, "referral_rate") > 1000
    finally:
        queue.close()
        list(lab.a.frames(0.01))


def test_what_a_full_queue_drops_the_kernel_says(lab: Lab) -> None:
    lab.route(IDS)
    rows = lab.hardware(IDS) + [endpoint(one, number) for one, number in IDS.items()]
    lab.make([*rows, verdict_row(2, IDS[A], IDS[C], 0, 0, 0, REFER)])
    lab.flush_connections()
    number = lab.kernel.spec.queue
    # /proc/net is that of the thread that leads the process.
    states = Path(nfqueue.STATES.replace("/proc/net", "/proc/thread-self/net"))
    queue = inside(lab.router, lambda: nfqueue.PacketQueue(number, 3))
    try:
        lab.a.send([Packet(A, C, UDP, 53, 1024 + n) for n in range(10)])
        until = time.monotonic() + 30
        while (found := inside(lab.router, lambda: nfqueue.dropped(states.read_text()))) != {number: 7}:
            assert time.monotonic() < until, found
            time.sleep(0.01)
        assert len(queue.receive(10)) == 3
    finally:
        queue.close()
        list(lab.a.frames(0.01))


def test_without_a_reader_what_is_referred_is_dropped(lab: Lab) -> None:
    lab.route(IDS)
    rows = lab.hardware(IDS) + [endpoint(one, number) for one, number in IDS.items()]
    lab.make([*rows, verdict_row(2, IDS[A], IDS[B], 0, 0, 0, REFER), verdict_row(2, IDS[A], IDS[C], 0, 0, 0, ALLOW)])
    lab.flush_connections()
    assert lab.passes([Packet(A, B), Packet(A, C)]) == [False, True]
    assert lab.connect(A, C, 81)
    assert lab.passes([Packet(A, C, TCP, 81, flags=ACK, sequence=1001, acknowledged=5001)]) == [True]
