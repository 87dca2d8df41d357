"""The relay over real sockets of this process: what passes, moves, waits and ends."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from tests.unit.node.keeping.relay_site import Site, gone, is_reset, passes

from casemate.node.keeping import relay as relay_module
from casemate.node.keeping import wire
from casemate.node.keeping.pair import (
    DOUBT_S,
    GONE,
    IN,
    MAX_REPLAY_BYTES,
    QUIET_S,
    reset,
)


def test_bytes_and_ends_pass_both_ways(site: Site) -> None:
    client, pod = site.connected()
    passes(site, client, pod, b"question")
    passes(site, pod, client, b"answer")
    client.shutdown(socket.SHUT_WR)
    site.turn()
    assert pod.recv(10) == b""
    passes(site, pod, client, b"more")
    pod.close()
    site.turn()
    assert client.recv(10) == b""
    assert not site.relay.pairs


def test_a_pod_that_cannot_be_reached_is_a_reset(site: Site) -> None:
    client = site.client()
    site.turn()
    site.answer(why=111)
    site.turn()
    assert is_reset(client)
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
    passes(site, client, pod, b"q")
    passes(site, pod, client, b"a")
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
    site.relay.on_message(wire.KeptPorts(((*site.address, replay),)))
    client, pod = site.connected()
    passes(site, client, pod, b"asked ")
    passes(site, client, pod, b"twice")
    site.hold()
    site.later(2.0)
    assert site.of(wire.Drained) == [wire.Drained(site.address[0], 0, 1)]
    pod.close()
    site.turn()
    if not replay:
        assert is_reset(client)
        return
    site.resume()
    site.answer()
    site.turn()
    assert site.accept().recv(100) == b"asked twice"
    site.later(0.1)
    assert site.of(wire.Resumed) == [wire.Resumed(site.address[0], 1, 1, 0)]


def test_too_much_to_be_asked_again_is_a_reset(site: Site) -> None:
    site.relay.on_message(wire.KeptPorts(((*site.address, True),)))
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
    assert is_reset(client)


def test_an_answer_that_is_cut_off_is_no_whole_one(site: Site) -> None:
    """Its process is killed in the middle of it: a client that says nothing more gets a reset, and no silence."""
    client, pod = site.connected()
    passes(site, client, pod, b"q")
    passes(site, pod, client, b"half an ")
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
    assert is_reset(client)


def test_a_client_that_asks_again_had_its_answer(site: Site) -> None:
    client, pod = site.connected()
    passes(site, client, pod, b"q")
    passes(site, pod, client, b"whole")
    site.hold(drain_s=0.0)
    pod.close()
    site.turn()
    site.resume()
    site.answer()
    site.turn()
    other = site.accept()
    passes(site, client, other, b"next")
    site.later(2 * DOUBT_S)
    passes(site, other, client, b"answer")


def test_a_question_that_is_half_asked_is_asked_to_its_end(site: Site) -> None:
    client, pod = site.connected()
    passes(site, client, pod, b"half a ")
    site.hold()
    passes(site, client, pod, b"question")
    passes(site, pod, client, b"answer")
    client.sendall(b"another")
    site.later(2 * QUIET_S)
    assert site.of(wire.Drained) == [wire.Drained(site.address[0], 1, 0)]
    pod.setblocking(False)
    with pytest.raises(BlockingIOError):
        pod.recv(100)


def test_an_end_before_the_stop_is_the_pods_own(site: Site) -> None:
    client, pod = site.connected()
    passes(site, client, pod, b"q")
    passes(site, pod, client, b"until the end")
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
    assert is_reset(first)
    assert is_reset(second)
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
    assert [one.recv(10) for one in peers if not gone(one)] == [b"early"]


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


def test_a_cut_takes_whom_it_names(site: Site) -> None:
    client, pod = site.connected()
    for cut in (wire.Cut("192.0.2.1", site.address[0]), wire.Cut("", site.address[0], 1), wire.Cut("", "192.0.2.1")):
        site.relay.on_message(cut)
        assert len(site.relay.pairs) == 1
    site.relay.on_message(wire.Cut("127.0.0.1", site.address[0], site.address[1]))
    assert is_reset(client)
    assert is_reset(pod)


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
