"""Signals as bytes on a pipe, so that the loop that moves bytes also sees them; the old handlers come back."""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal  # the C module has no stub; what is used of it has the same names and types
else:
    import _signal

HUP, INT, QUIT, USR1, USR2, TERM, CONT, WINCH = 1, 2, 3, 10, 12, 15, 18, 28

#: What is passed on to a container's process: what people and supervisors send. Not CHLD, PIPE, URG, WINCH: they are
#: about this process. Not TSTP: Ctrl-Z stops this client, as with Docker.
PROXIED = {HUP: "SIGHUP", INT: "SIGINT", QUIT: "SIGQUIT", USR1: "SIGUSR1", USR2: "SIGUSR2", TERM: "SIGTERM"}


class SignalPipe:
    """``with SignalPipe((INT, TERM)) as pipe``: ``pipe.fd`` becomes readable, ``pipe.take()`` answers the numbers."""

    __slots__ = ("_before", "_numbers", "_wakeup", "_write", "fd")

    def __init__(self, numbers: tuple[int, ...]) -> None:
        self._numbers = numbers
        self._before: list[tuple[int, object]] = []
        self._wakeup = -1
        self.fd = -1
        self._write = -1

    def __enter__(self) -> SignalPipe:
        self.fd, self._write = posix.pipe2(posix.O_NONBLOCK | posix.O_CLOEXEC)
        self._wakeup = _signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self._numbers:
            self._before.append((number, _signal.signal(number, _ignore)))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            if handler is not None:
                _signal.signal(number, handler)  # type: ignore[arg-type]  # as it came
        _signal.set_wakeup_fd(self._wakeup)
        posix.close(self.fd)
        posix.close(self._write)

    def take(self) -> list[int]:
        try:
            return [number for number in posix.read(self.fd, 512) if number in self._numbers]
        except BlockingIOError:
            return []


def _ignore(number: int, frame: object) -> None:
    """The wake-up pipe tells; a handler must be there for the signal not to end the process."""
