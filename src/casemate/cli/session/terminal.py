"""The local terminal: raw while attached, restored whatever happens; its size."""

from __future__ import annotations

import posix
import termios

#: Positions in what tcgetattr answers (termios(3), Python's order).
_IFLAG, _OFLAG, _CFLAG, _LFLAG, _CC = 0, 1, 2, 3, 6


class RawTerminal:
    """``with RawTerminal(0):`` every byte goes through as typed; the old settings come back at the end."""

    __slots__ = ("_before", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._before: list[object] | None = None

    def __enter__(self) -> RawTerminal:
        self._before = termios.tcgetattr(self.fd)
        raw = termios.tcgetattr(self.fd)
        raw[_IFLAG] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        raw[_OFLAG] &= ~termios.OPOST
        raw[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        raw[_CFLAG] = (raw[_CFLAG] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
        control = list(raw[_CC])
        control[termios.VMIN], control[termios.VTIME] = 1, 0
        raw[_CC] = control
        termios.tcsetattr(self.fd, termios.TCSANOW, raw)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            try:
                termios.tcsetattr(self.fd, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]  # as it came
            except termios.error:
                return  # the terminal is gone: nothing is left to restore


def window(fd: int) -> tuple[int, int] | None:
    """Rows and columns of the terminal *fd*; None where it has none."""
    try:
        found = posix.get_terminal_size(fd)
    except OSError:
        return None
    return (found.lines, found.columns) if found.lines > 0 and found.columns > 0 else None
