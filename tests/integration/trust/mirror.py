"""A mirror of feeds for the tests: serves what it is given, in ranges, and breaks off where it is told to."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator
from typing import ClassVar


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves *files*; cuts the answer after *cut* bytes once; answers ranges."""

    files: ClassVar[dict[str, bytes]] = {}
    cut: ClassVar[dict[str, int]] = {}
    seen: ClassVar[list[tuple[str, str]]] = []
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        data = self.files.get(name)
        wanted = self.headers.get("Range", "")
        self.seen.append((name, wanted))
        if data is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = self.cut.pop(name, len(data))
        self.wfile.write(data[start:end])
        if end < len(data):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Quiet."""


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The mirror's address, while it answers."""
    Mirror.files, Mirror.cut, Mirror.seen = {}, {}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/feeds"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
