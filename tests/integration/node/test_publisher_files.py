"""What the child takes from a publisher: bounded, regular files, and nothing that was not asked for."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="missing: tuf")

from casemate.image.errors import RegistryError, RegistryUnavailable
from casemate.image.http import Client
from casemate.image.patience import Patience
from casemate.node.freshness_child import MAX_FETCHES, MAX_FILE_BYTES, Shown, refreshed
from casemate.node.freshness_jobs import RefreshJob
from casemate.trust.freshness.resolve import FreshnessInvalid, Trusted


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client(patience=Patience(0.01, 0.02, 0.02))
    yield made
    made.close()


def test_a_folder(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"{}")
    shown = Shown(client, str(tmp_path))
    assert shown["a.json"] == b"{}"
    assert shown.get("b.json") is None
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "folder.json").mkdir()
    for name in ("fifo.json", "folder.json"):
        with pytest.raises((FreshnessInvalid, RegistryUnavailable)):
            shown[name]
    (tmp_path / "link.json").symlink_to("/etc/passwd")
    with pytest.raises(RegistryUnavailable):
        shown["link.json"]
    with (tmp_path / "large.json").open("wb") as stream:
        stream.truncate(1 << 30)
    assert len(shown["large.json"]) == MAX_FILE_BYTES + 1  # one more than may be: it is refused where it is used


def test_so_many_and_no_more(client: Client, tmp_path: Path) -> None:
    shown = Shown(client, str(tmp_path))
    for number in range(MAX_FETCHES):
        assert shown.get(f"{number}.root.json") is None
    with pytest.raises(FreshnessInvalid):
        shown.get("one-more.json")


@pytest.mark.parametrize("answer", ["endless", "error", "elsewhere"])
def test_over_http(client: Client, answer: str) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if answer == "error":
                self.send_error(500)
            elif answer == "elsewhere":
                self.send_response(302)
                self.send_header("Location", "file:///etc/passwd")
                self.end_headers()
            else:
                self.send_response(200)
                self.end_headers()
                try:
                    while True:
                        self.wfile.write(b" " * 65536)
                except OSError:
                    return

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        job = RefreshJob(location=f"http://127.0.0.1:{server.server_address[1]}", trusted=Trusted(b"{}"), now_s=0.0)
        shown = Shown(client, job.location)
        if answer == "endless":
            assert len(shown["timestamp.json"]) == MAX_FILE_BYTES + 1
        else:
            with pytest.raises(RegistryError):
                shown["timestamp.json"]
        with pytest.raises(FreshnessInvalid):
            refreshed(client, job)  # a root that is none is found before anything is asked for
    finally:
        client.close()
        server.shutdown()
        server.server_close()
        thread.join()
