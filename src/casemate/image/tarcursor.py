"""A cursor over chunks of a tar stream that forwards what is kept with as few copies and writes as possible.

What lies between ``keep`` and ``position`` of the current chunk has been looked at and will be forwarded in one
piece; headers and contents that pass unchanged are never copied. Only what is dropped or replaced cuts a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from casemate.image.errors import LayerCutOff
from casemate.image.tarheader import BLOCK_BYTES

Sink = Callable[[bytes | memoryview], None]


class Cursor:
    """*chunks* in, kept pieces out to *sink*. A header that was read is undecided until keep or drop is called."""

    __slots__ = ("_chunk", "_chunks", "_header", "_keep", "_position", "_sink", "_split", "_view")

    def __init__(self, chunks: Iterator[bytes], sink: Sink) -> None:
        self._chunks = chunks
        self._sink = sink
        self._chunk = b""
        self._view = memoryview(b"")
        self._keep = self._position = 0
        self._header = b""
        self._split = False

    def header(self) -> bytes | None:
        """The next 512 bytes, or None at the stream's end; fewer are a layer that was cut off (unless all are zero)."""
        start = self._position
        end = start + BLOCK_BYTES
        if end <= len(self._chunk):
            self._position = end
            self._header = self._chunk[start:end]
            self._split = False
            return self._header
        self._flush(start)
        block = self._gather(BLOCK_BYTES)
        self._split = True
        if len(block) < BLOCK_BYTES:
            if block.strip(b"\0"):
                raise LayerCutOff(f"the layer ends {len(block)} bytes into a header")
            return None
        self._header = block
        return block

    def keep_header(self) -> None:
        """Forward the header that was just read as it is."""
        if self._split:
            self._sink(self._header)
            self._keep = self._position

    def drop_header(self) -> None:
        """Do not forward the header that was just read."""
        if not self._split:
            self._flush(self._position - BLOCK_BYTES)
        self._keep = self._position

    def emit(self, data: bytes | memoryview) -> None:
        """Forward *data* at this place; everything before must have been kept or dropped."""
        self._flush(self._position)
        self._sink(data)

    def keep(self, count: int, what: bytes) -> None:
        """Forward the next *count* bytes as they are."""
        position = self._position + count
        if position <= len(self._chunk):
            self._position = position
            return
        while count:
            if self._position == len(self._chunk) and not self._next():
                raise LayerCutOff(f"the layer ends {count} bytes before the end of {what[:200]!r}")
            step = min(count, len(self._chunk) - self._position)
            self._position += step
            count -= step

    def drop(self, count: int, what: bytes) -> None:
        """Pass over *count* bytes without forwarding them."""
        self._flush(self._position)
        while count:
            if self._position == len(self._chunk) and not self._next():
                raise LayerCutOff(f"the layer ends {count} bytes before the end of {what[:200]!r}")
            step = min(count, len(self._chunk) - self._position)
            self._position += step
            self._keep = self._position
            count -= step

    def take(self, count: int, what: bytes) -> bytes:
        """The next *count* bytes as one value, not forwarded. Callers bound *count*."""
        self._flush(self._position)
        data = self._gather(count)
        if len(data) < count:
            raise LayerCutOff(f"the layer ends {count - len(data)} bytes before the end of {what[:200]!r}")
        return data

    def pad(self, size: int, *, keep: bool) -> None:
        """Pass the padding after *size* bytes of content; at the very end it may be missing (it is made up)."""
        count = -size % BLOCK_BYTES
        if keep and self._position + count <= len(self._chunk):
            self._position += count
            return
        if not keep:
            self._flush(self._position)
        while count:
            if self._position == len(self._chunk) and not self._next():
                if keep:
                    self._sink(bytes(count))
                return
            step = min(count, len(self._chunk) - self._position)
            self._position += step
            count -= step
            if not keep:
                self._keep = self._position

    def drain(self) -> bool:
        """Read to the end without forwarding; whether anything but zeros came."""
        self._flush(self._position)
        dirty = bool(self._chunk[self._position :].strip(b"\0"))
        self._position = self._keep = len(self._chunk)
        for chunk in self._chunks:
            dirty = dirty or bool(chunk.strip(b"\0"))
        return dirty

    def _gather(self, count: int) -> bytes:
        parts = []
        while count:
            if self._position == len(self._chunk) and not self._next():
                break
            step = min(count, len(self._chunk) - self._position)
            parts.append(self._chunk[self._position : self._position + step])
            self._position += step
            self._keep = self._position
            count -= step
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _flush(self, end: int) -> None:
        if end > self._keep:
            self._sink(self._view[self._keep : end])
        self._keep = end

    def _next(self) -> bool:
        self._flush(self._position)
        for chunk in self._chunks:
            if chunk:
                self._chunk, self._view = chunk, memoryview(chunk)
                self._keep = self._position = 0
                return True
        self._chunk, self._view, self._keep, self._position = b"", memoryview(b""), 0, 0
        return False
