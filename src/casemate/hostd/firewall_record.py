"""What is in force, on hostd's own file: so that it can be made again when hostd, or somebody's flush, took it away.

The file lies below the run folder: a reboot ends every pod, and casemated gives the whole state anew. A replacement is
one entry that begins the file; each change is one more, written before the kernel is asked. An entry that was cut short
by a crash, and what follows it, does not count.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from casemate.host import durable
from casemate.hostd import firewall_body
from casemate.hostd import protocol_firewall as wire
from casemate.hostd.errors import FirewallBodyInvalid
from casemate.hostd.firewall_body import Body

#: length of the body, state's generation, generation of the rules (0: no policy in force), crc of the body
_ENTRY = struct.Struct("!4sIQII")
_MAGIC = b"CMFE"
#: Above this, and twice the whole state, what changes have added is folded into one entry.
_FOLD_BYTES = 8 << 20
_MAX_FILE_BYTES = 512 << 20


@dataclass(slots=True)
class InForce:
    """The state in force by number; *rules* is the generation that labels bear, 0 where no policy holds."""

    generation: int
    rules: int


class FirewallRecord:
    """The file at *path*."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes = 0
        self._first_bytes = 0

    def write_whole(self, body: Body, now: InForce) -> None:
        """*body* is all that is in force from now on."""
        data = _entry(body, now)
        durable.write_atomic(self._path, data, sync=False)
        self._bytes = self._first_bytes = len(data)

    def append(self, body: Body, now: InForce) -> int:
        """One change more; where the file ended before, for :meth:`cut`."""
        number = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        before = self._bytes
        try:
            view = memoryview(_entry(body, now))
            self._bytes += len(view)
            while view:
                view = view[os.write(number, view) :]
        finally:
            os.close(number)
        return before

    def cut(self, length: int) -> None:
        """The change after *length* did not come about."""
        os.truncate(self._path, length)
        self._bytes = length

    @property
    def is_long(self) -> bool:
        """Whether the changes are to be folded into one entry."""
        return self._bytes > max(_FOLD_BYTES, 3 * self._first_bytes)

    def read(self) -> tuple[Body, InForce] | None:
        """The whole state, changes folded in; None where nothing is known."""
        try:
            data = durable.read_bounded(self._path, _MAX_FILE_BYTES)
        except FileNotFoundError:
            return None
        now: InForce | None = None
        folded: dict[str, dict[bytes, bytes]] = {"verdict": {}, "base": {}, "address": {}}
        length = 0
        for body, seen, end in _entries(data):
            now, length = seen, end
            for kind, held in folded.items():
                _fold(held, kind, body)
        self._bytes = self._first_bytes = length
        if now is None:
            return None
        if length != len(data):
            os.truncate(self._path, length)
        adds = {f"{kind}_adds": b"".join(held.values()) for kind, held in folded.items()}
        return Body({name: adds.get(name, b"") for name in wire.SECTIONS}), now


def _entry(body: Body, now: InForce) -> bytes:
    data = body.bytes()
    return _ENTRY.pack(_MAGIC, len(data), now.generation, now.rules, zlib.crc32(data)) + data


def _entries(data: bytes) -> Iterator[tuple[Body, InForce, int]]:
    at = 0
    while at + _ENTRY.size <= len(data):
        magic, size, generation, rules, crc = _ENTRY.unpack_from(data, at)
        content = data[at + _ENTRY.size : at + _ENTRY.size + size]
        at += _ENTRY.size + size
        if magic != _MAGIC or len(content) != size or zlib.crc32(content) != crc:
            return
        try:
            body = firewall_body.parse(content)
        except FirewallBodyInvalid:
            return
        yield body, InForce(generation, rules), at


def _fold(held: dict[bytes, bytes], kind: str, body: Body) -> None:
    """Records by what the kernel tells them apart by."""
    record = wire.RECORDS[f"{kind}_adds"]
    key_bytes = {"verdict": record.size - 1, "base": 4, "address": record.size - 8}[kind]
    gone, come = body.sections[f"{kind}_deletes"], body.sections[f"{kind}_adds"]
    for at in range(0, len(gone), record.size):
        held.pop(gone[at : at + key_bytes], None)
    for at in range(0, len(come), record.size):
        held[come[at : at + key_bytes]] = come[at : at + record.size]
