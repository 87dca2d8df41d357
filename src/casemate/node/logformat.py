"""The form of a container's log: ``RFC3339Nano stream F|P text``, a line each; P lines are parts of a longer one. Pure.

What a container writes is hostile, and conmon's framing is all that separates it from the next line: every bound
holds, and a line that is none (a file cut off in its middle by rotation or a full disk) is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

#: conmon reads 8 KiB at a time, so a line in the file is not longer than this by much.
MAX_LINE_BYTES = 64 << 10
#: Parts of one line are joined for a reader up to here; then it gets what there is, as a piece.
MAX_JOINED_BYTES = 16 << 10
BLOCK_BYTES = 64 << 10
STDOUT, STDERR = 1, 2
_STREAMS = {b"stdout": STDOUT, b"stderr": STDERR}


@dataclass(frozen=True, slots=True)
class Line:
    """*text* with its line end, unless it is a part (or the last line had none); *stamp* as it stands in the file."""

    stream: int
    text: bytes
    stamp: bytes
    partial: bool

    @property
    def at(self) -> float:
        """Seconds since the epoch; 0 when the stamp cannot be read."""
        return parse_stamp(self.stamp)


def parse_line(raw: bytes) -> Line | None:
    """One line of the file without its newline, or None when it is no such line."""
    parts = raw.split(b" ", 3)
    if len(parts) != 4 or parts[2] not in (b"F", b"P") or len(parts[0]) > 40:
        return None
    stream = _STREAMS.get(parts[1])
    if stream is None:
        return None
    partial = parts[2] == b"P"
    return Line(stream, parts[3] if partial else parts[3] + b"\n", parts[0], partial)


def parse_stamp(stamp: bytes) -> float:
    """``2026-01-31T12:00:00.123456789+01:00`` as seconds since the epoch."""
    try:
        text = stamp.decode("ascii")
        day, _, rest = text.partition(".")
        digits = "".join(char for char in rest[:9] if char.isdigit())
        zone = rest[len(digits) :] if rest else text[19:]
        moment = datetime.fromisoformat(day[:19] + ("+00:00" if zone in ("Z", "") else zone))
        return moment.astimezone(UTC).timestamp() + (float(f"0.{digits}") if digits else 0.0)
    except ValueError:
        return 0.0


class Splitter:
    """Bytes of the file in, lines out; holds at most :data:`MAX_LINE_BYTES` of an unfinished line."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[Line]:
        pieces = (self._rest + data).split(b"\n")
        self._rest = pieces.pop()
        for piece in pieces:
            if self._skipping:
                self._skipping = False
                continue
            line = parse_line(piece)
            if line is not None:
                yield line
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest, self._skipping = b"", True


def tail_offset(read_at: Callable[[int, int], bytes], size: int, wanted: int) -> tuple[int, int]:
    """Where the last *wanted* whole lines of a file of *size* bytes begin, and how many lines are from there on.

    *read_at(length, offset)* answers bytes. The file is looked through backwards in blocks, so a long file costs no
    more than what is shown. The parts of a line count with it as one.
    """
    end, found, begin = size, 0, size
    carried = b""  # the beginning of a line whose end is in a later block
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        block = read_at(end - start, start) + carried
        lines = block.split(b"\n")
        carried = lines[0] if start else b""
        position = start + len(block)
        for number in range(len(lines) - 1, 0 if start else -1, -1):
            position -= len(lines[number])
            line = parse_line(lines[number])
            if line is not None:
                if not line.partial and found == wanted:
                    return begin, found
                found += not line.partial
                # A part at the very end is a line that is still being written: it counts when it is whole.
                begin = position
            position -= 1
        end = start
        if len(carried) > MAX_LINE_BYTES:
            carried = b""
    return begin, found
