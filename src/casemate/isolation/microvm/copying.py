"""Files in and out of a machine: a child of the agent's does the work, the monitor carries the bytes.

hostd looks at none of them: a tar goes from the guest to who asked for it, or to a file that only a guest reads again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from typing import Literal, NoReturn

from casemate.host.netns import in_own_thread
from casemate.isolation.microvm import frames
from casemate.isolation.microvm.errors import AgentFailed, CopyRefused, PathMissing
from casemate.isolation.microvm.frames import Field, Kind, Tag
from casemate.isolation.microvm.machine import Machine
from casemate.spec.errors import DiskFull, LimitExceeded

#: guest/agent/tar.h. ``save`` and ``restore`` are of the writable layer as overlayfs keeps it.
Work = Literal["archive", "extract", "export", "diff", "save", "restore"]
_LETTERS: dict[Work, str] = {
    "archive": "A",
    "extract": "E",
    "export": "X",
    "diff": "D",
    "save": "S",
    "restore": "R",
}
_STDIN = 4  # wire.h, FLAG_STDIN
#: 128 and SIGKILL: of the guest's child, or of all at once when the monitor goes (shim/monitor.c).
_KILLED = 137
_MAX_WORDS_BYTES = 1000
#: A large copy under emulation; the operation's own deadline is shorter for what is small.
TIMEOUT_S = 4 * 3600.0
_CHUNK = 1 << 20


async def copy(machine: Machine, container: str, work: Work, path: str, data: int) -> None:
    """Let the guest do *work* at *path*, its bytes through the descriptor *data* (not closed here).

    Raises :class:`PathMissing`, :class:`CopyRefused`, :class:`AgentFailed`. Cancelled, it ends the guest's child.
    """
    reads = work in ("extract", "restore")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = os.memfd_create("words", os.MFD_CLOEXEC)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, words)
        stack.callback(ours.close)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null)
        own = _own_description(data, os.O_RDONLY if reads else os.O_WRONLY)
        stack.callback(os.close, own)
        channel = machine.next_channel()
        with theirs:
            standard = (own, null) if reads else (null, own)
            machine.monitor.attach(channel, [*standard, words, theirs.fileno()])
        fields = [
            frames.text(Tag.CONTAINER, container),
            frames.text(Tag.PROCESS, f"f{channel}"),
            frames.u32(Tag.CHANNEL, channel),
            frames.u32(Tag.FLAGS, _STDIN if reads else 0),
            Field(Tag.FILES, f"{_LETTERS[work]}{path}".encode("utf-8", "surrogateescape")),
        ]
        await machine.monitor.ask(Kind.FILES, fields)
        ours.setblocking(False)
        async with asyncio.timeout(TIMEOUT_S):
            said = await asyncio.get_running_loop().sock_recv(ours, 4)
        # Nothing: the monitor itself was killed.
        code = int.from_bytes(said, "little") if said else _KILLED
        if code:
            _raise(os.pread(words, _MAX_WORDS_BYTES, 0), code)


def _own_description(number: int, flags: int) -> int:
    """A description of our own of a pipe, so that making it non-blocking reaches nobody else's end."""
    if stat.S_ISFIFO(os.fstat(number).st_mode):
        return os.open(f"/proc/self/fd/{number}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.dup(number)


def _raise(words: bytes, code: int) -> NoReturn:
    text = "".join(c if c.isprintable() else "?" for c in words.decode("utf-8", "replace"))
    kind, colon, rest = text.partition(": ")
    if colon and kind == "missing":
        raise PathMissing(f"in the container: {rest}")
    if colon and kind == "refused":
        raise CopyRefused(f"in the container: {rest}")
    if colon and kind == "full":
        raise DiskFull(
            f"in the container: {rest}", remedy="Run it with more --memory: what a machine writes lies there."
        )
    if not words and code == _KILLED:
        raise AgentFailed(
            "the copy was ended: the container was started anew or removed meanwhile, or its machine ended",
            remedy="Try again; `casemate inspect` tells the container's state.",
        )
    raise AgentFailed(f"the guest's copy ended: {text or f'it said nothing (code {code})'}")


async def save(machine: Machine, container: str, file: int, most_bytes: int) -> None:
    """The container's writable layer into the regular *file*, at most *most_bytes* of it. :class:`LimitExceeded`."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        async with asyncio.TaskGroup() as group:
            taking = group.create_task(in_own_thread(lambda: _take(read_end, file, most_bytes), timeout_s=TIMEOUT_S))
            try:
                await copy(machine, container, "save", "/", write_end)
            finally:
                os.close(write_end)
                write_end = -1
            if not await taking:
                raise LimitExceeded(f"the writable layer is larger than {most_bytes} bytes", limit=most_bytes)
    except ExceptionGroup as group_error:
        raise group_error.exceptions[0] from group_error
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)


def _take(source: int, file: int, most_bytes: int) -> bool:
    """Copy a pipe to its end; what is beyond the bound is read and dropped, and answers False."""
    size = 0
    while data := os.read(source, _CHUNK):
        size += len(data)
        if size <= most_bytes:
            os.write(file, data)
    return size <= most_bytes
