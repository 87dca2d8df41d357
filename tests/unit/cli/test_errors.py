"""Each error code of the command line, raised where it arises; and TLS for real."""

from __future__ import annotations

import json
import os
import posix
import pty
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from peer import Peer, Reply

from casemate.cli.errors import Cancelled, ObjectsFailed
from casemate.cli.report import report
from casemate.cli.show.plain import coloured

CODES = {
    "cli.usage": "UsageError",
    "cli.file_unusable": "FileUnusable",
    "cli.not_a_terminal": "NotATerminal",
    "cli.daemon_unreachable": "DaemonUnreachable",
    "cli.socket_denied": "SocketDenied",
    "cli.answer_invalid": "AnswerInvalid",
    "cli.connection_lost": "ConnectionLost",
    "cli.tls_failed": "TlsFailed",
    "cli.cancelled": "Cancelled",
    "cli.objects_failed": "ObjectsFailed",
}


def code_of(done: subprocess.CompletedProcess[bytes]) -> str:
    return str(json.loads(done.stderr.splitlines()[-1])["code"])


def test_codes(cm, peer: Peer, tmp_path: Path) -> None:
    peer.on("GET", "/v1/containers", Reply(200, body=b"<html>"))
    peer.on("GET", "/v1/info", lambda request: (_ for _ in ()).throw(OSError()))
    assert code_of(cm("run", "--json")) == "cli.usage"
    assert code_of(cm("load", "--json", "-i", "none")) == "cli.file_unusable"
    assert code_of(cm("run", "-it", "--json", "img")) == "cli.not_a_terminal"
    assert code_of(cm("ps", "--json", "-H", f"unix://{tmp_path}/none")) == "cli.daemon_unreachable"
    assert code_of(cm("ps", "--json")) == "cli.answer_invalid"
    assert code_of(cm("ps", "--json", "-H", "tcp://127.0.0.1:9", env={"CASEMATE_TLS_CA": "/none"})) == "cli.tls_failed"


def test_a_connection_that_ends_without_an_answer(cm, tmp_path: Path) -> None:
    path = tmp_path / "closing.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def close() -> None:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.close()

        thread = threading.Thread(target=close)
        thread.start()
        assert code_of(cm("ps", "--json", "-H", f"unix://{path}")) == "cli.connection_lost"
        thread.join()


def test_objects_failed_says_nothing_more(capfd: pytest.CaptureFixture[str]) -> None:
    assert report(ObjectsFailed(), False) == 1
    assert capfd.readouterr().err == ""
    assert report(Cancelled("x"), False) == 130
    assert report(KeyboardInterrupt(), False) == 130
    assert report(BrokenPipeError(), False) == 141
    capfd.readouterr()
    assert report(ZeroDivisionError("boom"), False) == 125
    assert "internal error" in capfd.readouterr().err
    assert report(OSError(28, "No space left on device", "/x"), False) == 125
    assert "No space left on device (/x)" in capfd.readouterr().err


def test_colour_only_where_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    monkeypatch.setitem(posix.environ, b"TERM", b"xterm")
    monkeypatch.delitem(posix.environ, b"NO_COLOR", raising=False)
    assert coloured("x", "1", slave) == "\x1b[1mx\x1b[0m"
    monkeypatch.setitem(posix.environ, b"NO_COLOR", b"1")
    assert coloured("x", "1", slave) == "x"
    monkeypatch.delitem(posix.environ, b"NO_COLOR")
    reader, writer = os.pipe()
    assert coloured("x", "1", writer) == "x"
    for fd in (master, slave, reader, writer):
        os.close(fd)


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's certificate for 127.0.0.1, a client's, and a stranger's."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*argv: str) -> None:
        subprocess.run(["openssl", *argv], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for authority in ("ca", "other"):
        openssl(
            "req",
            "-x509",
            *key,
            "-keyout",
            f"{authority}.key",
            "-out",
            f"{authority}.pem",
            "-subj",
            f"/CN={authority}",
            "-addext",
            "keyUsage=critical,keyCertSign",
        )
    for name, authority in (("server", "ca"), ("client", "ca"), ("stranger", "other")):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "ext").write_text("subjectAltName=IP:127.0.0.1")
        openssl(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            f"{authority}.pem",
            "-CAkey",
            f"{authority}.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-out",
            f"{name}.pem",
            "-extfile",
            "ext",
        )
    return folder


@pytest.fixture
def tls(peer: Peer, certificates: Path) -> Iterator[str]:
    """The peer behind TLS with client certificates: a relay between the two sockets; its address."""
    wrapper = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    wrapper.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    wrapper.load_verify_locations(certificates / "ca.pem")
    wrapper.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server(("127.0.0.1", 0))

    def relay(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def accept() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                secure = wrapper.wrap_socket(plain, server_side=True)
            except (ssl.SSLError, OSError):
                plain.close()
                continue
            inner = socket.socket(socket.AF_UNIX)
            inner.connect(str(peer.path))
            opened.extend((secure, inner))
            for pair in ((secure, inner), (inner, secure)):
                threading.Thread(target=relay, args=pair, daemon=True).start()

    opened: list[socket.socket] = []
    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)
    for held in opened:
        held.close()


def as_(name: str, certificates: Path, authority: str = "ca") -> dict[str, str]:
    return {
        "CASEMATE_TLS_CERT": str(certificates / f"{name}.pem"),
        "CASEMATE_TLS_KEY": str(certificates / f"{name}.key"),
        "CASEMATE_TLS_CA": str(certificates / f"{authority}.pem"),
    }


def test_requests_and_sessions_over_tls(cm, peer: Peer, tls: str, certificates: Path) -> None:
    def serve(request, websocket) -> None:
        got = b""
        while True:
            _, data = websocket.receive()
            if data == b"\x00":
                break
            got += data[1:]
        for at in range(0, len(got), 100_000):
            websocket.output(got[at : at + 100_000])
        websocket.control(exit_code=4)

    peer.on("POST", "/v1/containers", Reply(201, {"id": "ab" * 32, "name": "x"}))
    peer.websocket(f"/v1/containers/{'ab' * 32}/attach", serve)
    data = bytes(range(256)) * 8000
    done = cm("-H", tls, "run", "-i", "img", "cat", stdin=data, env=as_("client", certificates))
    assert (done.returncode, done.stderr) == (4, b"")
    assert done.stdout == data


def test_strangers_are_refused_on_both_sides(cm, tls: str, certificates: Path) -> None:
    wrong_authority = cm("ps", "-H", tls, env=as_("client", certificates, "other"))
    assert wrong_authority.returncode == 125
    assert b"certificate verify failed" in wrong_authority.stderr
    stranger = cm("ps", "-H", tls, env=as_("stranger", certificates))
    assert stranger.returncode == 125
    assert stranger.stdout == b""
    missing = cm("ps", "-H", tls, env={"CASEMATE_TLS_CA": "/none"})
    assert b"CASEMATE_TLS_CERT" in missing.stderr


def test_nobody_at_the_address(cm, certificates: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = cm("ps", "-H", f"tcp://127.0.0.1:{port}", env=as_("client", certificates))
    assert done.returncode == 125
    assert b"no connection to 127.0.0.1 port" in done.stderr
