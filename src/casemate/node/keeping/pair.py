"""One relayed connection: the client's side, the pod's side, and what passes between them.

Bytes are passed on as they come and never looked at. What has been asked (bytes of the client since the pod's last) is
known, since only a connection with nothing under way can be moved to another process of the pod; where its port is
declared safe for it, what was asked and not answered is kept, and sent to the new process again.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import select
import socket
import struct
import termios
from typing import Protocol

from casemate.node.keeping.wire import Address

IN, OUT, GONE = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR
#: Waiting for hostd's socket; connecting; open; without a connection to the pod while it is held; over.
WAITING, OPENING, OPEN, PARKED, OVER = range(5)
#: An answer is taken to be whole when the pod has said nothing for so long.
QUIET_S = 0.05
#: A connection whose last answer may have been cut off is reset when its client says nothing for so long.
DOUBT_S = 5.0
#: A pod answers a first packet within milliseconds; what is not answered by then is begun anew, so often in all.
OPEN_S, MAX_OPENINGS = 1.0, 5
#: Bytes that nobody passes on for so long are a fault of the relay: their connection is reset, not left in silence.
STUCK_S = 5.0
#: So long after it was held a connection is looked at.
LOOK_S = 60.0
_MAX_CATCH_UP = 16
#: What one connection may have asked and still be asked again.
MAX_REPLAY_BYTES = 256 << 10
_NO_LINGER, _LINGER = struct.pack("=ii", 1, 0), struct.pack("=ii", 0, 0)
#: A peer that is gone without a word is noticed within 90 s.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


class Loop(Protocol):
    """What a pair needs of the relay around it."""

    now: float
    #: For one receive at a time.
    buffer: memoryview

    def watch(self, number: int, events: int, pair: Pair) -> None:
        """Wait for *events* (0: only for the end) of a descriptor of *pair*."""

    def unwatch(self, number: int) -> None:
        """The descriptor is closed next."""

    def ask_for_pod(self, pair: Pair) -> None:
        """Have hostd connect to the pod for *pair*; answered by its ``connected`` or ``failed``."""

    def keep_bytes(self, count: int) -> bool:
        """Account for *count* more (or, below 0, fewer) bytes kept; False when there is no room."""
        ...

    def expect(self, pair: Pair, within_s: float) -> None:
        """Call its ``late`` unless this is called again within that time (0: nothing is expected any more)."""

    def over(self, pair: Pair) -> None:
        """The pair has ended."""


def prepare(one: socket.socket) -> None:
    one.setblocking(False)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # A relay that is killed ends what it relays with a reset: half an answer must not look like a whole one.
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    for name, number in _KEEPALIVE:
        one.setsockopt(socket.IPPROTO_TCP, name, number)


_connect = ctypes.CDLL(None).connect
#: connect(2): an address of family AF_UNSPEC dissolves the association.
_NOWHERE = bytes(16)


def reset(one: socket.socket) -> None:
    """Close with a reset (RFC 9293, 3.10.4): the peer must not take it for an end.

    At once, though its descriptor may be on its way to hostd, where closing alone would change nothing.
    """
    _connect(one.fileno(), _NOWHERE, len(_NOWHERE))
    one.close()


def _has_bytes(one: socket.socket) -> bool:
    return bool(struct.unpack("=i", fcntl.ioctl(one.fileno(), termios.FIONREAD, bytes(4)))[0])


def _end(one: socket.socket) -> None:
    """Close with what is on its way still told."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
    one.close()


class Pair:
    """*own* is the pod's address and port, *peer* the client's; *replay*: whether its port is safe for it."""

    __slots__ = (
        "_loop", "_masks", "_seen", "answered_at", "asked", "asking", "client", "client_eof", "doubt_until",
        "held", "is_doubtful", "look_until", "openings", "own", "passed", "peer", "pod", "pod_eof", "replay",
        "replayed", "state", "stopping", "to_client", "to_pod", "unanswered", "was_reset",
    )  # fmt: skip

    def __init__(self, loop: Loop, client: socket.socket, peer: Address, own: Address, *, replay: bool) -> None:
        self._loop = loop
        self._masks = [-1, -1]
        self.client, self.peer, self.own, self.replay = client, peer, own, replay
        self.pod: socket.socket | None = None
        self.state = WAITING
        self.is_doubtful = self.stopping = self.was_reset = False
        self.doubt_until = self.look_until = 0.0
        #: Connections to the pod that were begun since the last that opened; reads of either side.
        self.openings = self.passed = 0
        #: The number under which hostd is asked for the pod; 0: it is not.
        self.asking = 0
        #: *passed* when bytes were first seen to wait, and when that was.
        self._seen = -1, 0.0
        self.held = self.asked = self.client_eof = self.pod_eof = self.replayed = False
        self.answered_at = float("-inf")
        self.to_pod, self.to_client = bytearray(), bytearray()
        #: What was asked; None where that is more than is kept.
        self.unanswered: bytearray | None = bytearray()
        self._update()

    # --- what is waited for ---------------------------------------------------------------------------------------

    def _update(self) -> None:
        """Have the loop wait for what can be done now."""
        is_open = self.state == OPEN
        # While answers come to their end, what is half asked is asked to its end.
        takes = not self.held or (self.asked and not self.stopping)
        reads = is_open and takes and not self.client_eof and not self.to_pod
        self._watch(0, self.client, IN * reads | OUT * bool(self.to_client))
        if self.pod is not None:
            wanted = IN * (not self.pod_eof and not self.to_client) | OUT * bool(self.to_pod) if is_open else OUT
            self._watch(1, self.pod, wanted)

    def _watch(self, side: int, one: socket.socket, wanted: int) -> None:
        if self._masks[side] != wanted:
            self._masks[side] = wanted
            self._loop.watch(one.fileno(), wanted, self)

    def on_event(self, number: int, events: int) -> None:
        """The descriptor *number* of this pair has *events*."""
        if self.pod is not None and number == self.pod.fileno():
            self._on_pod(self.pod, events)
        elif self.state != OVER and number == self.client.fileno():
            self._on_client(events)

    def _on_client(self, events: int) -> None:
        if events & OUT:
            self._flush_client()
        if self.state == OVER:
            return
        if events & IN and self._masks[0] & IN:
            self._read_client()
        elif events & GONE and self.client_eof and self.to_pod and not events & select.EPOLLERR:
            # It has said all, and was told all: what is left is for the pod. The end would be told without end.
            self._loop.unwatch(self.client.fileno())
        elif events & GONE:
            self.reset()

    def _on_pod(self, pod: socket.socket, events: int) -> None:
        if self.state == OPENING:
            why = pod.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if why:
                self.failed()
            elif events & OUT:
                self._opened()
            return
        if events & OUT:
            self._flush_pod()
        if self.state == OPEN and events & IN and self._masks[1] & IN:
            self._read_pod()
        elif self.state == OPEN and events & GONE and not self._masks[1] & IN:
            # Nothing is read from it now: what it said last waits for the client, or it has said all.
            self._loop.unwatch(pod.fileno())
            self._masks[1] = -1
            if not self.to_client:
                self._pod_ended(was_reset=True)

    # --- bytes ----------------------------------------------------------------------------------------------------

    def _read_client(self) -> None:
        buffer = self._loop.buffer
        try:
            count = self.client.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError:
            self.reset()
            return
        if not count:
            self.client_eof = True
            self._pass_ends()
            return
        self.passed += 1
        self.asked = True
        self.is_doubtful, self.doubt_until = False, 0.0
        if self.replay:
            self._remember(buffer[:count])
        assert self.pod is not None
        try:
            sent = self.pod.send(buffer[:count])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._pod_ended(was_reset=True)
            return
        if sent < count:
            self.to_pod += buffer[sent:count]
            self._update()

    def _remember(self, data: memoryview) -> None:
        if self.unanswered is None:
            return
        if len(self.unanswered) + len(data) > MAX_REPLAY_BYTES or not self._loop.keep_bytes(len(data)):
            self._forget()
            self.unanswered = None
        else:
            self.unanswered += data

    def _forget(self) -> None:
        if self.unanswered:
            self._loop.keep_bytes(-len(self.unanswered))
            self.unanswered.clear()

    def _read_pod(self) -> None:
        buffer = self._loop.buffer
        assert self.pod is not None
        try:
            count = self.pod.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError:
            self._pod_ended(was_reset=True)
            return
        if not count:
            self._pod_ended(was_reset=False)
            return
        self.passed += 1
        if self.asked and self.to_pod:
            # It answers what it has not whole yet: neither answered nor to be asked again.
            self._forget()
            self.unanswered = None
        elif self.asked:
            self.asked = False
            if self.held:
                self._update()
            if self.replay:
                self._forget()
                self.unanswered = self.unanswered if self.unanswered is not None else bytearray()
        self.answered_at = self._loop.now
        try:
            sent = self.client.send(buffer[:count])
        except BlockingIOError:
            sent = 0
        except OSError:
            self.reset()
            return
        if sent < count:
            self.to_client += buffer[sent:count]
            self._update()

    def _flush_client(self) -> None:
        try:
            sent = self.client.send(self.to_client) if self.to_client else 0
        except BlockingIOError:
            return
        except OSError:
            self.reset()
            return
        del self.to_client[:sent]
        # A slow reader's answer is not over while it waits here.
        self.answered_at = self._loop.now
        if not self.to_client:
            self._pass_ends()

    def _flush_pod(self) -> None:
        assert self.pod is not None
        try:
            sent = self.pod.send(self.to_pod) if self.to_pod else 0
        except BlockingIOError:
            return
        except OSError:
            self._pod_ended(was_reset=True)
            return
        del self.to_pod[:sent]
        if not self.to_pod:
            self._pass_ends()

    def _pass_ends(self) -> None:
        """Hand on ends for which nothing waits any more; close when there are both."""
        with contextlib.suppress(OSError):
            if self.client_eof and not self.to_pod and self.pod is not None and self.state == OPEN:
                self.pod.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            if self.pod_eof and not self.to_client:
                self.client.shutdown(socket.SHUT_WR)
        if self.client_eof and self.pod_eof and not self.to_pod and not self.to_client:
            self._close(with_reset=False)
        else:
            self._update()

    # --- the pod's side -------------------------------------------------------------------------------------------

    def connected(self, pod: socket.socket) -> None:
        """hostd has begun a connection to the pod."""
        if self.state != WAITING:
            reset(pod)
            return
        if self.held:
            reset(pod)
            self.state = PARKED
            return
        prepare(pod)
        self.pod, self.state = pod, OPENING
        self.openings += 1
        self._loop.expect(self, OPEN_S)
        self._masks[1] = -1
        self._update()

    def late(self) -> None:
        """What was expected did not come: the pod's answer is asked for anew, so often; then there is none."""
        if self.state == OPENING and not self.held and self.openings < MAX_OPENINGS:
            self._close_pod()
            self._wait()
        elif self.state in {WAITING, OPENING}:
            self.failed()

    def _wait(self) -> None:
        self.state = WAITING
        self._loop.ask_for_pod(self)

    def failed(self) -> None:
        """The pod cannot be connected to."""
        if self.held:
            self._park()
        else:
            self.reset()

    def _opened(self) -> None:
        self.state = OPEN
        self.openings = 0
        self._loop.expect(self, 0)
        if self.is_doubtful:
            self.doubt_until = self._loop.now + DOUBT_S
        if self.asked and self.unanswered:
            self.replayed = True
            self.to_pod += self.unanswered
            self._flush_pod()
        else:
            self._pass_ends()

    def _pod_ended(self, *, was_reset: bool) -> None:
        if self.stopping and self._may_move():
            # The kernel resets where something was not read: a question behind the one that was answered.
            self.is_doubtful = not self.asked and (was_reset or not self.is_quiet)
            self._park()
        elif was_reset or (self.stopping and self.asked):
            self.reset()
        else:
            self.pod_eof = True
            self._pass_ends()

    def _may_move(self) -> bool:
        """Whether another process of the pod can take over: what was asked is answered, or can be asked again.

        Whether an answer was whole nobody here can know, where the process that gave it ended at once; see
        :data:`DOUBT_S`.
        """
        return not self.asked or (self.replay and bool(self.unanswered))

    def _park(self) -> None:
        self._close_pod()
        self.to_pod.clear()
        self.state, self.openings = PARKED, 0
        self._loop.expect(self, 0)
        self._update()

    def _close_pod(self) -> None:
        gone, self.pod = self.pod, None
        if gone is not None:
            self._loop.unwatch(gone.fileno())
            self._masks[1] = -1
            reset(gone)

    # --- holding --------------------------------------------------------------------------------------------------

    @property
    def is_quiet(self) -> bool:
        """Nothing is under way: no question without an answer, and no answer that goes on."""
        if self.state != OPEN:
            return not self.asked
        return not self.asked and not self.to_client and self._loop.now - self.answered_at >= QUIET_S

    def stop(self) -> None:
        """From now on an end of the pod's side is its process's, and not meant for the client."""
        self.stopping = True
        self._update()

    def hold(self) -> None:
        """Take no further question from the client; answers come to their end."""
        self.held = True
        if self.state == OPENING:
            self._park()
        self._update()

    def declare(self, *, replay: bool) -> None:
        """Whether its port is safe for replaying, from now on."""
        if replay and not self.replay and self.asked:
            # What was asked before is not known.
            self.unanswered = None
        self.replay = replay

    def resume(self, *, anew: bool) -> None:
        """Go on, with a new connection where there is none (*anew*: in any case); ended where that cannot be."""
        if self.stopping:
            self._catch_up()
        self.held = self.stopping = False
        self.look_until = self._loop.now + LOOK_S
        if self.state == OPEN and anew:
            if not self._may_move():
                self.reset()
                return
            self.is_doubtful = not self.asked and not self.is_quiet
            self._park()
        if self.state in {PARKED, WAITING}:
            # An answer that is on its way may lead to the process that is gone.
            self._wait()
        else:
            self._update()

    def _catch_up(self) -> None:
        """Take what the process that went away said last, and its end, though a busy relay has not come to it yet."""
        for _ in range(_MAX_CATCH_UP):
            passed = self.passed
            if self.state == OPEN and not self.pod_eof and not self.to_client:
                self._read_pod()
            if self.passed == passed:
                return

    def is_stuck(self) -> bool:
        """Whether bytes have waited for :data:`STUCK_S` that nothing hinders from being passed on.

        A fault of the relay's own, whichever; to be asked about once a second or so.
        """
        waits = self.state == OPEN and not self.held and self.pod is not None and (
            (not self.client_eof and not self.to_pod and _has_bytes(self.client))
            or (not self.pod_eof and not self.to_client and _has_bytes(self.pod))
        )  # fmt: skip
        if not waits or self._seen[0] != self.passed:
            self._seen = self.passed if waits else -1, self._loop.now
            return False
        return self._loop.now - self._seen[1] >= STUCK_S

    # --- the end --------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """End both sides with a reset."""
        self._close(with_reset=True)

    def _close(self, *, with_reset: bool) -> None:
        if self.state == OVER:
            return
        self.state, self.was_reset = OVER, with_reset
        self._forget()
        self._loop.unwatch(self.client.fileno())
        if with_reset:
            reset(self.client)
            self._close_pod()
        else:
            _end(self.client)
            if self.pod is not None:
                self._loop.unwatch(self.pod.fileno())
                _end(self.pod)
                self.pod = None
        self._loop.over(self)
