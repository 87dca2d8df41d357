"""Server-sent events as the daemon writes them: ``id``, ``event``, one JSON ``data`` line (WHATWG HTML, 9.2)."""

from __future__ import annotations

from casemate.cli.fail import broken_answer
from casemate.cli.wire import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: One line; the largest event is a StatsAnswer of thousands of rows, below 1 MiB.
MAX_LINE_BYTES = 8 << 20


def read_events(chunks: Iterable[bytes]) -> Iterator[tuple[str, object]]:
    """``(event, value)`` for each event of the stream; comments (keep-alives) are passed over."""
    name, data = "message", b""
    for line in _lines(chunks):
        if not line:
            if data:
                yield name, json.loads(data)
            name, data = "message", b""
            continue
        field, _, rest = line.partition(b":")
        rest = rest.removeprefix(b" ")
        if field == b"event":
            name = rest.decode("utf-8", "replace")
        elif field == b"data":
            data += rest if not data else b"\n" + rest
            if len(data) > MAX_LINE_BYTES:
                raise broken_answer(f"an event is longer than {MAX_LINE_BYTES} bytes")


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    kept = b""
    for chunk in chunks:
        kept += chunk
        if b"\n" in chunk:
            *lines, kept = kept.split(b"\n")
            for line in lines:
                yield line.removesuffix(b"\r")
        if len(kept) > MAX_LINE_BYTES:
            raise broken_answer(f"a line of events is longer than {MAX_LINE_BYTES} bytes")
