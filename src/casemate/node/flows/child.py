"""The flow recorder: ``python -m casemate.node.flows.child DATABASE CAPACITY``, a child of casemated.

It has no privilege and no name for anything: descriptor 3 leads to casemated, 4 is conntrack's events, 5 and 6 are the
packet logs of verdicts and of TLS' first packets, opened by casemate-hostd. It bounds itself before it reads anything,
and ends when casemated does.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

from casemate.host import ownlimits
from casemate.node.flows.recorder import Recorder
from casemate.node.flows.store import Ring
from casemate.node.flows.wire import ENCODER, MAX_MESSAGE_BYTES, TO_RECORDER, Progress, Questions

CHANNEL, EVENTS, VERDICTS, HELLOS = 3, 4, 5, 6
#: Address space; the tables that grow with connections are bounded at about 300 MiB.
MEMORY_BYTES = 1 << 30
#: Messages that are read of one socket before the others get their turn, and rows of one transaction.
_TURN = 4096
_BATCH_ROWS = 5000
#: A record is on its way for at most so long before it can be read.
FLUSH_S = 0.05
#: Between two looks at the kernel's events; its buffer holds those of a second.
_PAUSE_S = 0.002
_LOG_BYTES = 256 << 10


def bound_self() -> None:
    """Lower this process's limits for good."""
    ownlimits.bound_self({resource.RLIMIT_AS: MEMORY_BYTES, resource.RLIMIT_NPROC: 0}, parent_ended=signal.SIGKILL)


class Loop:
    """The sockets, the recorder between them, and when to write."""

    def __init__(self, database: str, capacity: int) -> None:
        self._channel = _adopt(CHANNEL)
        self._events = _adopt(EVENTS)
        self._verdicts = _adopt(VERDICTS)
        self._hellos = _adopt(HELLOS)
        self._ring = Ring(database, capacity)
        self.recorder = Recorder(self._ring, self._ask)
        self._ring.gap(time.time(), "the recorder began", -1)
        self._told_overruns = 0
        self._last_flush = 0.0
        self._told = ""

    def run(self) -> None:
        """Until casemated closes the channel."""
        poller = select.poll()
        for one in (self._channel, self._events, self._verdicts, self._hellos):
            poller.register(one.fileno(), select.POLLIN)
        self._tell()
        while True:
            busy = self.recorder.pending or self.recorder.waiting
            ready = {number for number, _ in poller.poll(FLUSH_S * 1000 if busy else 1000)}
            now = time.time()
            # First what casemated says: a connection that it let through follows upon its word.
            if CHANNEL in ready and not self._read_channel(now):
                return
            if EVENTS in ready:
                self._read_events(now)
                # Meanwhile nobody is woken: some dozens are read in one turn, not each in a turn of its own.
                time.sleep(_PAUSE_S)
            if VERDICTS in ready:
                self._read_log(self._verdicts, self.recorder.verdicts, now)
            if HELLOS in ready:
                self._read_log(self._hellos, self.recorder.hellos, now)
            self.recorder.ask()
            self.recorder.expire(now)
            pending = self.recorder.pending
            if pending >= _BATCH_ROWS or (now - self._last_flush >= FLUSH_S or now < self._last_flush):
                if pending:
                    self.recorder.flush()
                    self._last_flush = now
                self._note_overruns(now)
                self._tell()

    def _read_events(self, now: float) -> None:
        receive, messages = self._events.recv, []
        try:
            for _ in range(_TURN):
                messages.append(receive(8192))
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self.recorder.overruns += 1
        self.recorder.connections(messages, now)

    def _read_log(self, log: socket.socket, take: Callable[[bytes, float], None], now: float) -> None:
        try:
            for _ in range(64):
                take(log.recv(_LOG_BYTES), now)
        except BlockingIOError:
            return
        except OSError as error:
            # The sequence numbers tell how many are missing.
            if error.errno != errno.ENOBUFS:
                raise

    def _read_channel(self, now: float) -> bool:
        for _ in range(64):
            try:
                data = self._channel.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.recorder.told(TO_RECORDER.decode(data), now)
        return True

    def _note_overruns(self, now: float) -> None:
        if self.recorder.overruns > self._told_overruns:
            self._ring.gap(now, "more connections than could be read", -1)
            self._told_overruns = self.recorder.overruns

    def _ask(self, questions: Questions) -> bool:
        return self._send(ENCODER.encode(questions))

    def _tell(self) -> None:
        counters = self.recorder.counters()
        line = f"{self._ring.stamp} {counters}"
        if line != self._told and self._send(ENCODER.encode(Progress(self._ring.stamp, counters))):
            self._told = line

    def _send(self, data: bytes) -> bool:
        try:
            self._channel.send(data)
        except BlockingIOError:
            return False  # casemated is slow: later
        return True


def _adopt(number: int) -> socket.socket:
    adopted = socket.socket(fileno=number)
    adopted.setblocking(False)
    os.set_inheritable(number, False)
    return adopted


def main(argv: list[str]) -> int:
    if len(argv) != 2 or not argv[1].isdigit():
        sys.stderr.write("usage: python -m casemate.node.flows.child DATABASE CAPACITY (started by casemated)\n")
        return 2
    bound_self()
    # Thousands of small values come and go each second, none in a circle.
    gc.freeze()
    gc.disable()
    try:
        Loop(argv[0], int(argv[1])).run()
    except (BrokenPipeError, ConnectionResetError):
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
