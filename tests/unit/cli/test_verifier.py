"""containerd's image verifier: what it is given must be whole and of one digest before anybody is asked."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from casemate.cli import verifier
from casemate.cli.verifier import DESCRIPTOR, MAX_STDIN_BYTES, WRAPPED, Refused, arguments, judge, main

DIGEST, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
NAME = "registry.example/app:1"
GOOD = json.dumps({"digest": DIGEST, "size": 7}).encode()


def test_go_s_flags() -> None:
    assert arguments(["-name", "a", "--digest=b", "-stdin-media-type", "c=d"]) == {
        "name": "a", "digest": "b", "stdin-media-type": "c=d",
    }  # fmt: skip
    assert arguments(["-operation", "run"]) == {"operation": "run"}


@pytest.mark.parametrize(
    "argv",
    [
        [], ["name"], ["-name"], ["-name", NAME], ["-digest", DIGEST], ["-name", NAME, "-digest", DIGEST, "-x", "y"],
        ["-name", NAME, "-name", NAME, "-digest", DIGEST], ["-name", f"{NAME}@{OTHER}", "-digest", DIGEST],
        ["-name", NAME, "-digest", DIGEST, "-stdin-media-type", "text/html"],
        ["-name", NAME, "-digest", DIGEST, "-operation", "push"], ["-name", "", "-digest", DIGEST],
        ["-name", NAME, "-digest", ""],
        ["-name", NAME, "-digest", DIGEST, "-stdin-media-type", WRAPPED],  # it is a bare descriptor
    ],
)  # fmt: skip
def test_what_is_asked_badly_stays_out(argv: list[str]) -> None:
    with pytest.raises(Refused):
        judge(argv, GOOD)


@pytest.mark.parametrize("stdin", [b"", b"{", b"[]", b"{}", json.dumps({"digest": OTHER}).encode(),
                                   b" " * (MAX_STDIN_BYTES + 1), b"[" * 100_000])  # fmt: skip
def test_a_descriptor_that_is_none_or_of_another_digest(stdin: bytes) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - main makes a refusal of whatever it is
        judge(["-name", NAME, "-digest", DIGEST, "-stdin-media-type", DESCRIPTOR], stdin)


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("CASEMATE_HOST", f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(Exception, match="nobody"):
        judge(["-name", NAME, "-digest", DIGEST], b"")


@pytest.mark.parametrize("stdin", [
    b"{}", b"[]", b'{"descriptor": []}', b'{"descriptor": {"digest": "%s"}}' % OTHER.encode(),
    b'{"digest": "%s"}' % DIGEST.encode(),
])  # fmt: skip
def test_a_wrapper_without_the_descriptor(stdin: bytes) -> None:
    with pytest.raises(Refused, match="the descriptor on standard input"):
        judge(["-name", NAME, "-digest", DIGEST, "-stdin-media-type", WRAPPED, "-operation", "run"], stdin)


class Daemon:
    """casemated's answers to the verifier, over a real socket."""

    def __init__(self, folder: Path, answers: dict[str, bytes], *, hangs: bool = False) -> None:
        self.path, self.asked, self.answers, self.hangs = folder / "api.sock", list[bytes](), answers, hangs
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection:
                    while not self.hangs and (data := connection.recv(65536)):
                        self.asked.append(data)
                        body = next(body for path, body in self.answers.items() if path.encode() in data)
                        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(
                            body
                        )
                        connection.sendall(head + body)
                    while self.hangs and connection.recv(65536):
                        pass


TAG = b'{"reference": "x", "publisher": ""}'


def answered(outcome: str, digest: str = DIGEST) -> dict[str, bytes]:
    verify = json.dumps({"outcome": outcome, "detail": "said", "digest": digest}).encode()
    return {"/v1/trust/tag": TAG, "/v1/trust/verify": verify}


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], daemon: Daemon,
        *flags: str, kind: str = DESCRIPTOR, stdin: bytes = GOOD) -> tuple[int, str]:  # fmt: skip
    """As containerd calls it: flags with one dash, the descriptor on standard input; exit code and reason."""
    monkeypatch.setenv("CASEMATE_HOST", f"unix://{daemon.path}")
    monkeypatch.setattr(verifier, "TIMEOUT_S", 1)
    given = folder / "stdin"
    given.write_bytes(stdin)
    saved = os.dup(0)
    before = signal.getsignal(signal.SIGALRM)
    descriptor = os.open(given, os.O_RDONLY)
    try:
        os.dup2(descriptor, 0)
        code = main(["-name", NAME, "-digest", DIGEST, "-stdin-media-type", kind, *flags])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        os.dup2(saved, 0)
        os.close(saved)
        os.close(descriptor)
        daemon.listener.close()
    return code, capfd.readouterr().out


@pytest.mark.parametrize(
    ("outcome", "code"),
    [("verified", 0), ("not_asked", 0), ("unsigned", 1), ("no_match", 1), ("too_few", 1), ("attestation_missing", 1),
     ("something new", 1), ("", 1)],
)  # fmt: skip
def test_the_exit_code_is_the_policy_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], outcome: str, code: int
) -> None:
    found = run(tmp_path, monkeypatch, capfd, Daemon(tmp_path, answered(outcome)))
    assert found == (code, "said\n" if code == 0 else f"{outcome}: said\n")


def test_a_wrapped_descriptor_before_a_container_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    daemon = Daemon(tmp_path, answered("verified"))
    stdin = json.dumps({"operation": "run", "annotations": {"a": "b"}, "descriptor": {"digest": DIGEST}}).encode()
    assert run(tmp_path, monkeypatch, capfd, daemon, "-operation", "run", kind=WRAPPED, stdin=stdin) == (0, "said\n")
    assert DIGEST.encode() in daemon.asked[-1]


@pytest.mark.parametrize(
    "answers",
    [
        answered("verified", OTHER),
        {"/v1/trust/tag": TAG, "/v1/trust/verify": b"[]"},
        {"/v1/trust/tag": TAG, "/v1/trust/verify": b"{"},
        {"/v1/trust/tag": json.dumps({"publisher": "p", "digest": OTHER}).encode(), "/v1/trust/verify": b"{}"},
        {"/v1/trust/tag": b"null", "/v1/trust/verify": b"null"},
    ],
)
def test_answers_that_let_nothing_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], answers: dict[str, bytes]
) -> None:
    code, reason = run(tmp_path, monkeypatch, capfd, Daemon(tmp_path, answers))
    assert code == 1
    assert reason.count("\n") == 1


def test_a_daemon_that_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, reason = run(tmp_path, monkeypatch, capfd, Daemon(tmp_path, {}, hangs=True))
    assert (code, reason) == (1, "casemated did not answer within 1 s\n")
