"""The relay's bounds, and what hostd, a pod or a fault of its own may do to it."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Iterator

import pytest
from tests.unit.node.keeping.relay_site import Site, gone, is_reset, passes

from casemate.hostd.protocol_keeping import GIVEN_LISTENER, RELAY_ANSWER
from casemate.node.keeping import hostdlink, wire
from casemate.node.keeping import relay as relay_module
from casemate.node.keeping.hostdlink import ASK_S
from casemate.node.keeping.pair import (
    DOUBT_S,
    MAX_OPENINGS,
    OPEN,
    OPEN_S,
    PARKED,
    QUIET_S,
    STUCK_S,
)


def test_bounds(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "MAX_OF_CLIENT", 1)
    first, beyond = site.client(), site.client()
    site.turn()
    assert site.relay.counted == {"accepted": 1, "refused": 1}
    assert [is_reset(one) for one in (beyond,)] == [True]
    first.close()


def test_a_hostd_that_does_not_answer(site: Site) -> None:
    client = site.client()
    site.turn()
    site.later(ASK_S + 1)
    assert is_reset(client)


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
    assert is_reset(client)
    site.hostd.setblocking(False)
    with pytest.raises(BlockingIOError):
        site.hostd.recv(64)


def test_a_hostd_that_went_away_is_not_waited_for(site: Site) -> None:
    site.hostd.close()
    site.turn()
    client = site.client()
    site.turn()
    assert not site.relay.hostd.is_up
    site.later(ASK_S + 0.1)
    assert is_reset(client)


def test_hostd_is_asked_for_a_bounded_number_at_a_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait until there is room for its answers: what it could not say would be waited for."""
    monkeypatch.setattr(hostdlink, "MAX_ASKED", 1)
    clients = [site.client() for _ in range(2)]
    site.turn()
    assert len(site.relay.hostd._asked) == 1
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
    assert gone(site.accept())
    site.answer()
    site.turn()
    assert site.accept().recv(100) == b"question"


def test_a_relay_that_is_behind_sees_the_end_before_it_goes_on(site: Site) -> None:
    client, pod = site.connected()
    passes(site, client, pod, b"q")
    site.hold(drain_s=0.0)
    pod.sendall(b"whole")
    pod.close()
    site.relay.on_message(wire.Resume(site.address[0]))
    site.turn()
    site.answer()
    site.turn()
    assert client.recv(100) == b"whole"
    passes(site, client, site.accept(), b"next")


def test_what_a_pod_never_read_is_not_waited_for(site: Site) -> None:
    """Two questions, one answer, and a reset of the kernel's: the second was in its queue."""
    client, pod = site.connected()
    client.sendall(b"one")
    site.turn()
    client.sendall(b"two")
    site.turn()
    assert pod.recv(3) == b"one"
    passes(site, pod, client, b"answer of one")
    site.hold()
    site.later(2 * QUIET_S)
    pod.close()
    site.turn()
    site.resume()
    site.answer()
    site.later(0.1)
    site.later(DOUBT_S + 1.1)
    assert is_reset(client)


def test_an_answer_before_the_whole_question_does_not_move(site: Site) -> None:
    """What of the question the pod had not taken yet would be lost without a word."""
    site.relay.on_message(wire.KeptPorts(((*site.address, True),)))
    client, pod = site.connected()
    client.setblocking(False)
    (pair,) = site.relay.pairs
    while not pair.to_pod:
        with contextlib.suppress(BlockingIOError):
            client.send(bytes(65536))
        site.turn(4)
    client.settimeout(2.0)
    passes(site, pod, client, b"too much")
    site.hold(drain_s=0.0)
    pod.close()
    site.turn()
    assert is_reset(client)


def test_nobody_waits_for_a_fault_of_the_relays_own(site: Site) -> None:
    """Held though there is no hold; bytes of a connection that is not watched."""
    held, _ = site.connected()
    (pair,) = site.relay.pairs
    pair.hold()
    site.later(1.1)
    assert is_reset(held)
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
    passes(site, client, other, b"q")
    passes(site, other, client, b"a")
    (pair,) = site.relay.pairs
    site.relay._epoll.unregister(pair.client.fileno())
    client.sendall(b"unseen")
    for _ in range(int(STUCK_S) + 1):
        assert site.relay.pairs
        site.later(1.1)
    assert not site.relay.pairs
    assert is_reset(client)


@pytest.mark.parametrize("data", [b"", b"x", bytes(9), bytes(64), RELAY_ANSWER.pack(0, GIVEN_LISTENER)])
def test_a_hostd_that_says_nonsense_is_not_listened_to(site: Site, data: bytes) -> None:
    site.hostd.send(data) if data else site.hostd.close()
    site.turn()
    assert not site.relay.hostd.is_up


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


def test_it_goes_on_without_daemons_as_long_as_something_is_open(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.relay, "_is_heard", lambda: False)
    client, pod = site.connected()
    site.hostd.close()
    site.turn()
    site.later(10 * relay_module.LINGER_S)
    passes(site, client, pod, b"alone")
    assert not site.relay.ended
    client.close()
    pod.close()
    site.turn()
    site.later(relay_module.LINGER_S - 0.1)
    assert not site.relay.ended, "a daemon may be about to come back"
    site.later(1.2)
    assert site.relay.ended


def test_who_is_in_the_backlog_of_the_last_listener_is_served(site: Site) -> None:
    client = site.client()
    given = socket.create_server(("127.0.0.1", 0))
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [given.fileno()]))]
    site.hostd.sendmsg([RELAY_ANSWER.pack(0, GIVEN_LISTENER)], beside)
    given.close()
    site.turn()
    site.answer()
    site.turn()
    with site.accept() as pod:
        passes(site, client, pod, b"served")


def test_a_pod_that_is_gone_ends_its_connections(site: Site) -> None:
    site.relay.on_message(wire.KeptPorts(((*site.address, False),)))
    client, _ = site.connected()
    site.relay.on_message(wire.KeptPorts(()))
    assert is_reset(client)


def test_who_is_connected_is_told(site: Site) -> None:
    site.relay.on_message(wire.Ask())
    assert site.of(wire.Connected) == [wire.Connected((), True)]
    site.connected()
    site.relay.on_message(wire.Ask())
    assert site.of(wire.Connected)[-1] == wire.Connected((("127.0.0.1", *site.address),), True)
