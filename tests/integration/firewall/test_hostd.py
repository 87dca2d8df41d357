"""The firewall through hostd: whole states, changes, referrals, holds, somebody's flush, a killed daemon."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import select
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from tests.integration.hostd.driver import Client, Hostd, Refused, running
from tests.integration.leaks import new_scope
from tests.patience import patience_s

from casemate.host import netns, nft_netlink
from casemate.host.nfqueue import PacketQueue
from casemate.hostd import protocol
from casemate.hostd import protocol_firewall as wire
from casemate.hostd.firewall import first_queue
from casemate.node.firewall import pack, sealed
from casemate.policy.lower import Element, Table
from casemate.policy.plan import AddressElement, Transaction
from casemate.policy.verdict import Verdict
from casemate.spec.workload import PodSpec

T = TypeVar("T")
NUMBERS = (300, 301)
PORT = 7000


@pytest.fixture(scope="module")
def hostd() -> Iterator[Hostd]:
    with running() as one:
        yield one


@pytest.fixture
def client(hostd: Hostd) -> Iterator[Client]:
    one = hostd.wait_ready()
    yield one
    with contextlib.suppress(OSError):
        one.call(wire.FirewallReplace(pack(Transaction("off")), in_force=False))
    one.close()


@pytest.fixture
def pods(hostd: Hostd, client: Client) -> Iterator[tuple[PodSpec, PodSpec]]:
    made = hostd.pod(), hostd.pod()
    for one in made:
        client.call(protocol.PodCreate(one))
    yield made
    for one in made:
        client.call(protocol.PodRemove(one.id, force=True))


def inside(hostd: Hostd, pod: PodSpec, function: Callable[[], T]) -> T:
    fd = os.open(hostd.run / "netns" / pod.id, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return asyncio.run(netns.inside(fd, function))
    finally:
        os.close(fd)


def listen(hostd: Hostd, pod: PodSpec, port: int = PORT) -> socket.socket:
    return inside(hostd, pod, lambda: socket.create_server(("0.0.0.0", port)))


def begin(hostd: Hostd, pod: PodSpec, to: PodSpec, port: int = PORT) -> socket.socket:
    """A connection that is being made."""

    def body() -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # Closed at once: a connection that still ends would keep its pod's namespace.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert one.connect_ex((to.network.address, port)) == errno.EINPROGRESS
        return one

    return inside(hostd, pod, body)


def outcome(one: socket.socket, timeout_s: float = 2.0) -> str:
    """What became of a connection: open, refused, or waiting."""
    if not select.select([], [one], [], timeout_s)[1]:
        return "waiting"
    return "refused" if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) else "open"


def read(listener: socket.socket, timeout_s: float = 1.0) -> bytes:
    """What the first of a listener's clients has sent by then."""
    listener.settimeout(timeout_s)
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        one, _ = listener.accept()
        with one:
            one.settimeout(timeout_s)
            return one.recv(100)
    return b""


def connect(hostd: Hostd, pod: PodSpec, to: PodSpec, port: int = PORT, timeout_s: float = 2.0) -> str:
    with begin(hostd, pod, to, port) as one:
        return outcome(one, timeout_s)


def ends(pods: tuple[PodSpec, PodSpec]) -> tuple[AddressElement, ...]:
    return tuple(
        AddressElement(True, 4, int(address), int(address), "", number)
        for pod, number in zip(pods, NUMBERS, strict=True)
        for address in [ipaddress.IPv4Address(pod.network.address)]
    )


def between(verdict: Verdict, port: int = PORT) -> Element:
    return Element(Table.PORT, *NUMBERS, 6, port, port, verdict)


def whole(pods: tuple[PodSpec, PodSpec], *elements: Element) -> bytes:
    return pack(Transaction("test", adds=elements, address_adds=ends(pods)))


def test_what_is_in_force_is_changed_by_one_transaction(
    hostd: Hostd, client: Client, pods: tuple[PodSpec, PodSpec]
) -> None:
    a, b = pods
    with listen(hostd, b):
        assert connect(hostd, a, b) == "open"
        now = client.call(wire.FirewallReplace(whole(pods)))
        assert connect(hostd, a, b) == "refused"
        add = pack(Transaction("add", adds=(between(Verdict.ALLOW),)))
        after = client.call(wire.FirewallChange(now.generation, add))
        assert after.generation == now.generation + 1
        assert connect(hostd, a, b) == "open"
        with pytest.raises(Refused) as refused:
            client.call(wire.FirewallChange(now.generation, add))
        assert refused.value.code == "hostd.firewall_conflict"
        # An element that is not there: the kernel refuses all of it, and the state is what it was.
        bad = pack(Transaction("bad", deletes=(between(Verdict.ALLOW, 99),), adds=(between(Verdict.ALLOW, 98),)))
        with pytest.raises(Refused) as refused:
            client.call(wire.FirewallChange(after.generation, bad))
        assert refused.value.code == "host.nft_failed"
        state = client.call(wire.FirewallObserve())
        assert (state.generation, state.in_force) == (after.generation, True)
        assert state.elements == {"verdict": 1, "base": 0, "address": 2}


def test_a_large_state_comes_in_a_sealed_memory_file(
    hostd: Hostd, client: Client, pods: tuple[PodSpec, PodSpec]
) -> None:
    many = (Element(Table.PORT, 1000 + n, 301, 6, 80, 80, Verdict.ALLOW) for n in range(20_000))
    body = whole(pods, between(Verdict.ALLOW), *many)
    with contextlib.closing(_File(sealed(body))) as file, listen(hostd, pods[1]):
        client.call(wire.FirewallReplace(), [file.number])
        assert connect(hostd, *pods) == "open"
        assert connect(hostd, *pods, PORT + 1) == "refused"
    number = os.memfd_create("open", os.MFD_ALLOW_SEALING)
    os.write(number, body)
    with contextlib.closing(_File(number)) as file, pytest.raises(Refused) as refused:
        client.call(wire.FirewallReplace(), [file.number])
    assert refused.value.code == "hostd.firewall_body_invalid"


class _File:
    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        os.close(self.number)


def test_an_open_connection_that_may_not_be_any_more_is_cut_and_others_live(
    hostd: Hostd, client: Client, pods: tuple[PodSpec, PodSpec]
) -> None:
    a, b = pods
    now = client.call(wire.FirewallReplace(whole(pods, between(Verdict.ALLOW), between(Verdict.ALLOW, PORT + 1))))
    with listen(hostd, b) as first, listen(hostd, b, PORT + 1) as second:
        kept: list[tuple[socket.socket, socket.socket]] = []
        for server, port in ((first, PORT), (second, PORT + 1)):
            one = begin(hostd, a, b, port)
            assert outcome(one) == "open"
            kept.append((one, server.accept()[0]))
        less = pack(Transaction("less", deletes=(between(Verdict.ALLOW),)))
        client.call(wire.FirewallChange(now.generation, less, look_again=True))
        cut = time.monotonic()
        for one, _ in kept:
            one.send(b"on")
        assert select.select([kept[0][0]], [], [], patience_s(1.0))[0]
        with pytest.raises(ConnectionResetError):
            kept[0][0].recv(10)
        assert time.monotonic() - cut < patience_s(1.0)
        assert kept[1][1].recv(10) == b"on"
        for pair in kept:
            for one in pair:
                one.close()


def test_a_referred_connection_waits_for_its_answer(
    hostd: Hostd, client: Client, pods: tuple[PodSpec, PodSpec]
) -> None:
    a, b = pods
    client.call(wire.FirewallReplace(whole(pods, between(Verdict.REFER))))
    with listen(hostd, b):
        for accept, expected in ((True, "open"), (False, "refused")):
            with begin(hostd, a, b) as one:
                packet = client.event(wire.Referred).packets[0]
                assert (packet.source, packet.destination) == tuple(
                    ipaddress.IPv4Address(pod.network.address).packed for pod in pods
                )
                assert (packet.protocol, packet.port, packet.pod) == (6, PORT, a.id)
                assert packet.source_port == one.getsockname()[1]
                assert outcome(one, 0.05) == "waiting"
                client.call(wire.FirewallAnswer((wire.ReferralAnswer(packet.number, accept),)))
                assert outcome(one) == expected
        # Answered with a lifetime: nobody is asked again, until it is forgotten.
        with begin(hostd, a, b) as one:
            packet = client.event(wire.Referred).packets[0]
            client.call(wire.FirewallAnswer((wire.ReferralAnswer(packet.number, True, 60),)))
            assert outcome(one) == "open"
        assert connect(hostd, a, b) == "open"
        key = wire.AnswerKey(packet.source, packet.destination, 6, PORT)
        client.call(wire.FirewallForget((key,)))
        with begin(hostd, a, b) as one:
            packet = client.event(wire.Referred).packets[0]
            assert outcome(one, 0.05) == "waiting"
            client.call(wire.FirewallAnswer((wire.ReferralAnswer(packet.number, False),)))
        counters = client.call(wire.FirewallObserve()).counters
        assert counters["referral_accepted"] >= 2
        assert counters["referral_denied"] >= 2


def test_many_are_answered_at_once_and_those_in_the_middle_of_it_are_denied(
    hostd: Hostd, client: Client, pods: tuple[PodSpec, PodSpec]
) -> None:
    a, b = pods
    ports = range(PORT, PORT + 12)
    before = client.call(wire.FirewallObserve()).counters
    late_before, away_before = before.get("referral_late", 0), before.get("referral_away", 0)
    client.call(wire.FirewallReplace(whole(pods, *(between(Verdict.REFER, port) for port in ports))))
    with contextlib.ExitStack() as stack:
        for port in ports:
            stack.enter_context(listen(hostd, b, port))
        made = {port: stack.enter_context(begin(hostd, a, b, port)) for port in ports}
        asked: dict[int, int] = {}
        while len(asked) < len(ports):
            asked |= {packet.port: packet.number for packet in client.event(wire.Referred).packets}
        # The first eight in one message that bears no number, mixed, with some that nobody asked about.
        given = [wire.ReferralAnswer(asked[port], port % 2 == 0) for port in reversed(ports[:8])]
        forged = (wire.ReferralAnswer(max(asked.values()) + 1000, True), wire.ReferralAnswer(0, True))
        client.send_raw(msgspec.msgpack.encode(protocol.Request(0, wire.FirewallAnswer((*given, *forged)))))
        for port in ports[:8]:
            assert outcome(made[port], 30.0) == ("open" if port % 2 == 0 else "refused"), port
        assert client.call(wire.FirewallObserve()).waiting == 4
        # casemated ends in the middle: who was not answered is dropped, and an answer of its old life opens nothing.
        client.close()
        again = hostd.wait_ready()
        late = wire.FirewallAnswer(tuple(wire.ReferralAnswer(asked[port], True) for port in ports[8:]))
        state = again.call(wire.FirewallObserve())
        assert state.counters["referral_late"] - late_before == 2
        assert state.counters["referral_away"] - away_before >= 4
        again.call(late)
        assert again.call(wire.FirewallObserve()).counters["referral_late"] - late_before == 6
        again.close()
    client.socket = hostd.wait_ready().socket


def test_nobody_to_ask_means_no(hostd: Hostd, client: Client, pods: tuple[PodSpec, PodSpec]) -> None:
    """What is open lives on, what would be referred is dropped; when casemated is back, it is asked."""
    a, b = pods
    client.call(wire.FirewallReplace(whole(pods, between(Verdict.REFER), between(Verdict.ALLOW, PORT + 1))))
    with listen(hostd, b), listen(hostd, b, PORT + 1) as open_server:
        kept = begin(hostd, a, b, PORT + 1)
        assert outcome(kept) == "open"
        server = open_server.accept()[0]
        client.close()
        assert connect(hostd, a, b, timeout_s=0.3) == "waiting"
        kept.send(b"still")
        assert server.recv(10) == b"still"
        again = hostd.wait_ready()
        with begin(hostd, a, b) as one:
            packet = again.event(wire.Referred).packets[0]
            again.call(wire.FirewallAnswer((wire.ReferralAnswer(packet.number, True),)))
            assert outcome(one) == "open"
        kept.close()
        server.close()
        again.close()
    client.socket = hostd.wait_ready().socket


def test_a_held_pod_gets_its_callers_when_it_is_released(
    hostd: Hostd, client: Client, pods: tuple[PodSpec, PodSpec]
) -> None:
    a, b = pods
    client.call(wire.PodHold(b.id, wait_s=20))
    waiting = [begin(hostd, a, b) for _ in range(5)]
    assert [outcome(one, 0.05) for one in waiting] == ["waiting"] * 5
    holding = client.call(wire.FirewallObserve()).holding
    assert [(one.pod, one.waiting) for one in holding] == [(b.id, 5)]
    with listen(hostd, b):
        released = client.call(wire.PodRelease(b.id))
        assert (released.waited, released.refused) == (5, 0)
        assert [outcome(one) for one in waiting] == ["open"] * 5
    for one in waiting:
        one.close()


def test_a_caller_whose_packet_the_kernel_dropped_waits_with_its_next(
    hostd: Hostd, client: Client, pods: tuple[PodSpec, PodSpec]
) -> None:
    """The kernel drops what is queued, of every table, when somebody takes a chain away (nf_queue, hooks)."""
    a, b = pods
    # A first packet is sent again after 1, 3 and 7 s.
    client.call(wire.PodHold(b.id, wait_s=8))
    with begin(hostd, a, b) as one, listen(hostd, b):
        assert outcome(one, 0.05) == "waiting"
        table = f"{hostd.scope.table}_other"
        script = f"table ip {table} {{ chain one {{ type filter hook input priority 0; }}; }}"
        subprocess.run(["nft", script], check=True)
        subprocess.run(["nft", f"delete table ip {table}"], check=True)
        assert outcome(one, 30.0) == "refused"
        ended = client.event(wire.HoldEnded, pod=b.id)
        assert (ended.why, ended.refused) == ("time", 1)


def test_beyond_the_bound_of_a_hold_callers_are_reset(
    hostd: Hostd, client: Client, pods: tuple[PodSpec, PodSpec]
) -> None:
    a, b = pods
    client.call(wire.PodHold(b.id, wait_s=1, limit=2))
    waiting = [begin(hostd, a, b) for _ in range(3)]
    assert [outcome(one, 0.1) for one in waiting] == ["waiting", "waiting", "refused"]
    ended = client.event(wire.HoldEnded, pod=b.id)
    assert (ended.why, ended.refused) == ("time", 3)
    assert [outcome(one) for one in waiting[:2]] == ["refused"] * 2
    for one in waiting:
        one.close()


def repaired(client: Client, line: str) -> None:
    """Wait until hostd says that it did this: others, on this host, have rules repaired in the meantime too."""
    while line not in client.event(wire.FirewallRepaired).what:
        pass


def test_a_flush_while_another_is_repaired_is_repaired_too(
    hostd: Hostd, client: Client, pods: tuple[PodSpec, PodSpec]
) -> None:
    """Right after the table is there again, before hostd has seen what the host's rules are by then."""
    a, b = pods
    client.call(wire.FirewallReplace(whole(pods, between(Verdict.ALLOW))))
    with listen(hostd, b), listen(hostd, b, PORT + 1):
        table = hostd.scope.table
        for _ in range(8):
            nft_netlink.delete_table("inet", table)
            while not nft_netlink.rules(table, nft_netlink.INET):
                pass
            nft_netlink.delete_table("inet", table)
            for _ in range(2):
                repaired(client, f"made the firewall's table inet {table} again: table inet {table} was gone")
            assert connect(hostd, a, b, PORT + 1) == "refused"


def test_somebodys_flush_is_repaired_within_a_second(
    hostd: Hostd, client: Client, pods: tuple[PodSpec, PodSpec]
) -> None:
    a, b = pods
    client.call(wire.FirewallReplace(whole(pods, between(Verdict.ALLOW))))
    with listen(hostd, b), listen(hostd, b, PORT + 1) as closed:
        # As `nft flush ruleset` does to each table; the other tables of this host are not ours to flush.
        table = hostd.scope.table
        subprocess.run(["nft", f"delete table inet {table}; delete table ip {table}"], check=True)
        at = time.monotonic()
        with begin(hostd, a, b, PORT + 1) as meanwhile:
            repaired(client, f"made the firewall's table inet {table} again: table inet {table} was gone")
            assert time.monotonic() - at < patience_s(1.0)
            if outcome(meanwhile) == "open":
                # Begun before the table was there again: it is judged at its next packet.
                meanwhile.send(b"x")
                assert read(closed) == b""
        assert connect(hostd, a, b) == "open"
        assert connect(hostd, a, b, PORT + 1) == "refused"
        subprocess.run(["nft", "flush", "chain", "inet", table, "judge"], check=True)
        repaired(client, f"made the firewall's table inet {table} again: chain judge was gone")


def test_an_element_taken_put_or_changed_by_hand_is_put_right(
    hostd: Hostd, client: Client, pods: tuple[PodSpec, PodSpec]
) -> None:
    a, b = pods
    client.call(wire.FirewallReplace(whole(pods, between(Verdict.ALLOW))))
    table = hostd.scope.table

    def by_hand(script: str) -> str:
        # hostd has counted what there is (0.3 s); a change before that is found as well, by a longer look.
        time.sleep(0.4)
        subprocess.run(["nft", script], check=True)
        at = time.monotonic()
        while True:
            # Somebody else's change of iptables' FORWARD is told in the same way.
            lines = [one for one in client.event(wire.FirewallRepaired).what if f"inet {table}" in one]
            if lines:
                # Looked at every 0.3 s; the rest is for a machine that does much else.
                assert time.monotonic() - at < patience_s(5.0)
                return lines[0]

    with listen(hostd, b):
        assert connect(hostd, a, b) == "open"
        before = listed(table)
        event = by_hand(f"flush map inet {table} exact4")
        assert "set exact4: 2 elements were gone" in event
        assert listed(table) == before
        event = by_hand(f"add element inet {table} exact4 {{ 192.0.2.9 : 0x00000101 }}")
        assert "set exact4: 1 were not ours" in event
        address = a.network.address
        event = by_hand(
            f"delete element inet {table} exact4 {{ {address} }}; add element inet {table} exact4 {{ {address} : 7 }}"
        )
        assert "set exact4: 1 elements were gone, 1 were not ours" in event
        assert listed(table) == before
        assert connect(hostd, a, b) == "open"


def test_a_rule_that_somebody_replaced_is_put_right(
    hostd: Hostd, client: Client, pods: tuple[PodSpec, PodSpec]
) -> None:
    """By another in its place, so that every number stays as it was; and a table whose hooks were taken away."""
    a, b = pods
    client.call(wire.FirewallReplace(whole(pods, between(Verdict.ALLOW))))
    table = hostd.scope.table

    def last_rule(family: str, chain: str) -> tuple[str, str]:
        """The chain's last rule, and its handle."""
        argv = ["nft", "-a", "list", "chain", family, table, chain]
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        rule, _, handle = [line for line in done.stdout.splitlines() if "# handle" in line][-1].partition(" # handle ")
        return rule.strip(), handle

    def put_right(family: str, chain: str) -> None:
        """Somebody replaces the chain's last rule; until it is there again."""
        before, handle = last_rule(family, chain)
        subprocess.run(["nft", f"replace rule {family} {table} {chain} handle {handle} accept"], check=True)
        deadline = time.monotonic() + patience_s(30.0)
        while last_rule(family, chain)[0] != before:
            assert time.monotonic() < deadline, last_rule(family, chain)
            time.sleep(0.05)

    with listen(hostd, b), listen(hostd, b, PORT + 1):
        assert connect(hostd, a, b) == "open"
        assert connect(hostd, a, b, PORT + 1) == "refused"
        # At once after a change of our own, in a chain that changes with the policy, and one after the other.
        for chain in ("port_verdict", "decide", "again_port", "port_verdict"):
            put_right("inet", chain)
            assert connect(hostd, a, b, PORT + 1) == "refused"
            assert connect(hostd, a, b) == "open"
        put_right("ip", "post")
        subprocess.run(["nft", f"add table inet {table} {{ flags dormant; }}"], check=True)
        while not any("which sleeps" in line for line in client.event(wire.FirewallRepaired).what):
            pass
        assert connect(hostd, a, b, PORT + 1) == "refused"
        assert connect(hostd, a, b) == "open"


def listed(table: str) -> list[str]:
    """The elements of the map of addresses."""
    done = subprocess.run(["nft", "list", "map", "inet", table, "exact4"], check=True, capture_output=True, text=True)
    return sorted(done.stdout.partition("elements = {")[2].replace("}", "").replace("\n", "").split(","))


def test_the_doctor_says_what_holds(hostd: Hostd, client: Client, pods: tuple[PodSpec, PodSpec]) -> None:
    client.call(wire.FirewallReplace(whole(pods)))
    lines = {one.check: one for one in client.call(protocol.Doctor()).findings}
    assert lines["firewall"].severity == "ok"
    assert "policy in force" in lines["firewall"].detail


def test_a_queue_that_somebody_else_reads_denies_and_is_told() -> None:
    with tempfile.TemporaryDirectory(prefix="cm-hostd-") as folder:
        scope = new_scope(Path(folder))
        taken = PacketQueue(first_queue(scope.table), 16)
        one = Hostd(scope)
        try:
            client = one.up()
            pods = one.pod(), one.pod()
            for pod in pods:
                client.call(protocol.PodCreate(pod))
            lines = {found.check: found for found in client.call(protocol.Doctor()).findings}
            assert lines["firewall"].severity == "error"
            client.call(wire.FirewallReplace(whole(pods, between(Verdict.REFER))))
            with listen(one, pods[1]):
                assert connect(one, *pods, timeout_s=0.2) == "waiting"
                assert not taken.receive(0)
            for pod in pods:
                client.call(protocol.PodRemove(pod.id, force=True))
            client.close()
        finally:
            taken.close()
            one.clean()


def test_a_killed_hostd_leaves_the_firewall_as_it_was_and_goes_on(
    hostd: Hostd, client: Client, pods: tuple[PodSpec, PodSpec]
) -> None:
    a, b = pods
    now = client.call(wire.FirewallReplace(whole(pods, between(Verdict.ALLOW))))
    change = pack(Transaction("more", adds=(between(Verdict.ALLOW, PORT + 1),)))
    now = client.call(wire.FirewallChange(now.generation, change))
    with listen(hostd, b), listen(hostd, b, PORT + 1):
        client.close()
        hostd.kill()
        assert connect(hostd, a, b) == "open"
        assert connect(hostd, a, b, PORT + 2) == "refused"
        hostd.start()
        again = hostd.wait_ready()
        assert again.call(wire.FirewallObserve()).generation == now.generation
        assert connect(hostd, a, b, PORT + 1) == "open"
        again.close()
        hostd.kill()
        # While it is away somebody takes the table: its start makes it from the record.
        subprocess.run(["nft", "delete", "table", "inet", hostd.scope.table], check=True)
        hostd.start()
        again = hostd.wait_ready()
        assert again.call(wire.FirewallObserve()).generation == now.generation
        assert connect(hostd, a, b, PORT + 1) == "open"
        assert connect(hostd, a, b, PORT + 2) == "refused"
    client.socket = again.socket
