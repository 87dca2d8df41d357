"""HTTP/1.1 as a client reads and writes it (RFC 9112): pure, over a function that receives bytes.

Bounds: a head of at most 64 KiB and 100 fields (what servers send is below 2 KiB), a body that is read whole of at
most 256 MiB (``ps`` of 10,000 containers is about 5 MiB), a chunk's size line of 64 bytes.
"""

from __future__ import annotations

from casemate.cli.fail import broken_answer, lost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_HEAD_BYTES = 64 << 10
MAX_FIELDS = 100
MAX_BODY_BYTES = 256 << 20
MAX_CHUNK_LINE = 64
#: One receive; a pipe's or socket's buffer rarely holds more.
RECEIVE_BYTES = 256 << 10

_HEX = b"0123456789abcdefABCDEF"
#: What needs no escape in a path or query (RFC 3986, unreserved) and ``/``, ``:``.
_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/:")


class Reader:
    """A buffer before *receive*, which answers up to n bytes, and none at the end."""

    __slots__ = ("_receive", "buffer")

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self._receive = receive
        self.buffer = b""

    def until(self, mark: bytes, limit: int) -> bytes:
        """The bytes up to and with *mark*, at most *limit*."""
        start = 0
        while True:
            at = self.buffer.find(mark, start)
            if at >= 0 and at + len(mark) <= limit:
                found, self.buffer = self.buffer[: at + len(mark)], self.buffer[at + len(mark) :]
                return found
            if at >= 0 or len(self.buffer) >= limit:
                raise broken_answer(f"a head or line of the answer is longer than {limit} bytes")
            start = max(0, len(self.buffer) - len(mark) + 1)
            self.buffer += self._more()

    def some(self, limit: int) -> bytes:
        """One to *limit* bytes; none at the end of the connection."""
        data = self.buffer or self._receive(max(1, min(limit, RECEIVE_BYTES)))
        found, self.buffer = data[:limit], data[limit:]
        return found

    def _more(self) -> bytes:
        data = self._receive(RECEIVE_BYTES)
        if not data:
            raise lost("the daemon closed the connection in the middle of an answer")
        return data


class Head:
    """Status line and fields of an answer; *fields* by lower-case name, repeated ones joined by a comma."""

    __slots__ = ("fields", "reason", "status")

    def __init__(self, status: int, reason: str, fields: dict[str, str]) -> None:
        self.status = status
        self.reason = reason
        self.fields = fields

    @property
    def keeps(self) -> bool:
        """Whether the connection may carry another request."""
        return "close" not in self.fields.get("connection", "").lower()


def read_head(reader: Reader) -> Head:
    """The head of the next answer; interim answers (1xx, except 101) are passed over, at most a few."""
    for _ in range(8):
        head = parse_head(reader.until(b"\r\n\r\n", MAX_HEAD_BYTES))
        if head.status >= 200 or head.status == 101:
            return head
    raise broken_answer("the daemon sends interim answers without end")


def parse_head(data: bytes) -> Head:
    lines = data[:-4].decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    status, _, reason = rest.partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0") or len(status) != 3 or not (status.isascii() and status.isdigit()):
        raise broken_answer(f"this is not HTTP: {lines[0][:80]!r}")
    if len(lines) - 1 > MAX_FIELDS:
        raise broken_answer(f"the answer has {len(lines) - 1} header fields; at most {MAX_FIELDS} are read")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, text = line.partition(":")
        if not colon or not name or name.strip() != name or "\r" in line or "\n" in line or "\0" in line:
            raise broken_answer(f"a header field of the answer is not valid: {line[:80]!r}")
        name = name.lower()
        fields[name] = f"{fields[name]}, {text.strip()}" if name in fields else text.strip()
    if version == "HTTP/1.0":
        fields["connection"] = "close"
    return Head(int(status), reason, fields)


def read_body(reader: Reader, head: Head, method: str) -> Iterator[bytes]:
    """The body's bytes as they come. RFC 9112, 6.3: none, chunked, by length, or up to the end of the connection."""
    if method == "HEAD" or head.status in (204, 304) or head.status < 200:
        return iter(())
    coding = head.fields.get("transfer-encoding")
    length = head.fields.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or length is not None:
            raise broken_answer(f"transfer coding {coding[:40]!r} with length {length!r} is not read here")
        return _chunked(reader)
    if length is None:
        return _until_end(reader)
    if not (length.isascii() and length.isdigit()) or len(length) > 18:
        raise broken_answer(f"content-length {length[:40]!r} is no number")
    return _counted(reader, int(length))


def _counted(reader: Reader, left: int) -> Iterator[bytes]:
    while left:
        data = reader.some(left)
        if not data:
            raise lost(f"the daemon closed the connection {left} bytes before the answer's end")
        left -= len(data)
        yield data


def _until_end(reader: Reader) -> Iterator[bytes]:
    while data := reader.some(RECEIVE_BYTES):
        yield data


def _chunked(reader: Reader) -> Iterator[bytes]:
    while True:
        line = reader.until(b"\r\n", MAX_CHUNK_LINE)[:-2].partition(b";")[0].strip()
        if not line or len(line) > 15 or line.strip(_HEX):
            raise broken_answer(f"a chunk's size is not hexadecimal: {line[:40]!r}")
        size = int(line, 16)
        if not size:
            while reader.until(b"\r\n", MAX_HEAD_BYTES) != b"\r\n":
                pass  # trailers say nothing that we use
            return
        yield from _counted(reader, size)
        if reader.until(b"\r\n", 2) != b"\r\n":
            raise broken_answer("a chunk is longer than it says")


def quote(text: str) -> str:
    """*text* for a path or a query, percent-encoded; bytes that are no UTF-8 go as they were typed."""
    data = text.encode("utf-8", "surrogateescape")
    if _SAFE.issuperset(data):
        return text
    return "".join(chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in data)


def segment(name: str) -> str:
    """*name* as one part of a path. No object's name holds a slash or is empty: told here, not as a missing route."""
    if not name or "/" in name:
        from casemate.cli.fail import remote

        remedy = "`casemate ps -a`, `image ls`, `volume ls` and `pod ps` list what there is."
        raise remote(
            {"code": "object.not_found", "status": 404, "detail": f"no such object: {name!r}", "remedy": remedy}
        )
    return quote(name)


def query(pairs: list[tuple[str, str]]) -> str:
    """``?a=b&c=d``, or the empty text."""
    return "?" + "&".join(f"{quote(name)}={quote(text)}" for name, text in pairs) if pairs else ""


def request_head(method: str, target: str, fields: list[tuple[str, str]]) -> bytes:
    """Request line and fields. Nothing in them may break a line (they are ours, or quoted)."""
    lines = [f"{method} {target} HTTP/1.1", "Host: casemate", *(f"{name}: {text}" for name, text in fields), "", ""]
    text = "\r\n".join(lines)
    assert text.count("\r\n") == len(lines) - 1, "a header field holds a line break"
    return text.encode("ascii")
