"""The recorder: kernel messages in, rows of the ring out."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.packets import EVENT, LOGGED, client_hello

from casemate.node.flows import conntrack, packetlog, query
from casemate.node.flows.clienthello import server_name
from casemate.node.flows.query import Wanted
from casemate.node.flows.recorder import RULING_WAIT_S, Recorder
from casemate.node.flows.store import Ring
from casemate.node.flows.wire import (
    ENCODER,
    MAX_FIVES,
    MAX_ITEMS,
    MAX_LABELS_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_NOTE_BYTES,
    MAX_RULE_BYTES,
    End,
    Ends,
    Names,
    Questions,
    ReferralTold,
    Referred,
    RulesChanged,
    Ruling,
    Rulings,
    bounded,
)
from casemate.spec.api.flows import FlowRow
from casemate.spec.errors import InvalidArgument

WEB, DB = "198.18.5.2", "198.19.5.2"


class Table:
    """A recorder with a ring, and what it asked."""

    def __init__(self, folder: Path, capacity: int = 100) -> None:
        self.path = str(folder / "flows.db")
        self.ring = Ring(self.path, capacity)
        self.asked: list[Questions] = []
        self.recorder = Recorder(self.ring, self._ask)
        self.rule = Ruling("allow", "front", 300, 301)
        ends = (End(WEB, "pod", "shop", "web", "p1"), End(DB, "pod", "shop", "db", "p2"))
        self.recorder.told(Ends(ends), 1.0)

    def _ask(self, questions: Questions) -> bool:
        self.asked.append(questions)
        return True

    def settle(self, now: float = 2.0) -> list[FlowRow]:
        self.recorder.ask()
        while self.asked:
            questions = self.asked.pop()
            self.recorder.told(Rulings(questions.number, (self.rule,) * len(questions.questions)), now)
        self.recorder.flush()
        return self.rows()

    def rows(self, **wanted: object) -> list[FlowRow]:
        connection = query.connect(self.path)
        try:
            return query.last(connection, Wanted(**wanted), 1000)  # type: ignore[arg-type]
        finally:
            connection.close()


def attribute(kind: int, content: bytes) -> bytes:
    return struct.pack("=HH", len(content) + 4, kind) + content + bytes(-len(content) % 4)


def event(source: str, destination: str, source_port: int, port: int, *, ended: tuple[int, ...] = (), protocol: int = 6,
          translated: str = "") -> bytes:  # fmt: skip
    """One message of conntrack's; *ended* (packets, bytes, packets, bytes) for an end; *translated*: really there."""

    def one(kind: int, from_: str, to: str, from_port: int, to_port: int) -> bytes:
        packed = [ipaddress.ip_address(text).packed for text in (from_, to)]
        first = 1 if len(packed[0]) == 4 else 3
        addresses = attribute(first, packed[0]) + attribute(first + 1, packed[1])
        ports = struct.pack("!H", from_port), struct.pack("!H", to_port)
        kinds = attribute(1, bytes([protocol])) + attribute(2, ports[0]) + attribute(3, ports[1])
        return attribute(kind | 0x8000, attribute(0x8001, addresses) + attribute(0x8002, kinds))

    body = one(1, source, destination, source_port, port) + one(2, translated or destination, source, port, source_port)
    body += attribute(12, bytes(4)) + attribute(3, bytes(4)) + attribute(7, bytes(4))
    if ended:
        for kind, packets, count in ((9, *ended[:2]), (10, *ended[2:])):
            body += attribute(
                kind | 0x8000, attribute(1, struct.pack("!Q", packets)) + attribute(2, struct.pack("!Q", count))
            )
        times = attribute(1, struct.pack("!Q", 10**9)) + attribute(2, struct.pack("!Q", 3 * 10**9))
        body += attribute(20 | 0x8000, times)
    kind = conntrack.DESTROY if ended else conntrack.NEW
    return struct.pack("=IHHII", 20 + len(body), kind, 0, 0, 0) + struct.pack("=BBH", 2, 0, 0) + body


def packet(source: str, destination: str, source_port: int, port: int, content: bytes = b"") -> bytes:
    tcp = struct.pack("!HHIIBBHHH", source_port, port, 1, 1, 5 << 4, 0x18, 1000, 0, 0) + content
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0)
    return head + ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed + tcp


def logged(packet_: bytes, prefix: bytes = b"deny", sequence: int = 0) -> bytes:
    body = attribute(10, prefix + b"\0") + attribute(12, struct.pack("!I", sequence)) + attribute(9, packet_)
    return struct.pack("=IHHII", 20 + len(body), 4 << 8, 0, 0, 0) + struct.pack("!BBH", 2, 0, 1) + body


def test_the_kernels_own_bytes_are_read() -> None:
    seen = conntrack.parse(EVENT)
    assert seen is not None
    assert seen.is_new
    assert (seen.original.source, seen.original.port, seen.original.protocol) == (bytes((198, 18, 5, 2)), 7, 17)
    assert seen == conntrack._slow(EVENT, True)
    (one,) = packetlog.parse(LOGGED)
    assert one.prefix == b"casemate:deny"
    header = packetlog.headers(one.packet)
    assert header is not None
    assert (header[0].port, one.packet[header[1] :]) == (9, b"hello")


@given(place=st.integers(0, 140), bits=st.integers(1, 255), ended=st.booleans(), port=st.integers(0, 65_535))
def test_the_short_way_reads_what_the_long_one_does(place: int, bits: int, ended: bool, port: int) -> None:
    data = bytearray(event(WEB, DB, 40_000, port, ended=(1, 2, 3, 4) if ended else ()))
    assert conntrack.quick(bytes(data)) is not None
    data[place] ^= bits
    found = conntrack.quick(bytes(data))
    if found is None:
        return
    seen = conntrack.parse(bytes(data))
    assert seen is not None
    assert found == (seen.is_new, seen.key, *seen.original, seen.reply.source, seen.reply.source_port)
    assert seen.rest == conntrack.QUICK_END


def test_connections_that_begin_and_end_in_one_batch(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.recorder.connections([event(WEB, DB, 1, 80)], 1.0)
    table.settle()
    both = [
        event(WEB, DB, 2, 80), event(WEB, "203.0.113.9", 3, 80), event(WEB, DB, 2, 80, ended=(1, 2, 3, 4)),
        event(WEB, DB, 1, 80, ended=(5, 6, 7, 8)), b"", event("fd00::1", "fd00::2", 4, 80), event(WEB, DB, 5, 80),
    ]  # fmt: skip
    table.recorder.connections(both, 2.0)
    found = {row.source.port: (row.bytes_in, bool(row.ended), row.rule) for row in table.settle()}
    assert found == {
        1: (8, True, "front"), 2: (4, True, "front"), 3: (0, False, "front"), 4: (0, False, "front"),
        5: (0, False, "front"),
    }  # fmt: skip


def test_a_connection_is_one_record_with_names_rule_and_counters(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.recorder.told(Names(((WEB, DB, "db.shop.casemate", 5),)), 1.0)
    table.recorder.connections([event(WEB, DB, 40000, 5432)], 1.5)
    (row,) = table.settle()
    assert (row.source.name, row.destination.name, row.destination.port, row.protocol) == ("web", "db", 5432, "tcp")
    assert (row.verdict, row.rule, row.dns, row.ended) == ("allow", "front", "db.shop.casemate", "")
    assert (row.source.identity, row.destination.identity) == (300, 301)
    table.recorder.connections([event(WEB, DB, 40000, 5432, ended=(10, 1000, 8, 90000))], 4.0)
    (row,) = table.settle()
    assert (row.packets_out, row.bytes_out, row.packets_in, row.bytes_in) == (10, 1000, 8, 90000)
    assert row.ended == "1970-01-01T00:00:03.000000Z"
    assert not table.asked, "the ruling is remembered"


def test_the_end_comes_before_the_ruling(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.recorder.connections([event(WEB, DB, 1, 2)], 1.0)
    table.recorder.connections([event(WEB, DB, 1, 2, ended=(1, 2, 3, 4))], 1.1)
    (row,) = table.settle()
    assert (row.bytes_in, row.rule) == (4, "front")


def test_a_published_port_shows_where_the_connection_really_went(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.recorder.connections([event("203.0.113.9", "10.0.0.1", 5000, 80, translated=WEB)], 1.0)
    (row,) = table.settle()
    assert (row.destination.name, row.via, row.source.kind) == ("web", "10.0.0.1:80", "world")


def test_ipv6_and_its_counters(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.recorder.connections([event("fd00::1", "2001:db8::2", 1, 443, ended=(1, 2, 3, 4))], 1.0)
    (row,) = table.settle()
    assert (row.source.address, row.destination.address, row.bytes_in) == ("fd00::1", "2001:db8::2", 4)


def test_without_a_ruling_it_is_written_late_and_counted(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.recorder.connections([event(WEB, DB, 1, 2)], 1.0)
    table.recorder.ask()
    table.recorder.expire(1.0 + RULING_WAIT_S / 2)
    assert table.recorder.pending == 0
    table.recorder.expire(1.1 + RULING_WAIT_S)
    table.recorder.flush()
    assert [row.rule for row in table.rows()] == [""]
    assert table.recorder.counters().unruled == 1
    # The late answer changes nothing, and breaks nothing.
    table.recorder.told(Rulings(1, (table.rule,)), 9.0)


def test_refused_packets_are_one_record_for_each_attempt(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.rule = Ruling("deny", "wall", 300, 301)
    for number in range(3):
        table.recorder.verdicts(logged(packet(WEB, DB, 40000, 22), sequence=number), 1.0 + number)
    table.recorder.verdicts(logged(packet(WEB, DB, 40001, 22), sequence=3), 9.0)
    rows = table.settle()
    assert [(row.verdict, row.rule, row.times) for row in rows] == [("deny", "wall", 3), ("deny", "wall", 1)]


def test_what_passed_is_never_called_denied(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.rule = Ruling("deny", "newer")
    table.recorder.connections([event(WEB, DB, 1, 2)], 1.0)
    (row,) = table.settle()
    assert (row.verdict, row.note) == ("allow", "now deny")


def test_audited_is_audited(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.rule = Ruling("audit", "soon")
    table.recorder.connections([event(WEB, DB, 1, 2)], 1.0)
    assert [row.verdict for row in table.settle()] == ["audit"]


def test_other_rules_ask_anew(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.recorder.connections([event(WEB, DB, 1, 2)], 1.0)
    table.settle()
    table.recorder.told(RulesChanged(), 2.0)
    table.rule = Ruling("allow", "second")
    table.recorder.connections([event(WEB, DB, 3, 2)], 2.5)
    assert [row.rule for row in table.settle()] == ["front", "second"]


def test_lost_packets_of_the_log_are_counted_by_their_numbers(tmp_path: Path) -> None:
    table = Table(tmp_path)
    for number in (5, 6, 9):
        table.recorder.verdicts(logged(packet(WEB, DB, number, 22), sequence=number), 1.0)
    assert table.recorder.counters().lost_log == 2


def test_the_servers_name_of_a_handshake(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.recorder.connections([event(WEB, "192.0.2.7", 40000, 443)], 1.0)
    table.settle()
    hello = packet(WEB, "192.0.2.7", 40000, 443, client_hello(b"API.example.org"))
    table.recorder.hellos(logged(hello, b""), 1.1)
    assert [row.tls for row in table.settle()] == ["api.example.org"]
    assert [row.tls for row in table.rows(destination="api.example.org")] == ["api.example.org"]


@pytest.mark.parametrize(
    "data",
    [b"", b"\x16\x03\x01", client_hello(b""), client_hello(b"a" * 300), client_hello(b"x\n.org"), client_hello(b"-a"),
     client_hello(b"\xff.org"), client_hello(b"x.org")[:60], b"\x16\x03" + b"\xff" * 200,
     client_hello(b"x.org", b"\0\x0a\xff\xff")],
)  # fmt: skip
def test_a_handshake_that_shows_no_name(data: bytes) -> None:
    assert server_name(data) == ""


def test_a_name_behind_many_extensions_is_found_within_the_bound() -> None:
    filler = b"\0\x0a\0\2\0\0"
    assert server_name(client_hello(b"x.org", filler * 60)) == "x.org"
    assert server_name(client_hello(b"x.org", filler * 64)) == ""


def test_questions_to_the_resolver_are_no_flows(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.recorder.connections([event(WEB, "169.254.1.1", 40000, 53, protocol=17)], 1.0)
    assert table.settle() == []


def test_a_pod_that_is_gone_is_known_a_while(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.recorder.told(Ends(gone=(WEB,)), 1.0)
    table.recorder.expire(2.0)
    table.recorder.verdicts(logged(packet(WEB, DB, 1, 22)), 2.0)
    table.recorder.expire(20.0)
    table.recorder.verdicts(logged(packet(WEB, DB, 2, 22), sequence=1), 20.0)
    assert [row.source.name for row in table.settle(20.0)] == ["web", ""]


def test_the_ring_keeps_its_size_and_the_newest(tmp_path: Path) -> None:
    table = Table(tmp_path, capacity=10)
    for port in range(1, 31):
        table.recorder.connections([event(WEB, DB, port, 80)], 1.0)
    rows = table.settle()
    assert [row.source.port for row in rows] == list(range(21, 31))


def test_a_recorder_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.recorder.connections([event(WEB, DB, 7, 80)], 1.0)
    table.settle()
    table.ring.close()
    again = Table(tmp_path)
    again.recorder.connections([event(WEB, DB, 7, 80, ended=(1, 2, 3, 4))], 5.0)
    again.recorder.connections([event(WEB, DB, 8, 80)], 6.0)
    rows = again.settle()
    assert [(row.source.port, row.bytes_in) for row in rows] == [(7, 4), (8, 0)]


def test_a_store_that_cannot_be_read_is_made_anew_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "flows.db").write_bytes(b"no database" * 1000)
    table = Table(tmp_path)
    table.recorder.connections([event(WEB, DB, 7, 80)], 1.0)
    assert len(table.settle()) == 1
    connection = query.connect(table.path)
    (gap,) = query.gaps(connection, 0.0, float("inf"))
    connection.close()
    assert "could not be read" in gap.reason


def test_broken_messages_are_counted(tmp_path: Path) -> None:
    table = Table(tmp_path)
    whole = event(WEB, DB, 1, 2)
    for end in range(124):  # up to the end of both tuples
        table.recorder.connections([whole[:end]], 1.0)
    table.recorder.verdicts(b"\x01\0\0\0" + bytes(40), 1.0)
    assert table.settle() == []
    assert table.recorder.counters().broken > 0


def test_questions_to_the_ring(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.recorder.connections([event(WEB, DB, 1, 5432)], 100.0)
    table.recorder.connections([event(WEB, "203.0.113.5", 2, 443)], 200.0)
    table.recorder.verdicts(logged(packet("203.0.113.9", WEB, 3, 22)), 300.0)
    table.settle()

    def ports(**wanted: object) -> list[int]:
        return [row.destination.port for row in table.rows(**wanted)]

    assert ports(source="web") == [5432, 443]
    assert ports(source="shop/web", destination="shop/db") == [5432]
    assert ports(destination="203.0.113.0/24") == [443]
    assert ports(either="203.0.113.9") == [22]
    assert ports(destination="world") == [443]
    assert ports(verdict=("deny",)) == [22]
    assert ports(since=150.0) == [443, 22]
    assert ports(until=150.0) == [5432]
    assert ports(port=443, protocol="tcp") == [443]
    assert ports(source="'; DROP TABLE flows; --") == []
    for bad in ({"verdict": ("maybe",)}, {"protocol": "quic"}):
        with pytest.raises(InvalidArgument):
            ports(**bad)


def test_the_service_map_folds_what_is_too_much(tmp_path: Path) -> None:
    table = Table(tmp_path, capacity=1000)
    for number in range(100):
        table.recorder.connections([event(WEB, f"203.0.113.{number}", number + 1, 443)], 1.0)
    for number in range(5):
        table.recorder.connections([event(WEB, DB, 1000 + number, 5432)], 1.0)
    table.settle()
    connection = query.connect(table.path)
    found = query.service_map(connection, Wanted(), 10.0)
    connection.close()
    assert found.folded == 60
    edges = {(edge.source, edge.destination): edge.count for edge in found.edges}
    assert edges["shop/web", "shop/db"] == 5
    assert edges["shop/web", "world:"] == 60
    assert sum(edges.values()) == 105


def test_what_was_referred_says_who_answered(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.rule = Ruling("refer", "ask", 300, 301)
    answers = ReferralTold("allow", "ask", "0:root: fine", 300, 301), ReferralTold("deny", "ask", "deadline", 300, 301)
    five = (ipaddress.ip_address(WEB).packed, ipaddress.ip_address(DB).packed, 6, 7, 80)
    table.recorder.told(Referred(answers, ((five, 0), ((*five[:3], 9, 80), 5))), 1.0)
    assert table.recorder.broken == 1, "a place that no answer has"
    table.recorder.connections([event(WEB, DB, 7, 80)], 1.1)
    table.recorder.told(Referred(answers, (((*five[:3], 8, 80), 1),)), 1.2)
    table.recorder.verdicts(logged(packet(WEB, DB, 8, 80)), 1.3)
    rows = table.settle()
    assert [(row.verdict, row.note, row.times) for row in rows] == [
        ("referred", "0:root: fine", 1),
        ("deny", "deadline", 2),
    ]


def test_full_messages_fit_the_channel() -> None:
    """Each item as long as it may be, in letters that take most bytes; names are ASCII by their own rule."""
    wide = "\N{GRINNING FACE}" * 300
    end = End("f" * 39, "world", "p" * 64, "n" * 128, "i" * 64, 1 << 24, bounded(wide, MAX_LABELS_BYTES))
    ruling = Ruling("referred", bounded(wide, MAX_RULE_BYTES), 1 << 24, 1 << 24, bounded(wide, MAX_NOTE_BYTES))
    told = ReferralTold("allow", ruling.rule, ruling.note, 1 << 24, 1 << 24)
    five = (bytes(range(16)), bytes(range(16)), 132, 65_535, 65_535)
    referred = Referred((told,) * MAX_ITEMS, ((five, MAX_ITEMS - 1),) * MAX_FIVES)
    for message in (Ends((end,) * MAX_ITEMS), Rulings(1 << 40, (ruling,) * MAX_ITEMS), referred):
        assert len(ENCODER.encode(message)) <= MAX_MESSAGE_BYTES
