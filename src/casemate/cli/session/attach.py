"""The loop of an attached session: a WebSocket on one side, this process's descriptors and signals on the other.

Nothing blocks but the poll and writing to our own output: input is read only while what waits to be sent is below a
bound, so that ``cat | casemate run -i ... cat`` cannot lock itself. Output goes from the frame to the descriptor
without another copy of the text.
"""

from __future__ import annotations

import posix
import select

from casemate.cli.context import write_all
from casemate.cli.fail import broken_answer, lost, remote
from casemate.cli.session.keys import Detacher
from casemate.cli.session.signals import HUP, INT, PROXIED, TERM, WINCH, SignalPipe
from casemate.cli.wire import json
from casemate.cli.wire.websocket import BINARY, CLOSE, PING, PONG, Frames, encode_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.cli.wire.transport import Stream

STDIN, STDOUT, STDERR, CONTROL = 0, 1, 2, 3
RECEIVE_BYTES = 256 << 10
#: One message of input; hostd's pipe takes 64 KiB at a time.
INPUT_BYTES = 64 << 10
#: Input is not read while more than this waits to be sent.
MAX_WAITING = 256 << 10
#: After so many INT or TERM the client ends though the process does not: Docker's figure.
MAX_INSISTED = 3
_GOES_ON = "The process goes on: `casemate ps`, then `casemate attach NAME` or `casemate logs -f NAME`."
_IN, _OUT, _GONE = select.POLLIN, select.POLLOUT, select.POLLHUP | select.POLLERR | select.POLLNVAL


class Plan:
    """What the session connects: *streams* of output to show, input, terminal, keys; and how signals are passed on."""

    __slots__ = ("input", "keys", "kill", "on_started", "streams", "terminal", "warn")

    def __init__(
        self,
        terminal: bool = False,
        input: bool = False,  # noqa: A002 - the word of the matter
        streams: tuple[int, ...] = (STDOUT, STDERR),
        keys: bytes = b"",
        kill: Callable[[str], None] | None = None,
        on_started: Callable[[], None] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.terminal = terminal
        self.input = input
        self.streams = streams
        self.keys = keys
        #: Sends a signal to the process; None: signals are left alone.
        self.kill = kill
        self.on_started = on_started
        #: Shows what the daemon warns of at the start.
        self.warn = warn


class Ended:
    """How it ended: *exit_code* (whether the kernel killed for want of memory, another *reason*), or *detached*."""

    __slots__ = ("detached", "exit_code", "oom_killed", "reason")

    def __init__(self, exit_code: int, detached: bool = False, oom_killed: bool = False, reason: str = "") -> None:
        self.exit_code = exit_code
        self.oom_killed = oom_killed
        self.reason = reason
        self.detached = detached


def attach(stream: Stream, first: bytes, plan: Plan) -> Ended:
    """Run the session on *stream* (whose first bytes may be *first*) to its end; the stream is closed.

    Raises the daemon's problem, ConnectionLost where it goes away without an exit code, BrokenPipeError where our
    own output has no reader. The terminal and the signal handlers are as before, whatever happens.
    """
    numbers = tuple(PROXIED) if plan.kill is not None else (HUP,) if plan.terminal else ()
    numbers += (WINCH,) if plan.terminal else ()
    try:
        with SignalPipe(numbers) as pipe:
            session = _Session(stream, first, plan, pipe)
            if plan.terminal and plan.input:
                from casemate.cli.session.terminal import RawTerminal

                with RawTerminal(0):
                    return session.run()
            return session.run()
    finally:
        stream.close()


class _Session:
    __slots__ = ("_detacher", "_frames", "_insisted", "_out", "_pipe", "_plan", "_reading", "_stream", "ended")

    def __init__(self, stream: Stream, first: bytes, plan: Plan, pipe: SignalPipe) -> None:
        self._stream = stream
        self._plan = plan
        self._pipe = pipe
        self._frames = Frames(first)
        self._out = bytearray()
        self._reading = plan.input
        self._insisted = 0
        self._detacher = Detacher(plan.keys if plan.terminal else b"")
        self.ended: Ended | None = None

    def run(self) -> Ended:
        self._stream.setblocking(False)
        self._resize()
        self._receive_frames()
        while True:
            if self.ended is not None:
                self._goodbye()
                return self.ended
            self._turn(self._stream.fileno(), self._pipe.fd)

    def _turn(self, socket: int, pipe: int) -> None:
        """Wait for one of them, then do what it wants."""
        poll = select.poll()
        poll.register(socket, _IN | (_OUT if self._out else 0))
        poll.register(pipe, _IN)
        if self._reading and len(self._out) < MAX_WAITING:
            poll.register(0, _IN)
        for fd, event in poll.poll():
            if self.ended is not None:
                return
            if fd == pipe:
                self._signals()
            elif fd == 0:
                self._input()
            else:
                if event & _OUT:
                    self._send()
                if event & (_IN | _GONE):
                    self._receive()

    def _goodbye(self) -> None:
        """The closing frame, if it goes at once: the daemon also copes with a connection that ends."""
        self._queue(CLOSE, (1000).to_bytes(2, "big"))

    def _queue(self, opcode: int, payload: bytes) -> None:
        self._out += encode_frame(opcode, payload, posix.urandom(4))
        self._send()

    def _send(self) -> None:
        while self._out:
            try:
                sent = self._stream.send(bytes(self._out[:RECEIVE_BYTES]))
            except OSError as error:
                if not _would_block(error):
                    self._out.clear()  # the daemon went away: receiving tells how it ended
                return
            del self._out[:sent]

    def _receive(self) -> None:
        while True:
            try:
                data = self._stream.recv(RECEIVE_BYTES)
            except OSError as error:
                if _would_block(error):
                    return
                data = b""
            if not data:
                raise lost("the daemon closed the connection before the process ended", _GOES_ON)
            self._frames.feed(data)
            self._receive_frames()
            # A TLS socket may hold decrypted bytes that poll does not see; a plain one is asked again by poll.
            pending = getattr(self._stream, "pending", None)
            if self.ended is not None or pending is None or not pending():
                return

    def _receive_frames(self) -> None:
        for opcode, payload in self._frames.messages():
            if opcode == BINARY and payload:
                self._message(payload[0], memoryview(payload)[1:])
            elif opcode == PING:
                self._queue(PONG, payload)
            elif opcode == CLOSE and self.ended is None:
                reason = payload[2:].decode("utf-8", "replace")
                told = f": {reason}" if reason else ""
                raise lost(f"the daemon ended the session before the process ended{told}", _GOES_ON)

    def _message(self, kind: int, data: memoryview) -> None:
        if kind in (STDOUT, STDERR):
            if kind in self._plan.streams and data:
                write_all(kind, data)
        elif kind == CONTROL:
            self._control(json.loads(bytes(data)))

    def _control(self, value: object) -> None:
        if not isinstance(value, dict):
            raise broken_answer("a control message is no JSON object")
        problem = value.get("problem")
        if isinstance(problem, dict):
            raise remote(problem)
        if value.get("started") and self._plan.on_started is not None:
            self._plan.on_started()
        warnings = value.get("warnings")
        if isinstance(warnings, list) and self._plan.warn is not None:
            for warning in warnings:
                self._plan.warn(str(warning))
        code = value.get("exit_code")
        if isinstance(code, int):
            code = code & 0xFF if code > 255 or code < 0 else code
            reason = value.get("reason")
            self.ended = Ended(
                code,
                oom_killed=value.get("oom_killed") is True,
                reason=reason if isinstance(reason, str) else "",
            )

    def _input(self) -> None:
        try:
            data = posix.read(0, INPUT_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a terminal that is gone ends the input
        if not data:
            self._reading = False
            self._queue(BINARY, bytes((STDIN,)))
            return
        data, detach = self._detacher.feed(data)
        if data:
            self._queue(BINARY, bytes((STDIN,)) + data)
        if detach:
            self._flush()
            self.ended = Ended(0, detached=True)

    def _flush(self) -> None:
        """Wait until what was typed before the detach keys is sent, 2 s at most."""
        poll = select.poll()
        poll.register(self._stream.fileno(), _OUT)
        for _ in range(20):
            if not self._out:
                return
            poll.poll(100)
            self._send()

    def _signals(self) -> None:
        for number in self._pipe.take():
            if number == WINCH:
                self._resize()
            elif number == HUP and self._plan.terminal:
                raise SystemExit(128 + HUP)  # our terminal is gone; the process keeps its own
            elif self._plan.kill is not None:
                self._plan.kill(PROXIED[number])
                self._count(number)

    def _count(self, number: int) -> None:
        """A first process without a handler ignores INT and TERM: who insists is let go, as with Docker."""
        self._insisted += number in (INT, TERM)
        if self._insisted >= MAX_INSISTED:
            write_all(2, b"casemate: got 3 SIGTERM/SIGINTs; the process goes on: `casemate ps`, `casemate kill`\n")
            raise SystemExit(128 + number)

    def _resize(self) -> None:
        if not self._plan.terminal:
            return
        from casemate.cli.session.terminal import window

        size = window(0) or window(1)
        if size is not None:
            text = json.dumps({"rows": size[0], "columns": size[1]})
            self._queue(BINARY, bytes((CONTROL,)) + text.encode())


def _would_block(error: OSError) -> bool:
    """EAGAIN, and TLS's own way to say it (SSLWantReadError, SSLWantWriteError)."""
    return isinstance(error, BlockingIOError) or type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError")
