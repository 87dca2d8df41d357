"""The relay over real sockets of this process, a clock of the test's own, and a hostd that the test plays."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from casemate.hostd.protocol_keeping import RELAY_ANSWER, RELAY_REQUEST
from casemate.node.keeping import relay as relay_module
from casemate.node.keeping import wire
from casemate.node.keeping.pair import (
    DOUBT_S,
    GONE,
    IN,
    MAX_OPENINGS,
    MAX_REPLAY_BYTES,
    OPEN,
    OPEN_S,
    PARKED,
    QUIET_S,
    STUCK_S,
    reset,
)
from casemate.node.keeping.relay import Relay

TURNS = 50


@dataclass
class Site:
    """A relay with its listener, hostd's end of its channel, and the pod's listener."""

    relay: Relay
    told: list[Any]
    hostd: socket.socket
    pod: socket.socket
    address: tuple[str, int]
    clock: list[float]
    sockets: list[socket.socket] = field(default_factory=list)

    def later(self, seconds: float) -> None:
        self.clock[0] += seconds
        self.turn()

    def turn(self, count: int = TURNS) -> None:
        for _ in range(count):
            self.relay.turn(0)

    def client(self) -> socket.socket:
        one = socket.create_connection(self.address)
        self.sockets.append(one)
        one.settimeout(2.0)
        return one

    def answer(self, why: int = 0, *, number: int | None = None, to: socket.socket | None = None) -> None:
        """Answer the next request, with a connection to the pod (or *to* another listener) that has begun."""
        data, beside, _, _ = self.hostd.recvmsg(64, socket.CMSG_SPACE(4))
        for _, _, content in beside:
            os.close(array.array("i", content)[0])
        asked = RELAY_REQUEST.unpack(data)[0] if number is None else number
        fds: list[tuple[int, int, bytes | array.array[int]]] = []
        made = None
        if not why:
            made = socket.socket()
            made.setblocking(to is None)
            with contextlib.suppress(BlockingIOError):
                made.connect((to or self.pod).getsockname())
            fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fileno()]))]
        self.hostd.sendmsg([RELAY_ANSWER.pack(asked, why)], fds)
        if made is not None:
            made.close()

    def accept(self) -> socket.socket:
        one, _ = self.pod.accept()
        self.sockets.append(one)
        one.settimeout(2.0)
        return one

    def connected(self) -> tuple[socket.socket, socket.socket]:
        """A client and the pod's side of its connection."""
        client = self.client()
        self.turn()
        self.answer()
        self.turn()
        return client, self.accept()

    def of(self, kind: type) -> list[Any]:
        return [one for one in self.told if isinstance(one, kind)]

    def hold(self, **fields: Any) -> None:
        values = {"wait_s": 10.0, "drain_s": 1.0, "limit": 100, **fields}
        self.relay.on_message(wire.Hold(self.address[0], **values), [])
        self.turn()

    def resume(self, **fields: Any) -> None:
        self.relay.on_message(wire.Resume(self.address[0], **fields), [])
        self.turn()


@pytest.fixture
def site() -> Iterator[Site]:
    told: list[Any] = []
    clock = [100.0]
    relay = Relay(told.append, lambda: clock[0])
    listener = socket.create_server(("127.0.0.1", 0))
    pod = socket.create_server(("127.0.0.1", 0))
    pod.settimeout(2.0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(2.0)
    one = Site(relay, told, ours, pod, listener.getsockname(), clock)
    relay.listen(listener.detach(), theirs.detach())
    yield one
    for pair in list(relay.pairs):
        pair.reset()
    relay.close()
    for left in (*one.sockets, ours, pod):
        left.close()


def _passes(site: Site, source: socket.socket, sink: socket.socket, data: bytes) -> None:
    source.sendall(data)
    site.turn()
    assert sink.recv(len(data)) == data


def _is_reset(one: socket.socket) -> bool:
    try:
        one.recv(100)
    except ConnectionResetError:
        return True
    return False


def test_bytes_and_ends_pass_both_ways(site: Site) -> None:
    client, pod = site.connected()
    _passes(site, client, pod, b"question")
    _passes(site, pod, client, b"answer")
    client.shutdown(socket.SHUT_WR)
    site.turn()
    assert pod.recv(10) == b""
    _passes(site, pod, client, b"more")
    pod.close()
    site.turn()
    assert client.recv(10) == b""
    assert not site.relay.pairs


def test_a_pod_that_cannot_be_reached_is_a_reset(site: Site) -> None:
    client = site.client()
    site.turn()
    site.answer(why=111)
    site.turn()
    assert _is_reset(client)
    assert site.relay.counted["failed"] == 1


def test_a_slow_reader_stops_the_sender_and_nothing_grows(site: Site) -> None:
    client, pod = site.connected()
    pod.setblocking(False)
    sent = 0
    for _ in range(1000):
        try:
            sent += pod.send(bytes(65536))
        except BlockingIOError:
            site.turn(4)
            if site.relay.pairs and any(pair.to_client for pair in site.relay.pairs):
                break
    (pair,) = site.relay.pairs
    assert 0 < len(pair.to_client) <= relay_module._BUFFER_BYTES
    got = 0
    while got < sent:
        got += len(client.recv(1 << 20))
        site.turn(4)
    assert got == sent


def test_what_is_quiet_moves(site: Site) -> None:
    client, pod = site.connected()
    _passes(site, client, pod, b"q")
    _passes(site, pod, client, b"a")
    site.hold()
    assert not site.of(wire.Drained), "an answer may go on"
    site.later(2 * QUIET_S)
    assert site.of(wire.Drained) == [wire.Drained(site.address[0], 1, 0)]
    client.sendall(b"while it is held")
    site.turn()
    pod.close()
    site.turn()
    site.resume()
    site.answer()
    site.turn()
    other = site.accept()
    assert other.recv(100) == b"while it is held"
    site.later(0.1)
    assert site.of(wire.Resumed) == [wire.Resumed(site.address[0], 1, 0, 0)]


@pytest.mark.parametrize("replay", [True, False])
def test_what_was_not_answered(site: Site, replay: bool) -> None:
    site.relay.on_message(wire.KeptPorts(((*site.address, replay),)), [])
    client, pod = site.connected()
    _passes(site, client, pod, b"asked ")
    _passes(site, client, pod, b"twice")
    site.hold()
    site.later(2.0)
    assert site.of(wire.Drained) == [wire.Drained(site.address[0], 0, 1)]
    pod.close()
    site.turn()
    if not replay:
        assert _is_reset(client)
        return
    site.resume()
    site.answer()
    site.turn()
    assert site.accept().recv(100) == b"asked twice"
    site.later(0.1)
    assert site.of(wire.Resumed) == [wire.Resumed(site.address[0], 1, 1, 0)]


def test_too_much_to_be_asked_again_is_a_reset(site: Site) -> None:
    site.relay.on_message(wire.KeptPorts(((*site.address, True),)), [])
    client, pod = site.connected()
    client.setblocking(False)
    sent = 0
    while sent <= MAX_REPLAY_BYTES:
        sent += client.send(bytes(65536))
        site.turn(4)
        pod.recv(1 << 20)
    client.settimeout(2.0)
    assert site.relay._kept_bytes == 0
    site.hold()
    site.later(2.0)
    pod.close()
    site.turn()
    assert _is_reset(client)


def test_an_answer_that_is_cut_off_is_no_whole_one(site: Site) -> None:
    """Its process is killed in the middle of it: a client that says nothing more gets a reset, and no silence."""
    client, pod = site.connected()
    _passes(site, client, pod, b"q")
    _passes(site, pod, client, b"half an ")
    site.hold(drain_s=0.0)
    assert site.of(wire.Drained) == [wire.Drained(site.address[0], 0, 1)]
    pod.close()
    site.turn()
    site.resume()
    site.answer()
    site.turn()
    site.later(DOUBT_S - 0.1)
    assert len(site.relay.pairs) == 1
    site.later(1.2)
    assert _is_reset(client)


def test_a_client_that_asks_again_had_its_answer(site: Site) -> None:
    client, pod = site.connected()
    _passes(site, client, pod, b"q")
    _passes(site, pod, client, b"whole")
    site.hold(drain_s=0.0)
    pod.close()
    site.turn()
    site.resume()
    site.answer()
    site.turn()
    other = site.accept()
    _passes(site, client, other, b"next")
    site.later(2 * DOUBT_S)
    _passes(site, other, client, b"answer")


def test_a_question_that_is_half_asked_is_asked_to_its_end(site: Site) -> None:
    client, pod = site.connected()
    _passes(site, client, pod, b"half a ")
    site.hold()
    _passes(site, client, pod, b"question")
    _passes(site, pod, client, b"answer")
    client.sendall(b"another")
    site.later(2 * QUIET_S)
    assert site.of(wire.Drained) == [wire.Drained(site.address[0], 1, 0)]
    pod.setblocking(False)
    with pytest.raises(BlockingIOError):
        pod.recv(100)


def test_an_end_before_the_stop_is_the_pods_own(site: Site) -> None:
    client, pod = site.connected()
    _passes(site, client, pod, b"q")
    _passes(site, pod, client, b"until the end")
    site.hold()
    pod.close()
    site.turn()
    assert client.recv(10) == b""


def test_time_and_count_end_in_a_reset(site: Site) -> None:
    first, _ = site.connected()
    second, _ = site.connected()
    site.hold(limit=1)
    assert len(site.relay.pairs) == 1
    site.later(11.0)
    assert _is_reset(first)
    assert _is_reset(second)
    assert site.relay.counted["reset"] == 2
    late = site.client()
    site.turn()
    site.answer()
    site.turn()
    assert site.accept()
    assert late.send(b"x") == 1, "nothing is held any more"


def test_what_comes_while_it_is_held_waits_too(site: Site) -> None:
    site.hold()
    client = site.client()
    client.sendall(b"early")
    site.turn()
    site.answer()
    site.turn()
    site.pod.setblocking(False)
    site.resume()
    site.turn()
    site.answer()
    site.turn()
    # The connection that came while it was held was given back.
    peers = [site.accept(), site.accept()]
    assert [one.recv(10) for one in peers if not _gone(one)] == [b"early"]


def test_what_comes_while_others_go_on_does_not_wait(site: Site) -> None:
    _, pod = site.connected()
    site.hold()
    site.later(1.0)
    pod.close()
    site.turn()
    site.resume()
    client = site.client()
    client.sendall(b"new")
    site.turn()
    for _ in range(2):
        site.answer()
    site.later(0.1)
    peers = [site.accept(), site.accept()]
    site.later(0.1)
    assert [one.recv(10) for one in peers if _has(one)] == [b"new"]


def _has(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return bool(one.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def _gone(one: socket.socket) -> bool:
    one.settimeout(0.2)
    try:
        return one.recv(1, socket.MSG_PEEK) == b""
    except (ConnectionResetError, TimeoutError):
        return True


def test_a_cut_takes_whom_it_names(site: Site) -> None:
    client, pod = site.connected()
    for cut in (wire.Cut("192.0.2.1", site.address[0]), wire.Cut("", site.address[0], 1), wire.Cut("", "192.0.2.1")):
        site.relay.on_message(cut, [])
        assert len(site.relay.pairs) == 1
    site.relay.on_message(wire.Cut("127.0.0.1", site.address[0], site.address[1]), [])
    assert _is_reset(client)
    assert _is_reset(pod)


def test_a_number_that_is_used_again_gets_no_event_of_another(site: Site) -> None:
    """In one turn a connection is reset and another accepted: the kernel gives it the number that became free."""
    _, pod = site.connected()
    (pair,) = site.relay.pairs
    number, listener = pair.client.fileno(), site.relay._listener
    assert pair.pod
    assert listener
    reset(pod)
    new = site.client()
    events = [(pair.pod.fileno(), GONE | IN), (listener.fileno(), IN), (number, GONE)]
    site.relay._epoll = _Epoll(site.relay._epoll, events)  # type: ignore[assignment]
    site.relay.turn(0)
    assert [one.peer for one in site.relay.pairs] == [new.getsockname()]
    assert [one.client.fileno() for one in site.relay.pairs] == [number]


class _Epoll:
    """An epoll that tells of *events*, in their order."""

    def __init__(self, real: Any, events: list[tuple[int, int]]) -> None:
        self._real, self._events = real, events

    def poll(self, *_: object) -> list[tuple[int, int]]:
        told, self._events = self._events, []
        return told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_bounds(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "MAX_OF_CLIENT", 1)
    first, beyond = site.client(), site.client()
    site.turn()
    assert site.relay.counted == {"accepted": 1, "refused": 1}
    assert [_is_reset(one) for one in (beyond,)] == [True]
    first.close()


def test_a_hostd_that_does_not_answer(site: Site) -> None:
    client = site.client()
    site.turn()
    site.later(relay_module.ASK_S + 1)
    assert _is_reset(client)


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A listener whose queue is full: the kernel answers no first packet to it."""
    with socket.socket() as one, contextlib.ExitStack() as stack:
        one.bind(("127.0.0.1", 0))
        one.listen(0)
        for _ in range(8):
            other = stack.enter_context(socket.socket())
            other.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                other.connect(one.getsockname())
        yield one


def test_a_first_packet_that_is_lost_is_sent_anew(site: Site, silent: socket.socket) -> None:
    client, pod = site.connected()
    site.hold()
    site.later(2 * QUIET_S)
    client.sendall(b"while it is held")
    pod.close()
    site.turn()
    site.resume()
    for _ in range(2):
        site.answer(to=silent)
        site.turn()
        site.later(OPEN_S + 0.1)
    site.answer()
    site.turn()
    assert site.accept().recv(100) == b"while it is held"
    site.later(0.1)
    assert site.of(wire.Resumed) == [wire.Resumed(site.address[0], 1, 0, 0)]


def test_a_pod_that_says_nothing_is_a_reset(site: Site, silent: socket.socket) -> None:
    """And no silence until the kernel gives up, after two minutes."""
    client = site.client()
    site.turn()
    for _ in range(MAX_OPENINGS):
        site.answer(to=silent)
        site.turn()
        site.later(OPEN_S + 0.1)
    assert _is_reset(client)
    site.hostd.setblocking(False)
    with pytest.raises(BlockingIOError):
        site.hostd.recv(64)


def test_a_hostd_that_went_away_is_not_waited_for(site: Site) -> None:
    site.hostd.close()
    site.turn()
    client = site.client()
    site.turn()
    assert site.relay._hostd is None
    site.later(relay_module.ASK_S + 0.1)
    assert _is_reset(client)


def test_hostd_is_asked_for_a_bounded_number_at_a_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait until there is room for its answers: what it could not say would be waited for."""
    monkeypatch.setattr(relay_module, "MAX_ASKED", 1)
    clients = [site.client() for _ in range(2)]
    site.turn()
    assert len(site.relay._asked) == 1
    for client in clients:
        site.answer()
        site.turn()
        site.accept()
        assert client.send(b"x") == 1
    assert {pair.state for pair in site.relay.pairs} == {OPEN}


def test_an_answer_from_before_it_went_on_is_not_used(site: Site) -> None:
    """hostd connected to the process that is gone, and said so after the next was there."""
    client = site.client()
    site.turn()
    site.hold()
    site.later(2 * QUIET_S)
    site.resume()
    client.sendall(b"question")
    site.answer()
    site.turn()
    assert _gone(site.accept())
    site.answer()
    site.turn()
    assert site.accept().recv(100) == b"question"


def test_a_relay_that_is_behind_sees_the_end_before_it_goes_on(site: Site) -> None:
    client, pod = site.connected()
    _passes(site, client, pod, b"q")
    site.hold(drain_s=0.0)
    pod.sendall(b"whole")
    pod.close()
    site.relay.on_message(wire.Resume(site.address[0]), [])
    site.turn()
    site.answer()
    site.turn()
    assert client.recv(100) == b"whole"
    _passes(site, client, site.accept(), b"next")


def test_what_a_pod_never_read_is_not_waited_for(site: Site) -> None:
    """Two questions, one answer, and a reset of the kernel's: the second was in its queue."""
    client, pod = site.connected()
    client.sendall(b"one")
    site.turn()
    client.sendall(b"two")
    site.turn()
    assert pod.recv(3) == b"one"
    _passes(site, pod, client, b"answer of one")
    site.hold()
    site.later(2 * QUIET_S)
    pod.close()
    site.turn()
    site.resume()
    site.answer()
    site.later(0.1)
    site.later(DOUBT_S + 1.1)
    assert _is_reset(client)


def test_an_answer_before_the_whole_question_does_not_move(site: Site) -> None:
    """What of the question the pod had not taken yet would be lost without a word."""
    site.relay.on_message(wire.KeptPorts(((*site.address, True),)), [])
    client, pod = site.connected()
    client.setblocking(False)
    (pair,) = site.relay.pairs
    while not pair.to_pod:
        with contextlib.suppress(BlockingIOError):
            client.send(bytes(65536))
        site.turn(4)
    client.settimeout(2.0)
    _passes(site, pod, client, b"too much")
    site.hold(drain_s=0.0)
    pod.close()
    site.turn()
    assert _is_reset(client)


def test_nobody_waits_for_a_fault_of_the_relays_own(site: Site) -> None:
    """Held though there is no hold; bytes of a connection that is not watched."""
    held, _ = site.connected()
    (pair,) = site.relay.pairs
    pair.hold()
    site.later(1.1)
    assert _is_reset(held)
    client, pod = site.connected()
    site.hold()
    site.later(2 * QUIET_S)
    pod.close()
    site.turn()
    assert [one.state for one in site.relay.pairs] == [PARKED]
    site.resume()
    site.answer()
    site.turn()
    other = site.accept()
    _passes(site, client, other, b"q")
    _passes(site, other, client, b"a")
    (pair,) = site.relay.pairs
    site.relay._epoll.unregister(pair.client.fileno())
    client.sendall(b"unseen")
    for _ in range(int(STUCK_S) + 1):
        assert site.relay.pairs
        site.later(1.1)
    assert not site.relay.pairs
    assert _is_reset(client)


@pytest.mark.parametrize("data", [b"", b"x", bytes(9), bytes(64)])
def test_a_hostd_that_says_nonsense_is_not_listened_to(site: Site, data: bytes) -> None:
    site.hostd.send(data) if data else site.hostd.close()
    site.turn()
    assert site.relay._hostd is None


def test_an_answer_that_nobody_waits_for_leaks_nothing(site: Site) -> None:
    client = site.client()
    site.turn()
    before = len(os.listdir("/proc/self/fd"))
    site.answer(number=77)
    site.turn()
    site.accept().close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert [pair.state for pair in site.relay.pairs] != [OPEN]
    client.close()


def test_a_pod_that_is_gone_ends_its_connections(site: Site) -> None:
    site.relay.on_message(wire.KeptPorts(((*site.address, False),)), [])
    client, _ = site.connected()
    site.relay.on_message(wire.KeptPorts(()), [])
    assert _is_reset(client)


def test_who_is_connected_is_told(site: Site) -> None:
    site.relay.on_message(wire.Ask(), [])
    assert site.of(wire.Connected) == [wire.Connected((), True)]
    site.connected()
    site.relay.on_message(wire.Ask(), [])
    assert site.of(wire.Connected)[-1] == wire.Connected((("127.0.0.1", *site.address),), True)
