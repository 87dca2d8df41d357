"""The relay's channel to casemate-hostd, which begins each connection to a pod and gives what the relay works with.

A request is a number with the client's socket beside it, an answer the same number with the pod's. hostd may go away
and come back as another process at any time; a pair asks again, and nobody waits for it beyond :data:`ASK_S`.
"""

from __future__ import annotations

import array
import socket
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from casemate.hostd.protocol_keeping import GIVEN_CASEMATED, GIVEN_LISTENER, RELAY_ANSWER, RELAY_REQUEST
from casemate.node.keeping.pair import WAITING, Pair, reset

#: How long hostd may take to begin a connection.
ASK_S = 5.0
#: Requests without an answer at a time: hostd does not wait until there is room for its answers.
MAX_ASKED = 64
_ANSWERS_A_TURN = 64


class Loop(Protocol):
    """What the channel needs of the relay around it."""

    now: float
    counted: Counter[str]
    on_casemated: Callable[[socket.socket], None]

    def add(self, number: int, handler: Callable[[int, int], None]) -> None:
        """Have *handler* called when the descriptor *number* can be read."""

    def unwatch(self, number: int) -> None:
        """The descriptor is closed next."""

    def listen(self, listener: socket.socket) -> None:
        """Accept from another listener from now on."""

    def expect(self, pair: Pair, within_s: float) -> None:
        """Call the pair's ``late`` unless this is called again within that time."""


class HostdLink:
    """Asks for the pod's end of each pair, :data:`MAX_ASKED` at a time."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._hostd: socket.socket | None = None
        self._number = 0
        self._asked: dict[int, tuple[Pair, float]] = {}
        self._to_ask: deque[Pair] = deque()

    @property
    def is_up(self) -> bool:
        return self._hostd is not None

    @property
    def is_waiting(self) -> bool:
        """Whether a pair waits for an answer, or to be asked for."""
        return bool(self._asked or self._to_ask)

    def close(self) -> None:
        if self._hostd is not None:
            self._hostd.close()

    def talk_to(self, hostd: socket.socket) -> None:
        """Ask another casemate-hostd from now on."""
        self._lost()
        hostd.setblocking(False)
        self._hostd = hostd
        self._loop.add(hostd.fileno(), self._on_answers)
        # What the last hostd was asked it does not answer any more.
        for pair, _ in self._asked.values():
            pair.asking = 0
            self._to_ask.append(pair)
        self._asked.clear()
        self._send()

    def ask(self, pair: Pair) -> None:
        """Have hostd connect to the pod for *pair*; answered by its ``connected``, ``failed`` or ``late``."""
        # Whether hostd is there or not.
        self._loop.expect(pair, ASK_S)
        pair.asking = 0
        self._to_ask.append(pair)
        self._send()

    def look(self) -> None:
        """Give up what was not answered in time, which makes room for others."""
        for number in [one for one, (_, until) in self._asked.items() if until <= self._loop.now]:
            # Its pair is late by then, or has another.
            del self._asked[number]
        self._send()

    def _send(self) -> None:
        while self._to_ask and self._hostd is not None and len(self._asked) < MAX_ASKED:
            pair = self._to_ask[0]
            if pair.state != WAITING or pair.asking:
                self._to_ask.popleft()
                continue
            self._number = self._number % 0xFFFFFFFF + 1
            beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pair.client.fileno()]))]
            try:
                self._hostd.sendmsg([RELAY_REQUEST.pack(self._number)], beside, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:
                self._lost()
                return
            self._to_ask.popleft()
            self._asked[self._number] = pair, self._loop.now + ASK_S
            pair.asking = self._number

    def _lost(self) -> None:
        """casemate-hostd went away, or hung up: it finds this process again; nobody waits for long."""
        gone, self._hostd = self._hostd, None
        if gone is not None:
            self._loop.unwatch(gone.fileno())
            gone.close()

    def _on_answers(self, _number: int, _events: int) -> None:
        for _ in range(_ANSWERS_A_TURN):
            if self._hostd is None:
                return
            try:
                data, beside, _, _ = self._hostd.recvmsg(64, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data, beside = b"", []
            if len(data) != RELAY_ANSWER.size:
                self._lost()
                return
            number, why = RELAY_ANSWER.unpack(data)
            found = [array.array("i", content[:4])[0] for _, kind, content in beside if kind == socket.SCM_RIGHTS]
            if number:
                self._answered(number, why, found)
            else:
                self._given(why, [socket.socket(fileno=one) for one in found])

    def _answered(self, number: int, why: int, found: list[int]) -> None:
        pair, _ = self._asked.pop(number, (None, 0.0))
        if pair is None or pair.state != WAITING or pair.asking != number:
            for one in found:
                reset(socket.socket(fileno=one))
        elif why or not found:
            self._loop.counted["failed"] += 1
            pair.failed()
        else:
            pair.connected(socket.socket(fileno=found[0]))
        self._send()

    def _given(self, kind: int, sockets: list[socket.socket]) -> None:
        """hostd gives a listener, or a channel to casemated; the second is acknowledged."""
        if len(sockets) != 1:
            self._lost()
        elif kind == GIVEN_LISTENER:
            self._loop.listen(sockets[0])
        elif kind == GIVEN_CASEMATED:
            self._loop.on_casemated(sockets[0])
            try:
                assert self._hostd is not None
                self._hostd.send(RELAY_REQUEST.pack(0), socket.MSG_NOSIGNAL)
            except OSError:
                self._lost()
        else:
            sockets[0].close()
            self._lost()
