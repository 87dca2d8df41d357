"""The relay's site, for its tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.node.keeping.relay_site import Site

from casemate.node.keeping.relay import Relay


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
    relay.listen(listener)
    relay.hostd.talk_to(theirs)
    yield one
    for pair in list(relay.pairs):
        pair.reset()
    relay.close()
    for left in (*one.sockets, ours, pod):
        left.close()
