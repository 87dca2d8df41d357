"""The API's routes, as requests: JSON in and out, streams, uploads, and the upgrade to a WebSocket.

One connection is kept alive and used for everything in turn: ``run`` creates and attaches on the same one.
"""

from __future__ import annotations

import posix

from casemate.cli.fail import broken_answer, lost, remote
from casemate.cli.wire import http, json
from casemate.cli.wire.transport import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from casemate.cli.wire.transport import Stream

Pairs = list[tuple[str, str]]

#: The routes whose objects belong to a project.
_PROJECTED = ("/v1/containers", "/v1/pods", "/v1/volumes", "/v1/stats", "/v1/exec", "/v1/events", "/v1/df", "/v1/flows")
#: A problem document is below 4 KiB; more is cut.
MAX_PROBLEM_BYTES = 1 << 20
#: After so long without an answer the person may want to know what is waited for.
PATIENCE_MS = 3000


class Answer:
    """The head of an answer and its body as it comes."""

    __slots__ = ("chunks", "done", "head")

    def __init__(self, head: http.Head, chunks: Iterator[bytes]) -> None:
        self.head = head
        self.done = False
        self.chunks = self._counted(chunks)

    def _counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        yield from chunks
        self.done = True

    def read(self, limit: int = http.MAX_BODY_BYTES) -> bytes:
        parts: list[bytes] = []
        size = 0
        for chunk in self.chunks:
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                raise broken_answer(f"the answer is longer than {limit} bytes")
        return b"".join(parts)

    def json(self) -> object:
        data = self.read()
        return json.loads(data) if data else None


class Client:
    """*host* as ``--host`` has it; *project* goes along with each request that takes one."""

    __slots__ = ("_answer", "_reader", "_stream", "host", "on_wait", "project")

    def __init__(self, host: str, project: str) -> None:
        self.host = host
        self.project = project
        #: Called once for each request whose answer takes longer than :data:`PATIENCE_MS`.
        self.on_wait: Callable[[], None] | None = None
        self._stream: Stream | None = None
        self._reader: http.Reader | None = None
        self._answer: Answer | None = None

    def get(self, path: str, pairs: Pairs | None = None) -> object:
        return self.send("GET", path, pairs).json()

    def post(self, path: str, value: object = None, pairs: Pairs | None = None) -> object:
        return self.send("POST", path, pairs, value).json()

    def delete(self, path: str, pairs: Pairs | None = None) -> object:
        return self.send("DELETE", path, pairs).json()

    def send(self, method: str, path: str, pairs: Pairs | None = None, value: object = None) -> Answer:
        """Send *value* as JSON (None: no body); the answer, or the daemon's problem as an error."""
        body = b"" if value is None else json.dumps(value).encode("utf-8")
        fields = [("Content-Length", str(len(body)))] if body or method in ("POST", "PUT") else []
        if body:
            fields.append(("Content-Type", "application/json"))
        stream, reader = self._ready()
        try:
            stream.sendall(http.request_head(method, self._target(path, pairs), fields) + body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon may have answered (a refusal) before it closed
        return self._receive(reader, method)

    def upload(self, method: str, path: str, pairs: Pairs, chunks: Iterable[bytes], kind: str) -> Answer:
        """Send *chunks* as a chunked body of media type *kind*. A refusal that comes early ends the sending."""
        stream, reader = self._ready()
        fields = [("Transfer-Encoding", "chunked"), ("Content-Type", kind)]
        try:
            stream.sendall(http.request_head(method, self._target(path, pairs), fields))
            for chunk in chunks:
                if chunk:
                    stream.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            stream.sendall(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass
        return self._receive(reader, method)

    def upgrade(self, path: str, pairs: Pairs | None = None) -> tuple[Stream, bytes]:
        """The connection as a WebSocket to *path*, and what was received beyond the handshake.

        The caller owns the stream from now on; the next request connects anew.
        """
        from casemate.cli.wire.websocket import expected_accept, new_key

        key = new_key(posix.urandom(16))
        fields = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", key.decode()),
        ]
        stream, reader = self._ready()
        try:
            stream.sendall(http.request_head("GET", self._target(path, pairs), fields))
        except (BrokenPipeError, ConnectionResetError):
            pass
        head = self._receive(reader, "GET").head
        if head.status != 101 or head.fields.get("sec-websocket-accept") != expected_accept(key):
            raise broken_answer(f"the daemon answers {head.status} and no WebSocket")
        self._stream = self._reader = self._answer = None
        return stream, reader.buffer

    def close(self) -> None:
        stream, self._stream, self._reader, self._answer = self._stream, None, None, None
        if stream is not None:
            stream.close()

    def _target(self, path: str, pairs: Pairs | None) -> str:
        """Path and query; the project goes along where it is not the default and the route takes one."""
        own = [("project", self.project)] if self.project != "default" and path.startswith(_PROJECTED) else []
        return path + http.query([*own, *(pairs or ())])

    def _ready(self) -> tuple[Stream, http.Reader]:
        """The connection, when it may carry a request; otherwise a new one."""
        if self._stream is not None and self._reader is not None:
            if self._answer is not None and self._answer.done and not self._reader.buffer and _idle(self._stream):
                return self._stream, self._reader
            self.close()
        stream = connect(self.host)

        def receive(size: int) -> bytes:
            try:
                return stream.recv(size)
            except ConnectionResetError:
                return b""

        reader = http.Reader(receive)
        self._stream, self._reader = stream, reader
        return stream, reader

    def _receive(self, reader: http.Reader, method: str) -> Answer:
        try:
            if self.on_wait is not None and self._stream is not None and not _has_word(self._stream, PATIENCE_MS):
                self.on_wait()
            head = http.read_head(reader)
        except BaseException as error:
            self.close()
            if getattr(error, "code", "") == "cli.connection_lost":
                raise lost(f"the daemon at {self.host} closed the connection without an answer") from None
            raise
        answer = Answer(head, http.read_body(reader, head, method))
        answer.done = method == "HEAD" or head.status in (204, 304)
        self._answer = answer if head.keeps else None
        if head.status >= 400:
            raise _problem(answer, method)
        return answer


def _idle(stream: Stream) -> bool:
    """Whether the daemon left the connection open: one that has something to say between requests says goodbye."""
    return not _has_word(stream, 0)


def _has_word(stream: Stream, wait_ms: int) -> bool:
    """Whether something comes on the connection, or its end, within *wait_ms*."""
    import select

    poll = select.poll()
    poll.register(stream.fileno(), select.POLLIN)
    return bool(poll.poll(wait_ms))


def _problem(answer: Answer, method: str) -> Exception:
    """The error of an answer of 400 and above."""
    status = answer.head.status
    if method == "HEAD":
        code = "object.not_found" if status == 404 else "remote"
        return remote({"code": code, "status": status, "detail": answer.head.reason or f"status {status}"})
    data = answer.read(MAX_PROBLEM_BYTES)
    try:
        value = json.loads(data)
    except Exception:  # whatever it is: not a problem document
        value = None
    if isinstance(value, dict) and "detail" in value:
        return remote(value)
    shown = data[:120].decode("utf-8", "replace").strip()
    return broken_answer(f"the daemon answers {status} {answer.head.reason} without a problem document: {shown!r}")


def text_of(value: object, name: str) -> str:
    """The text at *name* of the JSON object *value*; a broken answer where there is none."""
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, str):
        raise broken_answer(f"the daemon's answer has no text {name!r}")
    return found


def rows_of(value: object, name: str) -> list[dict[str, object]]:
    """The list of objects at *name* of the JSON object *value*."""
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise broken_answer(f"the daemon's answer has no list {name!r}")
    return found


def object_of(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise broken_answer("the daemon's answer is no JSON object")
    return value
