"""``logs``: the framed stream of the API, to standard output and standard error."""

from __future__ import annotations

import time

from casemate.cli.asked.quantities import moment, whole
from casemate.cli.context import write_all
from casemate.cli.fail import broken_answer
from casemate.cli.flags import Arguments, Command, switch, value
from casemate.cli.wire.http import segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from casemate.cli.context import Context
    from casemate.cli.wire.client import Pairs

#: One frame is a piece of a line at most; conmon splits at 8 KiB, we take far more.
MAX_FRAME_BYTES = 16 << 20
HEAD_BYTES = 8


def frames(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """``(stream, text)`` for each frame: one byte stream (1 or 2), three zero bytes, four bytes length."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        at = 0
        while len(held) - at >= HEAD_BYTES:
            stream, length = held[at], int.from_bytes(held[at + 4 : at + 8], "big")
            if stream not in (1, 2) or any(held[at + 1 : at + 4]) or length > MAX_FRAME_BYTES:
                raise broken_answer(f"a frame of the log begins with {bytes(held[at : at + 8]).hex()}")
            if len(held) - at - HEAD_BYTES < length:
                break
            yield stream, bytes(held[at + HEAD_BYTES : at + HEAD_BYTES + length])
            at += HEAD_BYTES + length
        del held[:at]
    if held:
        raise broken_answer(f"the log ends {len(held)} bytes into a frame")


def logs(arguments: Arguments, context: Context) -> int:
    answer = context.client.send("GET", f"/v1/containers/{segment(arguments.words[0])}/logs", _pairs(arguments))
    if context.json:
        return _as_json(answer.chunks, context)
    for stream, data in frames(answer.chunks):
        write_all(stream, data)
    return 0


def _as_json(chunks: Iterable[bytes], context: Context) -> int:
    """An object for each frame, one a line: the stream goes on while it is followed."""
    from casemate.cli.wire import json

    for stream, data in frames(chunks):
        row = {"stream": "stdout" if stream == 1 else "stderr", "text": data.decode("utf-8", "replace")}
        context.write(json.dumps(row) + "\n")
    return 0


def _pairs(arguments: Arguments) -> Pairs:
    pairs: Pairs = [(name, "true") for name in ("follow", "timestamps") if arguments.on(name)]
    now = time.time()
    for name in ("since", "until"):
        text = arguments.text(name)
        if text is not None:
            pairs.append((name, moment(f"--{name}", text, now)))
    tail = arguments.text("tail")
    if tail is not None and tail not in ("all", "-1"):
        pairs.append(("tail", str(whole("--tail", tail, 0, 1 << 40))))
    return pairs


LOGS = Command(
    "[OPTIONS] CONTAINER", logs,
    (switch("follow", "Go on as more is written", "f"),
     value("since", "TIME", "Only from this time, or age (42m), on"),
     value("until", "TIME", "Only up to this time, or age"),
     value("tail", "N", "Only the last N lines", "n"),
     switch("timestamps", "Put the time before each line", "t")),
    1, 1, ("container",), "", ("casemate logs -f --tail 20 web", "casemate logs --since 10m -t web"),
)  # fmt: skip
