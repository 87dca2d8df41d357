"""HTTP for registries on the standard library's client: connections kept for each thread, redirects, retries.

Worker only. Authorization goes to the host that it is for and to no other: a redirect elsewhere loses it.
"""

from __future__ import annotations

import http.client
import random
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urljoin, urlsplit

from casemate.image.errors import RegistryError, RegistryUnavailable
from casemate.image.patience import Patience

CONNECT_TIMEOUT_S = 15.0
#: No byte for this long is a dead peer.
IDLE_TIMEOUT_S = 60.0
MAX_REDIRECTS = 5
CHUNK_BYTES = 1 << 18
USER_AGENT = "casemate"
#: Retried: a reset or a cut connection, 429 and 5xx. 0.5 s, 1 s, 2 s, 4 s, each with a random part.
ATTEMPTS = 5
REDIRECTS = frozenset((301, 302, 303, 307, 308))
_NETWORK = (OSError, http.client.HTTPException)


@dataclass(frozen=True, slots=True)
class Url:
    """A checked http(s) URL; *target* is path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.target}"


def parse_url(text: str) -> Url:
    """*text* as a :class:`Url`; credentials in it, other schemes and control characters are refused."""
    try:
        parts = urlsplit(text)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise RegistryError(f"{text[:200]!r} is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or len(text) > 8192:
        raise RegistryError(f"{text[:200]!r} is no http or https URL of at most 8192 characters")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if any(ord(character) <= 32 or ord(character) >= 127 for character in target):
        raise RegistryError(f"the URL {text[:200]!r} holds a character that must be escaped")
    return Url(parts.scheme, parts.hostname, port, target)


class Answer:
    """A response: *status*, *headers*, and a body that is read once. Leaving the context frees the connection."""

    def __init__(self, url: Url, response: http.client.HTTPResponse, drop: Callable[[], None]) -> None:
        self.url = url
        self.status = response.status
        self._response = response
        self._drop = drop

    def header(self, name: str) -> str:
        return self._response.headers.get(name, "")

    @property
    def length(self) -> int | None:
        """Content-Length, or None when there is none that is a number."""
        text = self.header("Content-Length")
        return int(text) if text.isdigit() and len(text) < 20 else None

    def read(self, max_bytes: int) -> bytes:
        """At most *max_bytes* + 1 of the body, so that the caller sees when it is longer."""
        data = b""
        while len(data) <= max_bytes:
            part = self._response.read1(max_bytes + 1 - len(data))
            if not part:
                break
            data += part
        return data

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces of at most 256 KiB, as they arrive."""
        while part := self._response.read1(CHUNK_BYTES):
            yield part

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._response.isclosed():
            # A short rest is worth reading to keep the connection, a long one is not.
            try:
                if self._response.length is not None and self._response.length <= CHUNK_BYTES:
                    self._response.read()
            except _NETWORK:
                pass
        if not self._response.isclosed():
            self._drop()


class Client:
    """Sends requests; *stop* ends waits early. Usable from any thread."""

    def __init__(
        self,
        ca_files: tuple[str, ...] = (),
        stop: threading.Event | None = None,
        patience: Patience | None = None,
        random_part: Callable[[], float] = random.random,
    ) -> None:
        self._local = threading.local()
        self._guard = threading.Lock()
        self._opened: list[http.client.HTTPConnection] = []
        self._ca_files = ca_files
        self._tls: ssl.SSLContext | None = None
        self._stop = stop or threading.Event()
        self._random = random_part
        self._patience = patience or Patience()

    def close(self) -> None:
        """Close every connection; to be called when no thread uses the client any more."""
        with self._guard:
            opened, self._opened = self._opened, []
        for connection in opened:
            connection.close()

    def send(
        self, method: str, url: Url, headers: Mapping[str, str], body: bytes | Iterator[bytes] | None = None
    ) -> Answer:
        """One request, redirects followed for GET and HEAD; any status comes back, network errors are wrapped."""
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        first_origin = url.origin
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._once(method, url, sent, body)
            if answer.status not in REDIRECTS or method not in ("GET", "HEAD"):
                return answer
            with answer:
                target = parse_url(urljoin(str(url), answer.header("Location")))
            if url.scheme == "https" and target.scheme == "http":
                raise RegistryError(f"{url.host} redirects from https to plain HTTP at {target.host}")
            if target.origin != first_origin:
                sent = {name: value for name, value in sent.items() if name.lower() != "authorization"}
            url = target
        raise RegistryError(f"{first_origin[1]} redirects more than {MAX_REDIRECTS} times")

    def retrying(self, send: Callable[[], Answer]) -> Answer:
        """*send* until it gives an answer that is neither 429 nor 5xx, at most 5 times; the last one stands."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answer = send()
            except RegistryUnavailable:
                if attempt == ATTEMPTS or not self.wait(attempt):
                    raise
                continue
            if answer.status != 429 and answer.status < 500:
                return answer
            if attempt == ATTEMPTS:
                return answer
            with answer:
                asked = answer.header("Retry-After")
            if not self.wait(attempt, asked):
                return send()
        raise AssertionError("unreachable")

    def wait(self, attempt: int, retry_after: str = "") -> bool:
        """Sleep before attempt number *attempt* + 1; False when the job was stopped."""
        delay = min(self._patience.first_delay_s * 2 ** (attempt - 1), self._patience.max_delay_s) * (
            0.5 + self._random()
        )
        if retry_after.isdigit() and len(retry_after) < 10:
            delay = min(float(retry_after), self._patience.max_retry_after_s)
        return not self._stop.wait(delay)

    def _once(self, method: str, url: Url, headers: Mapping[str, str], body: bytes | Iterator[bytes] | None) -> Answer:
        connections: dict[tuple[str, str, int], http.client.HTTPConnection] = self._local.__dict__.setdefault(
            "kept", {}
        )
        for fresh in (False, True):
            kept = None if fresh else connections.get(url.origin)
            if kept is None:
                fresh = True  # noqa: PLW2901 - a new connection is not tried twice
            connection = connections[url.origin] = kept or self._connect(url)
            try:
                connection.request(method, url.target, body=body, headers=dict(headers))
                response = connection.getresponse()
            except _NETWORK as error:
                connection.close()
                connections.pop(url.origin, None)
                # The peer may have closed a kept connection while it was idle; a body that streams cannot be sent anew.
                if fresh or not (body is None or isinstance(body, bytes)):
                    raise RegistryUnavailable(f"{url.host}:{url.port}: {_words(error)}") from error
            else:
                return _answer(url, response, connections, connection)
        raise AssertionError("unreachable")

    def _connect(self, url: Url) -> http.client.HTTPConnection:
        try:
            if url.scheme == "http":
                connection = http.client.HTTPConnection(url.host, url.port, timeout=CONNECT_TIMEOUT_S)
            else:
                connection = http.client.HTTPSConnection(
                    url.host, url.port, timeout=CONNECT_TIMEOUT_S, context=self._context()
                )
            with self._guard:
                self._opened.append(connection)
            connection.connect()
            assert connection.sock is not None
            connection.sock.settimeout(IDLE_TIMEOUT_S)
            return connection
        except _NETWORK as error:
            raise RegistryUnavailable(f"{url.host}:{url.port} over {url.scheme}: {_words(error)}") from error

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            context = ssl.create_default_context()
            for path in self._ca_files:
                context.load_verify_locations(path)
            self._tls = context
        return self._tls


def network_error(error: BaseException, what: str) -> RegistryUnavailable | None:
    """*error* as :class:`RegistryUnavailable` when it is one of the network's, else None."""
    return RegistryUnavailable(f"{what}: {_words(error)}") if isinstance(error, _NETWORK) else None


def _answer(
    url: Url,
    response: http.client.HTTPResponse,
    connections: dict[tuple[str, str, int], http.client.HTTPConnection],
    used: http.client.HTTPConnection,
) -> Answer:
    def drop() -> None:
        connections.pop(url.origin, None)
        response.close()
        used.close()

    return Answer(url, response, drop)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
