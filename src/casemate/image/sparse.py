"""Sparse files in tar: the four ways that GNU tar wrote them, each as a list of (offset, length) pieces. Pure.

Source: GNU tar manual, "Storing Sparse Files": old GNU (type ``S``), pax 0.0, 0.1 and 1.0.
"""

from __future__ import annotations

from collections.abc import Callable

from casemate.image.errors import LayerInvalid, LayerTooLarge
from casemate.image.tarheader import BLOCK_BYTES, octal

#: A piece is at least a block of the file system: 1 Mi pieces of 4 KiB are a file of 8 GiB, every second block a hole.
MAX_PIECES = 1 << 20
Piece = tuple[int, int]


def old_gnu(block: bytes, read_block: Callable[[], bytes]) -> tuple[list[Piece], int]:
    """The map and the real size of a type ``S`` header; *read_block* gives the extension blocks that follow it."""
    pieces: list[Piece] = []
    table, count, more = block[386:482], 4, block[482]
    real_size = octal(block[483:495], "a sparse file's size")
    while True:
        for number in range(count):
            raw = table[24 * number : 24 * number + 24]
            if not raw.strip(b"\0"):
                break
            pieces.append((octal(raw[:12], "a sparse offset"), octal(raw[12:], "a sparse length")))
        if len(pieces) > MAX_PIECES:
            raise LayerTooLarge(f"a sparse file has more than {MAX_PIECES} pieces")
        if not more:
            return pieces, real_size
        extension = read_block()
        table, count, more = extension[:504], 21, extension[504]


def from_pax(records: list[tuple[bytes, bytes]]) -> list[Piece] | None:
    """The map of formats 0.0 (repeated offset and numbytes) and 0.1 (one list), or None when there is none."""
    numbers: list[int] = []
    for key, value in records:
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            numbers.append(_number(value))
        elif key == b"GNU.sparse.map":
            numbers = [_number(word) for word in value.split(b",")] if value else []
    if not numbers and not any(key.startswith(b"GNU.sparse.") for key, _ in records):
        return None
    return _pairs(numbers)


def from_content(read_block: Callable[[], bytes]) -> tuple[list[Piece], int]:
    """The map of format 1.0, which stands before the content in decimal lines; also the bytes that it took."""
    text = b""
    taken = 0
    wanted: int | None = None
    lines: list[bytes] = []
    while wanted is None or len(lines) < wanted:
        text += read_block()
        taken += BLOCK_BYTES
        *fresh, text = text.split(b"\n")
        if len(text.strip(b"\0")) > 24:
            raise LayerInvalid("a sparse map holds a number of more than 24 digits")
        lines.extend(fresh)
        if wanted is None and lines:
            wanted = 1 + 2 * _number(lines[0])
            if wanted > 2 * MAX_PIECES:
                raise LayerTooLarge(f"a sparse file has more than {MAX_PIECES} pieces")
    return _pairs([_number(line) for line in lines[1:wanted]]), taken


def check(pieces: list[Piece], real_size: int, stored: int) -> list[Piece]:
    """*pieces*, when they are in order, do not overlap, lie within *real_size* and add up to *stored* bytes."""
    end = total = 0
    for offset, length in pieces:
        if offset < end or length < 0 or offset + length > real_size:
            raise LayerInvalid(
                f"a sparse map has a piece of {length} bytes at {offset}; the one before ends at {end} of {real_size}"
            )
        end = offset + length
        total += length
    if total != stored:
        raise LayerInvalid(f"a sparse map adds up to {total} bytes, stored are {stored}")
    return pieces


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 24:
        raise LayerInvalid(f"a sparse map holds {text[:30]!r}, which is no number")
    return int(text)


def _pairs(numbers: list[int]) -> list[Piece]:
    if len(numbers) % 2 or len(numbers) > 2 * MAX_PIECES:
        raise LayerInvalid(f"a sparse map holds {len(numbers)} numbers")
    return list(zip(numbers[::2], numbers[1::2], strict=True))
