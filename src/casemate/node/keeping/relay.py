"""The relay of kept connections: a loop over sockets, the holds in force, and what it may hold at most.

Its own loop on epoll and not asyncio's: a round trip through it is the price of every kept connection, and half of it
would be the loop's.
"""

from __future__ import annotations

import array
import contextlib
import errno
import select
import socket
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from casemate.hostd.protocol_keeping import GIVEN_CASEMATED, GIVEN_LISTENER, RELAY_ANSWER, RELAY_REQUEST
from casemate.node.keeping import wire
from casemate.node.keeping.pair import OPEN, OVER, WAITING, Pair, prepare, reset
from casemate.node.keeping.wire import Address

#: Connections of all pods, to one port, and of one client to one port.
MAX_PAIRS, MAX_OF_PORT, MAX_OF_CLIENT = 8192, 4096, 1024
#: Bytes that are kept to be asked again, of all connections.
MAX_KEPT_BYTES = 64 << 20
#: How long hostd may take to begin a connection.
ASK_S = 5.0
#: Requests without an answer at a time: hostd does not wait until there is room for its answers.
MAX_ASKED = 64
_ACCEPTS_A_TURN = 64
_EVENTS_A_TURN = 512
_BUFFER_BYTES = 256 << 10
_TELL_S = 1.0
#: Looks at what is under way while a hold begins.
_DRAIN_LOOK_S = 0.005
_TIMERS_S = 0.05
#: Nobody left to work for, and no connection: so long it waits for a daemon that is being started anew.
LINGER_S = 3.0


T = TypeVar("T")


@dataclass(slots=True)
class _Hold:
    """A hold in force; *drain_until* 0 once casemated was told. *resuming*: connections that are made anew."""

    until: float
    drain_until: float
    resuming: set[Pair] | None = None
    resumed: int = 0
    replayed: int = 0
    reset: int = 0


class Relay:
    """*tell* sends a message to casemated, *is_heard* while there is one. :meth:`run` until :attr:`ended`.

    *on_casemated* gets each channel to another casemated.
    """

    def __init__(
        self, tell: Callable[[wire.Told | wire.Drained | wire.Resumed | wire.Connected], None],
        clock: Callable[[], float] = time.monotonic, is_heard: Callable[[], bool] = lambda: True,
    ) -> None:  # fmt: skip
        self._tell = tell
        self._clock = clock
        self._is_heard = is_heard
        self.on_casemated: Callable[[socket.socket], None] = socket.socket.close
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int, int], None]] = {}
        #: Descriptors whose events bring other descriptors.
        self._sources: set[int] = set()
        self.now = clock()
        self.buffer = memoryview(bytearray(_BUFFER_BYTES))
        self.ended = False
        self.max_pairs = MAX_PAIRS
        self.counted: Counter[str] = Counter()
        self.pairs: set[Pair] = set()
        self._of_port: Counter[Address] = Counter()
        self._of_client: Counter[tuple[str, Address]] = Counter()
        self._of_pod: dict[str, set[Pair]] = {}
        self._kept: dict[Address, bool] = {}
        self._kept_bytes = 0
        self._holds: dict[str, _Hold] = {}
        self._listener: socket.socket | None = None
        self._hostd: socket.socket | None = None
        self._asked: dict[int, tuple[Pair, float]] = {}
        self._to_ask: deque[Pair] = deque()
        #: Until when something has to have become of a pair.
        self._due: dict[Pair, float] = {}
        self._number = 0
        self._told: tuple[object, object] | None = None
        self._next_tell = self._next_timers = 0.0
        self._used_at = self.now

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        while not self.ended:
            self.turn(self._patience())

    def close(self) -> None:
        """Give up what is listened to; connections are their own."""
        for one in (self._listener, self._hostd):
            if one is not None:
                one.close()
        self._epoll.close()

    def turn(self, patience_s: float) -> None:
        """Wait for events, at most so long, and do what is due."""
        events = self._epoll.poll(patience_s, _EVENTS_A_TURN)
        self.now = self._clock()
        # What brings new descriptors comes last: one may get the number of another that was closed in this turn, and
        # an event that was meant for that one.
        for number, what in sorted(events, key=lambda event: event[0] in self._sources):
            handler = self._handlers.get(number)
            if handler is None:
                continue
            try:
                handler(number, what)
            except OSError:
                # A connection that nobody foresaw costs itself.
                note(traceback.format_exc(limit=5))
                for pair in [one for one in self.pairs if number in {one.client.fileno(), _fileno(one.pod)}]:
                    pair.reset()
        if self.now >= self._next_timers:
            self._timers()

    def _patience(self) -> float:
        if any(hold.drain_until or hold.resuming is not None for hold in self._holds.values()):
            return _DRAIN_LOOK_S
        return _TIMERS_S if self._holds or self._asked or self._to_ask or self._due else _TELL_S

    def add(self, number: int, handler: Callable[[int, int], None]) -> None:
        """Have *handler* called when the descriptor *number* can be read."""
        self._epoll.register(number, select.EPOLLIN)
        self._handlers[number] = handler
        self._sources.add(number)

    def remove(self, number: int) -> None:
        self.unwatch(number)

    def watch(self, number: int, events: int, pair: Pair) -> None:
        if number in self._handlers:
            self._epoll.modify(number, events)
        else:
            self._epoll.register(number, events)
            self._handlers[number] = pair.on_event

    def unwatch(self, number: int) -> None:
        self._sources.discard(number)
        if self._handlers.pop(number, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(number)

    # --- from casemated -------------------------------------------------------------------------------------------

    def on_message(self, message: object) -> None:
        """What casemated says."""
        match message:
            case wire.KeptPorts():
                self._keep({(address, port): replay for address, port, replay in message.ports})
            case wire.Hold():
                self._hold(message)
            case wire.Resume():
                self._resume(message)
            case wire.Cut():
                self._cut(message)
            case wire.Ask():
                self._tell_connected()
            case _:
                raise TypeError(type(message).__name__)

    def _keep(self, kept: dict[Address, bool]) -> None:
        gone = self._kept.keys() - kept.keys()
        self._kept = kept
        for pair in list(self.pairs):
            if pair.own in gone:
                # The pod is, and nobody will answer for it.
                pair.reset()
            else:
                pair.declare(replay=kept.get(pair.own, pair.replay))

    def listen(self, listener: socket.socket) -> None:
        """Accept from another listener from now on."""
        if self._listener is not None:
            # Whoever is in its backlog was told that the connection is open.
            self._on_listener(self._listener.fileno(), select.EPOLLIN)
            self.unwatch(self._listener.fileno())
            self._listener.close()
        listener.setblocking(False)
        self._listener = listener
        self.add(listener.fileno(), self._on_listener)

    def talk_to(self, hostd: socket.socket) -> None:
        """Ask another casemate-hostd from now on."""
        self._hostd_lost()
        hostd.setblocking(False)
        self._hostd = hostd
        self.add(hostd.fileno(), self._on_hostd)
        # What the last hostd was asked it does not answer any more.
        for pair, _ in self._asked.values():
            pair.asking = 0
            self._to_ask.append(pair)
        self._asked.clear()
        self._ask()

    # --- new connections ------------------------------------------------------------------------------------------

    def _on_listener(self, _number: int, _events: int) -> None:
        assert self._listener is not None
        for _ in range(_ACCEPTS_A_TURN):
            try:
                client, peer = self._listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    self.counted["refused"] += 1
                return
            try:
                own = client.getsockname()
                prepare(client)
            except OSError:
                client.close()
                continue
            self._accepted(client, peer, own)

    def _accepted(self, client: socket.socket, peer: Address, own: Address) -> None:
        of_client = peer[0], own
        if (
            len(self.pairs) >= self.max_pairs
            or self._of_port[own] >= MAX_OF_PORT
            or self._of_client[of_client] >= MAX_OF_CLIENT
        ):
            self.counted["refused"] += 1
            reset(client)
            return
        self.counted["accepted"] += 1
        pair = Pair(self, client, peer, own, replay=self._kept.get(own, False))
        self.pairs.add(pair)
        self._of_port[own] += 1
        self._of_client[of_client] += 1
        self._of_pod.setdefault(own[0], set()).add(pair)
        hold = self._holds.get(own[0])
        if hold is not None and hold.resuming is None:
            pair.hold()
        self.ask_for_pod(pair)

    def expect(self, pair: Pair, within_s: float) -> None:
        if within_s:
            self._due[pair] = self.now + within_s
        else:
            self._due.pop(pair, None)

    def over(self, pair: Pair) -> None:
        self.pairs.discard(pair)
        self._due.pop(pair, None)
        _less(self._of_port, pair.own)
        _less(self._of_client, (pair.peer[0], pair.own))
        of_pod = self._of_pod.get(pair.own[0], set())
        of_pod.discard(pair)
        if not of_pod:
            self._of_pod.pop(pair.own[0], None)

    def keep_bytes(self, count: int) -> bool:
        if count > 0 and self._kept_bytes + count > MAX_KEPT_BYTES:
            return False
        self._kept_bytes += count
        return True

    # --- hostd ----------------------------------------------------------------------------------------------------

    def ask_for_pod(self, pair: Pair) -> None:
        # Whether hostd is there or not.
        self.expect(pair, ASK_S)
        pair.asking = 0
        self._to_ask.append(pair)
        self._ask()

    def _ask(self) -> None:
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
                self._hostd_lost()
                return
            self._to_ask.popleft()
            self._asked[self._number] = pair, self.now + ASK_S
            pair.asking = self._number

    def _hostd_lost(self) -> None:
        """casemate-hostd went away, or hung up: it finds this process again; nobody waits for long."""
        gone, self._hostd = self._hostd, None
        if gone is not None:
            self.unwatch(gone.fileno())
            gone.close()

    def _on_hostd(self, _number: int, _events: int) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            if self._hostd is None:
                return
            try:
                data, beside, _, _ = self._hostd.recvmsg(64, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data, beside = b"", []
            if len(data) != RELAY_ANSWER.size:
                self._hostd_lost()
                return
            number, why = RELAY_ANSWER.unpack(data)
            found = [array.array("i", content[:4])[0] for _, kind, content in beside if kind == socket.SCM_RIGHTS]
            if not number:
                self._given(why, [socket.socket(fileno=one) for one in found])
                continue
            pair, _ = self._asked.pop(number, (None, 0.0))
            if pair is None or pair.state != WAITING or pair.asking != number:
                for one in found:
                    reset(socket.socket(fileno=one))
            elif why or not found:
                self.counted["failed"] += 1
                pair.failed()
            else:
                pair.connected(socket.socket(fileno=found[0]))
            self._ask()

    def _given(self, kind: int, sockets: list[socket.socket]) -> None:
        """hostd gives a listener, or a channel to casemated; the second is acknowledged."""
        if len(sockets) != 1:
            self._hostd_lost()
        elif kind == GIVEN_LISTENER:
            self.listen(sockets[0])
        elif kind == GIVEN_CASEMATED:
            self.on_casemated(sockets[0])
            try:
                assert self._hostd is not None
                self._hostd.send(RELAY_REQUEST.pack(0), socket.MSG_NOSIGNAL)
            except OSError:
                self._hostd_lost()
        else:
            sockets[0].close()
            self._hostd_lost()

    # --- holds ----------------------------------------------------------------------------------------------------

    def _hold(self, message: wire.Hold) -> None:
        pairs = list(self._of_pod.get(message.address, ()))
        self._holds[message.address] = _Hold(self.now + message.wait_s, self.now + message.drain_s)
        self._next_timers = 0.0
        for number, pair in enumerate(pairs):
            if number < message.limit:
                pair.hold()
            else:
                self._reset(pair)

    def _reset(self, pair: Pair) -> None:
        self.counted["reset"] += 1
        pair.reset()

    def _resume(self, message: wire.Resume) -> None:
        hold = self._holds.get(message.address)
        pairs = list(self._of_pod.get(message.address, ()))
        if hold is None:
            self._tell(wire.Resumed(message.address, 0, 0, 0))
            return
        if not message.accept:
            for pair in pairs:
                self._reset(pair)
            del self._holds[message.address]
            self._tell(wire.Resumed(message.address, 0, 0, len(pairs)))
            return
        hold.drain_until, hold.resuming, self._next_timers = 0.0, set(pairs), 0.0
        for pair in pairs:
            pair.replayed = False
            pair.resume(anew=message.anew)

    def _timers(self) -> None:
        self._next_timers = self.now + min(_TIMERS_S, self._patience())
        for address, hold in list(self._holds.items()):
            pairs = self._of_pod.get(address, set())
            if hold.resuming is not None:
                self._look_at_resuming(address, hold)
            elif self.now >= hold.until:
                for pair in list(pairs):
                    self._reset(pair)
                del self._holds[address]
            elif hold.drain_until:
                busy = sum(not pair.is_quiet for pair in pairs)
                if not busy or self.now >= hold.drain_until:
                    hold.drain_until = 0.0
                    for pair in pairs:
                        pair.stop()
                    self._tell(wire.Drained(address, len(pairs) - busy, busy))
        for number in [one for one, (_, until) in self._asked.items() if until <= self.now]:
            # Its pair is late by then, or has another.
            del self._asked[number]
        self._ask()
        for pair in [one for one in self.pairs if 0 < one.doubt_until <= self.now]:
            self._reset(pair)
        for pair in [one for one, until in self._due.items() if until <= self.now]:
            del self._due[pair]
            self.counted["failed"] += pair.state == WAITING
            pair.late()
        if self.now >= self._next_tell:
            self._next_tell = self.now + _TELL_S
            self._reset_forgotten()
            self.tell_state()
            if self.pairs or self._hostd is not None or self._is_heard():
                self._used_at = self.now
            elif self.now - self._used_at >= LINGER_S:
                self.ended = True

    def _reset_forgotten(self) -> None:
        """Whatever went wrong, nobody waits in silence: held without a hold, or bytes that are not passed on."""
        for pair in list(self.pairs):
            if (pair.held and pair.own[0] not in self._holds) or (pair.look_until > self.now and pair.is_stuck()):
                note(f"a connection of port {pair.own[1]} got stuck (state {pair.state}): reset")
                self._reset(pair)

    def _look_at_resuming(self, address: str, hold: _Hold) -> None:
        assert hold.resuming is not None
        for pair in list(hold.resuming):
            if pair.state == OPEN or (pair.state == OVER and not pair.was_reset):
                hold.resumed += 1
                hold.replayed += pair.replayed
            elif pair in self.pairs and self.now < hold.until:
                continue
            else:
                hold.reset += 1
                pair.reset()
            hold.resuming.discard(pair)
        if not hold.resuming:
            del self._holds[address]
            self.counted.update(resumed=hold.resumed, replayed=hold.replayed, reset=hold.reset)
            self._tell(wire.Resumed(address, hold.resumed, hold.replayed, hold.reset))

    # --- what is told, what is cut --------------------------------------------------------------------------------

    def _cut(self, message: wire.Cut) -> None:
        for pair in list(self._of_pod.get(message.address, ()) if message.address else self.pairs):
            if message.client in ("", pair.peer[0]) and message.port in (0, pair.own[1]):
                self.counted["cut"] += 1
                pair.reset()

    def _tell_connected(self) -> None:
        ends = sorted({(pair.peer[0], *pair.own) for pair in self.pairs})
        for start in range(0, max(1, len(ends)), wire.MAX_ENDS):
            part = tuple(ends[start : start + wire.MAX_ENDS])
            self._tell(wire.Connected(part, start + wire.MAX_ENDS >= len(ends)))

    def tell_anew(self) -> None:
        """Tell all at the next turn: who listens has not heard of anything."""
        self._told, self._next_tell, self._next_timers = None, 0.0, 0.0

    def tell_state(self) -> None:
        """Tell casemated what there is, where that has changed."""
        ports = tuple(self._held(own) for own in sorted(self._of_port))
        counters = wire.Counters(**{name: self.counted[name] for name in wire.Counters.__struct_fields__})
        if (ports, counters) != self._told:
            self._told = ports, counters
            self._tell(wire.Told(ports[: wire.MAX_ENDS], counters))

    def _held(self, own: Address) -> wire.Held:
        pairs = [pair for pair in self._of_pod.get(own[0], ()) if pair.own == own]
        hold = self._holds.get(own[0])
        kept = sum(len(pair.unanswered or b"") for pair in pairs)
        left_s = round(max(0.0, hold.until - self.now), 1) if hold is not None else 0.0
        return wire.Held(*own, len(pairs), sum(pair.held for pair in pairs), kept, left_s)


def _less(counter: Counter[T], key: T) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]


def _fileno(one: socket.socket | None) -> int:
    return -1 if one is None else one.fileno()


def note(text: str) -> None:
    """A line to the journal, which may have ended with the daemon that began it."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"the relay of kept connections: {text}\n")
        sys.stderr.flush()
