"""Compressed chunks in, uncompressed chunks out; the form is seen from the first bytes, as Docker does.

The output of one step is bounded (1 MiB), so a bomb costs its reader no more memory than a proper layer; the
caller bounds the sum.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable, Iterator
from typing import IO, Protocol, cast

import zstandard
from isal import isal_zlib

from casemate.image.errors import LayerCutOff, LayerInvalid

STEP_BYTES = 1 << 20
#: `zstd --long=27`, the most that zstd's own command takes unasked.
MAX_WINDOW_BYTES = 128 << 20
XZ_MEMORY_BYTES = 256 << 20
#: The stub calls this a value.
_GZIP_ERROR = cast("type[Exception]", isal_zlib.error)

GZIP, ZSTD, BZIP2, XZ, PLAIN = "gzip", "zstd", "bzip2", "xz", "plain"
_MAGIC = ((b"\x1f\x8b", GZIP), (b"\x28\xb5\x2f\xfd", ZSTD), (b"BZh", BZIP2), (b"\xfd7zXZ\0", XZ))


class _Stepwise(Protocol):
    """What bz2's and lzma's decompressors have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def sniff(head: bytes) -> str:
    """The form that *head* (at least 6 bytes, if the stream has them) begins: gzip, zstd, bzip2, xz or plain."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    # A skippable frame (RFC 8878, 3.1.2) may stand before the first real one.
    return ZSTD if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50 else PLAIN


def decompressed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """*chunks* uncompressed, whatever their form; raises :class:`LayerInvalid` or :class:`LayerCutOff`."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 6:
            break
    rest = _with_head(head, chunks)
    match sniff(head):
        case "gzip":
            return _gzip(rest)
        case "zstd":
            return _zstd(rest)
        case "bzip2":
            return _stepwise(rest, bz2.BZ2Decompressor, "bzip2")
        case "xz":
            return _stepwise(rest, lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES), "xz")
        case _:
            return rest


def _with_head(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from chunks


def _gzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    engine = isal_zlib.decompressobj(wbits=31)
    fresh = True
    for chunk in chunks:
        data = chunk
        while data:
            if fresh and not data.strip(b"\0"):
                break  # padding after the last member
            fresh = False
            try:
                output = engine.decompress(data, STEP_BYTES)
            except _GZIP_ERROR as error:
                raise LayerInvalid(f"the gzip stream is damaged: {error}") from error
            if output:
                yield output
            if engine.eof:
                data = engine.unused_data
                engine = isal_zlib.decompressobj(wbits=31)
                fresh = True
            else:
                data = engine.unconsumed_tail
    while not fresh:
        output = engine.decompress(b"", STEP_BYTES)
        if not output:
            break
        yield output
    if not fresh and not engine.eof:
        raise LayerCutOff("the gzip stream ends before its last member does")


def _zstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    source = _Source(chunks)
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(
        cast("IO[bytes]", source), read_across_frames=True
    )
    while True:
        try:
            output = reader.read(STEP_BYTES)
        except zstandard.ZstdError as error:
            raise LayerInvalid(f"the zstd stream is damaged: {error}") from error
        if not output:
            return
        yield output


class _Source:
    """Chunks as the file that zstandard reads."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def read(self, size: int = -1) -> bytes:
        data = self._left or next(self._chunks, b"")
        self._left = data[size:] if 0 <= size < len(data) else b""
        return data[:size] if self._left else data


def _stepwise(chunks: Iterator[bytes], make: Callable[[], _Stepwise], form: str) -> Iterator[bytes]:
    engine = make()
    started = False
    for chunk in chunks:
        data = chunk
        while data or (started and not engine.needs_input):
            try:
                output = engine.decompress(data, STEP_BYTES)
            except (OSError, ValueError, EOFError, lzma.LZMAError) as error:
                raise LayerInvalid(f"the {form} stream is damaged: {error}") from error
            started = True
            data = b""
            if output:
                yield output
            if engine.eof:
                data = engine.unused_data.lstrip(b"\0")
                engine, started = make(), False
    if started:
        raise LayerCutOff(f"the {form} stream ends before its last part does")
