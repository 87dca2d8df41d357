"""Fuzzer of what a guest says: decoding, the texts for people, and the machine's book-keeping that follows.

``python tests/fuzz/agent_frames.py [seconds]`` (default 60). Whatever the bytes, there is a message or GuestBroken,
never another exception, and no status that a guest can set but "stopped".
"""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["casemate.isolation.microvm"]):
        from casemate.isolation.microvm import frames

from casemate.isolation.microvm import frames, records
from casemate.isolation.microvm.frames import Field, GuestBroken, Kind, Tag
from casemate.isolation.microvm.machine import Machine

_FOLDER = Path(tempfile.mkdtemp(prefix="casemate-fuzz-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
_CONTAINER = records.ContainerRecord("c", "/b", 7, "running", 1)


def one_input(data: bytes) -> None:
    """Handle one message as the monitor's reader does."""
    machine = Machine(records.MachineRecord("m", 1, 2, (_CONTAINER,)), _FOLDER, cast(Any, None))
    try:
        message = frames.decode(data)
        machine.hear(message)
        words = message.text(Tag.TEXT)
        message.number_of(Tag.ERRNO)
    except GuestBroken:
        return
    assert len(words) <= frames.MAX_TEXT_BYTES
    assert all(c.isprintable() for c in words)
    (one,) = machine.record.containers
    assert one.id == "c"
    assert one.status in ("running", "stopped")
    assert 0 <= one.code <= 255


def seeds() -> list[bytes]:
    """Right messages, so that the fuzzer starts inside."""
    exited = [frames.text(Tag.CONTAINER, "c"), frames.u32(Tag.STATUS, 3), frames.u32(Tag.FLAGS, 1)]
    return [
        frames.encode(Kind.READY, 0, [frames.u32(Tag.VERSION, 1)]),
        frames.encode(Kind.EXITED, 0, exited),
        frames.encode(Kind.REPLY, 9, [frames.u32(Tag.ERRNO, 2), frames.text(Tag.TEXT, "why")]),
        frames.encode(Kind.REPLY, 9, [Field(Tag.STAT, b"cgroup.procs\x001\n2\n"), frames.u32(Tag.ERRNO, 0)]),
    ]


def main() -> None:
    seconds = sys.argv[1] if len(sys.argv) > 1 else "60"
    corpus = _FOLDER / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=4096", str(corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
