"""WebSocket as a client speaks it (RFC 6455): frames in and out, pure; no extensions, no text.

Bounds: a message of at most 16 MiB (the daemon sends what it reads from a pipe, 64 KiB or so), control frames of at
most 125 bytes as the RFC has it.
"""

from __future__ import annotations

from casemate.cli.fail import broken_answer

TYPE_CHECKING = False

MAX_MESSAGE_BYTES = 16 << 20
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def expected_accept(key: bytes) -> str:
    """Sec-WebSocket-Accept for *key* (RFC 6455, 4.2.2)."""
    import binascii

    from casemate.cli.wire.digest import sha1

    return binascii.b2a_base64(sha1(key + _GUID), newline=False).decode()


def new_key(random: bytes) -> bytes:
    """Sec-WebSocket-Key out of 16 random bytes."""
    import binascii

    return binascii.b2a_base64(random, newline=False)


def encode_frame(opcode: int, payload: bytes, mask: bytes) -> bytes:
    """One final frame, masked with the four bytes *mask* as a client must (5.3)."""
    length = len(payload)
    if length < 126:
        head = bytes((0x80 | opcode, 0x80 | length))
    elif length < 1 << 16:
        head = bytes((0x80 | opcode, 0x80 | 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + length.to_bytes(8, "big")
    return head + mask + masked(payload, mask)


def masked(payload: bytes, mask: bytes) -> bytes:
    """*payload* exclusive-or the repeated *mask*: one operation on long integers, 1 GB/s and no loop."""
    length = len(payload)
    stretched = (mask * (length // 4 + 1))[:length]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(stretched, "little")).to_bytes(length, "little")


class Frames:
    """Bytes in, messages out: ``feed`` the bytes, then take ``(opcode, payload)`` until there is none."""

    __slots__ = ("_buffer", "_kind", "_parts", "_size", "closed")

    def __init__(self, first: bytes = b"") -> None:
        self._buffer = bytearray(first)
        self._parts: list[bytes] = []
        self._size = 0
        #: Opcode of the message whose fragments are being gathered; -1 outside of one.
        self._kind = -1
        self.closed = False

    def feed(self, data: bytes) -> None:
        if not self.closed:
            self._buffer += data

    def messages(self) -> list[tuple[int, bytes]]:
        """The whole messages so far: BINARY, and CLOSE, PING, PONG as they come; nothing after a CLOSE."""
        found: list[tuple[int, bytes]] = []
        at = 0
        buffer = self._buffer
        while not self.closed:
            frame = _header(buffer, at)
            if frame is None:
                break
            opcode, final, start, length = frame
            if len(buffer) - start < length:
                break
            payload = bytes(memoryview(buffer)[start : start + length])
            at = start + length
            whole = self._take(opcode, final, payload)
            if whole is not None:
                found.append(whole)
        del buffer[:at]
        return found

    def _take(self, opcode: int, final: bool, payload: bytes) -> tuple[int, bytes] | None:
        if opcode >= CLOSE:
            self.closed = opcode == CLOSE
            return opcode, payload
        if opcode == CONTINUATION:
            if self._kind < 0:
                raise broken_answer("a WebSocket message goes on that never began")
        elif self._kind >= 0:
            raise broken_answer("a WebSocket message begins within another")
        else:
            self._kind = opcode
        self._parts.append(payload)
        self._size += len(payload)
        if self._size > MAX_MESSAGE_BYTES or len(self._parts) > 4096:
            raise broken_answer(f"a WebSocket message is longer than {MAX_MESSAGE_BYTES} bytes or 4096 fragments")
        if not final:
            return None
        whole = (self._kind, b"".join(self._parts) if len(self._parts) > 1 else payload)
        self._parts, self._size, self._kind = [], 0, -1
        return whole


def _header(buffer: bytearray, at: int) -> tuple[int, bool, int, int] | None:
    """Opcode, final, where the payload starts, its length; None while the header is not whole."""
    have = len(buffer) - at
    if have < 2:
        return None
    first, second = buffer[at], buffer[at + 1]
    opcode, length = first & 0x0F, second & 0x7F
    if first & 0x70 or second & 0x80 or opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
        raise broken_answer(f"a WebSocket frame begins with {first:#04x} {second:#04x}, which a server may not send")
    if opcode >= CLOSE and (length > 125 or not first & 0x80):
        raise broken_answer("a WebSocket control frame is fragmented or longer than 125 bytes")
    start = at + 2
    if length >= 126:
        size = 2 if length == 126 else 8
        if have < 2 + size:
            return None
        length = int.from_bytes(buffer[start : start + size], "big")
        start += size
        if length > MAX_MESSAGE_BYTES:
            raise broken_answer(f"a WebSocket frame says {length} bytes; at most {MAX_MESSAGE_BYTES} are read")
    return opcode, bool(first & 0x80), start, length
