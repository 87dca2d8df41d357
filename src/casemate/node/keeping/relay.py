"""The relay of kept connections: a loop over sockets, who is accepted, and what it may hold at most.

Its own loop on epoll and not asyncio's: a round trip through it is the price of every kept connection, and half of it
would be the loop's.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Set
from typing import TypeVar

from casemate.node.keeping import wire
from casemate.node.keeping.holds import Holds
from casemate.node.keeping.hostdlink import HostdLink
from casemate.node.keeping.pair import WAITING, Pair, prepare, reset
from casemate.node.keeping.wire import Address

#: Connections of all pods, to one port, and of one client to one port.
MAX_PAIRS, MAX_OF_PORT, MAX_OF_CLIENT = 8192, 4096, 1024
#: Bytes that are kept to be asked again, of all connections.
MAX_KEPT_BYTES = 64 << 20
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
        self._holds = Holds(self.of_pod, self._reset, tell, self.counted)
        self._listener: socket.socket | None = None
        self.hostd = HostdLink(self)
        #: Until when something has to have become of a pair.
        self._due: dict[Pair, float] = {}
        self._told: tuple[object, object] | None = None
        self._next_tell = self._next_timers = 0.0
        self._used_at = self.now

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        while not self.ended:
            self.turn(self._patience())

    def close(self) -> None:
        """Give up what is listened to; connections are their own."""
        if self._listener is not None:
            self._listener.close()
        self.hostd.close()
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
        if self._holds.is_pressing:
            return _DRAIN_LOOK_S
        return _TIMERS_S if self._holds or self.hostd.is_waiting or self._due else _TELL_S

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
                self._holds.begin(message, self.now)
                self._next_timers = 0.0
            case wire.Resume():
                self._holds.resume(message)
                self._next_timers = 0.0
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
        hold = self._holds.of(own[0])
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

    def of_pod(self, address: str) -> Set[Pair]:
        """The connections to the pod that has *address*."""
        return self._of_pod.get(address, frozenset())

    def ask_for_pod(self, pair: Pair) -> None:
        self.hostd.ask(pair)

    def _reset(self, pair: Pair) -> None:
        self.counted["reset"] += 1
        pair.reset()

    # --- what is due ----------------------------------------------------------------------------------------------

    def _timers(self) -> None:
        self._next_timers = self.now + min(_TIMERS_S, self._patience())
        self._holds.look(self.now)
        self.hostd.look()
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
            if self.pairs or self.hostd.is_up or self._is_heard():
                self._used_at = self.now
            elif self.now - self._used_at >= LINGER_S:
                self.ended = True

    def _reset_forgotten(self) -> None:
        """Whatever went wrong, nobody waits in silence: held without a hold, or bytes that are not passed on."""
        for pair in list(self.pairs):
            if (pair.held and self._holds.of(pair.own[0]) is None) or (pair.look_until > self.now and pair.is_stuck()):
                note(f"a connection of port {pair.own[1]} got stuck (state {pair.state}): reset")
                self._reset(pair)

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
        hold = self._holds.of(own[0])
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
