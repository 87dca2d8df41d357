"""HTTP/1.1 over the unix socket or TLS, by the standard library; one connection for each request that streams."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Generator, Iterable, Iterator
from typing import Any
from urllib.parse import urlencode

from casemate.sdk.errors import ApiAway, ApiBroken, ApiError

DEFAULT_SOCKET = "/run/casemate/api.sock"
#: Answers that are not streams; the largest is a list of 10,000 containers.
MAX_ANSWER_BYTES = 64 << 20
Pairs = Iterable[tuple[str, str]]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float | None) -> None:
        super().__init__("casemate", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Transport:
    """Where the API is: a unix socket at *path*, or ``host:port`` with a TLS *context* with a client certificate."""

    def __init__(
        self,
        path: str = DEFAULT_SOCKET,
        *,
        host: str | None = None,
        context: ssl.SSLContext | None = None,
        timeout_s: float | None = 300.0,
    ) -> None:
        self._path = path
        self._host = host
        self._context = context
        self._timeout_s = timeout_s

    def connect(self) -> http.client.HTTPConnection:
        """A new connection; raises :class:`ApiAway`."""
        connection: http.client.HTTPConnection
        if self._host is not None:
            connection = http.client.HTTPSConnection(self._host, context=self._context, timeout=self._timeout_s)
        else:
            connection = _UnixConnection(self._path, self._timeout_s)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise ApiAway(f"{self._host or self._path}: {error.strerror or error}") from error
        return connection

    def send(
        self, method: str, path: str, query: Pairs = (), body: bytes | Iterable[bytes] | None = None
    ) -> http.client.HTTPResponse:
        """The answer, its body unread; raises :class:`ApiError` for a problem. Reading it to the end closes it."""
        connection = self.connect()
        target = f"{path}?{urlencode(list(query))}" if query else path
        headers = {"content-type": "application/json"} if isinstance(body, bytes) else {}
        try:
            # A server that refuses a long body answers and closes before it has read it all: the answer counts.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, target, body=body, headers={**headers, "connection": "close"})
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ApiAway(f"{method} {path}: {error}") from error
        if response.status >= 400:
            raise _problem(response)
        return response

    def ask(self, method: str, path: str, query: Pairs = (), body: bytes | None = None) -> bytes:
        """The whole answer."""
        with self.send(method, path, query, body) as response, _whole(method, path):
            data = response.read(MAX_ANSWER_BYTES + 1)
        if len(data) > MAX_ANSWER_BYTES:
            raise ApiBroken(f"{method} {path} answers more than {MAX_ANSWER_BYTES} bytes")
        return data

    def stream(
        self, method: str, path: str, query: Pairs = (), body: bytes | Iterable[bytes] | None = None
    ) -> Iterator[bytes]:
        """The answer piece by piece, as it comes."""
        with self.send(method, path, query, body) as response:
            while True:
                with _whole(method, path):
                    data = response.read1(64 << 10)
                if not data:
                    return
                yield data


@contextlib.contextmanager
def _whole(method: str, path: str) -> Generator[None]:
    """A daemon that goes away in the middle of its answer is away."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise ApiAway(f"{method} {path}: the answer broke off: {type(error).__name__}") from error


def _problem(response: http.client.HTTPResponse) -> ApiError:
    with response:
        data = response.read(1 << 20)
    try:
        document: Any = json.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"detail": f"HTTP {response.status}", "code": "internal", "status": response.status}
    return ApiError(document, response.status)
