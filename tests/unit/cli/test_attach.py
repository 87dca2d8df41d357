"""Sessions: input, terminal, resizing, detaching, signals, broken pipes, a daemon that goes away, large output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peer import Peer, Reply, WebSocket, events
from tests.terminal import Terminal

from casemate.cli.errors import UsageError
from casemate.cli.session.keys import Detacher, parse_keys

ID = "ab" * 32
ATTACH = f"/v1/containers/{ID}/attach"


@pytest.fixture
def container(peer: Peer) -> Peer:
    peer.on("POST", "/v1/containers", Reply(201, {"id": ID, "name": "x"}))
    return peer


def test_a_terminal_session(launcher: Path, environment: dict[str, str], container: Peer) -> None:
    sizes: list[tuple[int, int]] = []

    def serve(request, websocket: WebSocket) -> None:
        websocket.control(started=True)
        websocket.output(b"$ ")
        typed = b""
        while True:
            _, data = websocket.receive()
            if data[0] == 3:
                control = json.loads(data[1:])
                sizes.append((control["rows"], control["columns"]))
                websocket.output(b"<%d>" % len(sizes))
                continue
            typed += data[1:]
            websocket.output(data[1:].replace(b"\x03", b"^C"))
            if typed.endswith(b"exit\r"):
                break
        websocket.output(b"\r\nbye")
        websocket.control(exit_code=5)

    container.websocket(ATTACH, serve)
    terminal = Terminal([str(launcher), "run", "-it", "--rm", "img"], environment)
    terminal.until(b"$ ")
    terminal.until(b"<1>")
    terminal.type(b"\x03\x1a\x04ls\r")
    terminal.until(b"ls\r")
    terminal.resize(50, 120)
    os.kill(terminal.process.pid, signal.SIGWINCH)
    terminal.until(b"<2>")
    terminal.type(b"exit\r")
    assert terminal.finish() == 5
    assert sizes == [(33, 99), (50, 120)]
    assert b"^C\x1a\x04ls\r" in terminal.seen
    assert terminal.seen.endswith(b"bye")
    assert container.asked("POST", "/v1/containers")[0].json == {
        "image": "img",
        "terminal": True,
        "stdin": True,
        "auto_remove": True,
    }


@pytest.mark.parametrize(("flags", "keys"), [([], b"\x10\x11"), (["--detach-keys", "ctrl-x,q"], b"\x18q")])
def test_detach(launcher: Path, environment: dict[str, str], container: Peer, flags: list[str], keys: bytes) -> None:
    got: list[bytes] = []
    over = threading.Event()

    def serve(request, websocket: WebSocket) -> None:
        websocket.control(started=True)
        websocket.output(b"ready")
        try:
            while True:
                opcode, data = websocket.receive()
                if opcode == 2 and data[0] == 0:
                    got.append(data)
        except EOFError:
            over.set()

    container.websocket(ATTACH, serve)
    terminal = Terminal([str(launcher), "run", "-it", *flags, "img"], environment)
    terminal.until(b"ready")
    terminal.type(b"abc" + keys[:1])
    time.sleep(0.1)
    terminal.type(keys[1:])
    assert terminal.finish() == 0
    assert b"read escape sequence" in terminal.seen
    assert over.wait(5)
    assert b"".join(data[1:] for data in got) == b"abc"
    assert b"\x00" not in got, "detaching does not end the container's input"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_when_the_client_is_ended(
    launcher: Path, environment: dict[str, str], container: Peer, number: signal.Signals
) -> None:
    killed = threading.Event()

    def serve(request, websocket: WebSocket) -> None:
        websocket.control(started=True)
        websocket.output(b"ready")
        killed.wait(5)
        websocket.control(exit_code=143)

    def kill(request) -> Reply:
        killed.set()
        return Reply(204)

    container.websocket(ATTACH, serve)
    container.on("POST", f"/v1/containers/{ID}/kill", kill)
    terminal = Terminal([str(launcher), "run", "-it", "img"], environment)
    terminal.until(b"ready")
    terminal.process.send_signal(number)
    assert terminal.finish() == (143 if number == signal.SIGTERM else 129)
    assert killed.is_set() == (number == signal.SIGTERM)
    killed.set()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGQUIT"])
def test_signals_are_passed_on(launcher: Path, environment: dict[str, str], container: Peer, name: str) -> None:
    asked = threading.Event()

    def kill(request) -> Reply:
        assert request.json == {"signal": name}
        asked.set()
        return Reply(204)

    def serve(request, websocket: WebSocket) -> None:
        websocket.control(started=True)
        websocket.output(b"ready\n")
        assert asked.wait(5)
        websocket.output(b"last words\n")
        websocket.control(exit_code=130)

    container.on("POST", f"/v1/containers/{ID}/kill", kill)
    container.websocket(ATTACH, serve)
    process = subprocess.Popen([str(launcher), "run", "img"], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(getattr(signal, name))
    assert process.stdout.read() == b"last words\n"
    assert process.wait(5) == 130
    process.stdout.close()


def test_who_insists_is_let_go(launcher: Path, environment: dict[str, str], container: Peer) -> None:
    """A first process that ignores INT: the third Ctrl-C ends the client, and says that the process goes on."""
    told = threading.Semaphore(0)

    def kill(request) -> Reply:
        told.release()
        return Reply(204)

    def serve(request, websocket: WebSocket) -> None:
        websocket.output(b"ready\n")
        with pytest.raises((EOFError, ConnectionError)):
            websocket.receive()

    container.on("POST", f"/v1/containers/{ID}/kill", kill)
    container.websocket(ATTACH, serve)
    process = subprocess.Popen(
        [str(launcher), "run", "img"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        assert told.acquire(timeout=5)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 130
    assert b"got 3 SIGTERM/SIGINTs" in said


def test_without_sig_proxy_the_client_ends(launcher: Path, environment: dict[str, str], container: Peer) -> None:
    def serve(request, websocket: WebSocket) -> None:
        websocket.output(b"ready\n")
        with pytest.raises((EOFError, ConnectionError)):
            websocket.receive()

    container.websocket(ATTACH, serve)
    process = subprocess.Popen(
        [str(launcher), "run", "--sig-proxy=false", "img"], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    process.stdout.close()
    assert not container.asked("POST", f"/v1/containers/{ID}/kill")


def test_input_goes_through_whole_and_ends(cm, container: Peer) -> None:
    got: list[bytes] = []

    def serve(request, websocket: WebSocket) -> None:
        while True:
            _, data = websocket.receive()
            got.append(data)
            if data == b"\x00":
                break
        websocket.output(b"done")
        websocket.control(exit_code=0)

    container.websocket(ATTACH, serve)
    data = os.urandom(300_000)
    done = cm("run", "-i", "img", "cat", stdin=data)
    assert (done.returncode, done.stdout) == (0, b"done")
    assert b"".join(piece[1:] for piece in got) == data


def test_a_pipe_both_ways_does_not_lock(cm, container: Peer) -> None:
    """The daemon reads only while its output is taken, as a container's `cat` does: nobody may wait for the other."""

    def serve(request, websocket: WebSocket) -> None:
        while True:
            _, data = websocket.receive()
            if data == b"\x00":
                break
            websocket.output(data[1:])
        websocket.control(exit_code=0)

    container.websocket(ATTACH, serve)
    data = bytes(8 << 20)
    done = cm("run", "-i", "img", "cat", stdin=data)
    assert done.returncode == 0
    assert done.stdout == data


def test_streams_can_be_chosen(cm, container: Peer) -> None:
    def serve(request, websocket: WebSocket) -> None:
        websocket.output(b"out")
        websocket.output(b"err", 2)
        websocket.control(exit_code=0)

    container.websocket(ATTACH, serve)
    done = cm("run", "-a", "stderr", "img")
    assert (done.stdout, done.stderr) == (b"", b"err")
    assert b"--attach: 'x' is not valid" in cm("run", "-a", "x", "img").stderr
    assert b"--detach and --attach" in cm("run", "-d", "-a", "stdout", "img").stderr
    outcome = cm("run", "--json", "-a", "stdout", "img")
    assert outcome.stdout == b"out"
    assert json.loads(outcome.stderr) == {"reference": ID, "exit_code": 0, "detached": False, "oom_killed": False}


def test_t_without_a_terminal(cm) -> None:
    done = cm("run", "-it", "img")
    assert done.returncode == 125
    assert b"-t asks for a terminal, and standard input is none" in done.stderr


def test_a_reader_that_goes_away(launcher: Path, environment: dict[str, str], container: Peer) -> None:
    def serve(request, websocket: WebSocket) -> None:
        try:
            while True:
                websocket.output(b"y\n" * 1000)
        except OSError:
            return

    container.websocket(ATTACH, serve)
    shell = f"{launcher} run img | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, env=environment, timeout=20, check=False)
    assert done.stdout == b"y\n141\n"
    assert done.stderr == b""


def test_a_daemon_that_goes_away(cm, container: Peer) -> None:
    def serve(request, websocket: WebSocket) -> None:
        websocket.output(b"half")
        websocket.connection.close()

    container.websocket(ATTACH, serve)
    done = cm("run", "img")
    assert (done.returncode, done.stdout) == (125, b"half")
    assert b"closed the connection before the process ended" in done.stderr
    assert b"The process goes on" in done.stderr

    def garbage(request, websocket: WebSocket) -> None:
        websocket.connection.sendall(b"\xff\xff\xff\xff")
        websocket.connection.recv(10)

    container.websocket(ATTACH, garbage)
    done = cm("run", "img")
    assert done.returncode == 125
    assert b"which a server may not send" in done.stderr

    def closing(request, websocket: WebSocket) -> None:
        websocket.send(b"\x03\xf3slow reader", opcode=8)
        websocket.connection.recv(10)

    container.websocket(ATTACH, closing)
    assert b"ended the session before the process ended: slow reader" in cm("run", "img").stderr


def test_large_output_is_whole_and_fast(launcher: Path, environment: dict[str, str], container: Peer) -> None:
    piece = os.urandom(64 << 10)
    count = 1600

    def serve(request, websocket: WebSocket) -> None:
        for _ in range(count):
            websocket.output(piece)
        websocket.control(exit_code=0)

    container.websocket(ATTACH, serve)
    before = time.perf_counter()
    process = subprocess.Popen([str(launcher), "run", "img"], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    size = 0
    while data := process.stdout.read(1 << 20):
        size += len(data)
    assert process.wait(5) == 0
    process.stdout.close()
    assert size == count * len(piece)
    print(f"{size / (1 << 20) / (time.perf_counter() - before):.0f} MB/s")


def test_ping_is_answered(cm, container: Peer) -> None:
    def serve(request, websocket: WebSocket) -> None:
        websocket.send(b"x", opcode=9)
        assert websocket.receive() == (10, b"x")
        websocket.control(exit_code=0)

    container.websocket(ATTACH, serve)
    assert cm("run", "img").returncode == 0


def test_attach_and_start(cm, peer: Peer) -> None:
    detail = {"summary": {"status": "running"}, "request": {"stdin": True}}
    peer.on("GET", "/v1/containers/web", Reply(value=detail))

    def serve(request, websocket: WebSocket) -> None:
        websocket.output(b"x")
        websocket.control(exit_code=9)

    peer.websocket("/v1/containers/web/attach", serve)
    assert cm("attach", "web").returncode == 9
    assert peer.requests[-1].query == [("stdin", "true")]
    assert cm("attach", "--no-stdin", "web").returncode == 9
    assert peer.requests[-1].query == []
    assert cm("start", "-a", "web").returncode == 9
    assert peer.requests[-1].query == [("start", "true")]
    assert b"takes one container" in cm("start", "-a", "web", "db").stderr
    peer.on("GET", "/v1/containers/web", Reply(value={"summary": {"status": "exited"}, "request": {}}))
    assert b"container 'web' is exited" in cm("attach", "web").stderr


def test_ctrl_c_cancels_a_pull(launcher: Path, environment: dict[str, str], peer: Peer) -> None:
    cancelled = threading.Event()
    peer.on("POST", "/v1/images/pull", Reply(202, {"id": "op1", "kind": "pull", "status": "running"}))

    def pieces():
        yield b'event: progress\ndata: {"item": "layer", "phase": "downloading", "total": 1000}\n\n'
        cancelled.wait(5)

    def stream(request) -> Reply:
        reply = events()
        reply.body = _Lazy(pieces())  # type: ignore[assignment]
        return reply

    def cancel(request) -> Reply:
        cancelled.set()
        return Reply(202, {})

    peer.on("GET", "/v1/operations/op1/events", stream)
    peer.on("DELETE", "/v1/operations/op1", cancel)
    process = subprocess.Popen(
        [str(launcher), "pull", "img"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"layer: downloading (1kB)\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=10)
    assert process.returncode == 130
    assert b"the pull was cancelled on the daemon" in told
    assert cancelled.is_set()


class _Lazy(list):  # type: ignore[type-arg]
    def __init__(self, pieces) -> None:
        super().__init__()
        self.pieces = pieces

    def __iter__(self):
        return iter(self.pieces)


def test_detach_keys() -> None:
    assert parse_keys("ctrl-p,ctrl-q") == b"\x10\x11"
    assert parse_keys("ctrl-],d") == b"\x1dd"
    assert parse_keys("") == b""
    for bad in ("ctrl-", "ctrl-pp", "ctrl-1", "ab", "ctrl-p,,q", "é"):
        with pytest.raises(UsageError, match="--detach-keys"):
            parse_keys(bad)


@given(st.lists(st.binary(max_size=6)), st.binary(min_size=1, max_size=3))
def test_the_detacher_loses_nothing(pieces: list[bytes], keys: bytes) -> None:
    """What goes on and what is held back is all that was typed before the sequence, however it was cut."""
    detacher = Detacher(keys)
    typed, passed = b"", b""
    for piece in pieces:
        typed += piece
        out, ended = detacher.feed(piece)
        passed += out
        if ended:
            assert typed.find(keys) == len(passed)
            return
    assert keys not in typed
    assert typed.startswith(passed)
    assert len(typed) - len(passed) < len(keys)


def test_bars_on_a_terminal(launcher: Path, environment: dict[str, str], peer: Peer) -> None:
    layers = ["sha256:" + digit * 64 for digit in "12"]
    rows = [
        ("progress", {"item": item, "phase": phase, "done": done, "total": 4_000_000})
        for done, phase in ((1_000_000, "downloading"), (4_000_000, "converting"))
        for item in layers
    ]
    peer.on("POST", "/v1/images/pull", Reply(202, {"id": "op1", "kind": "pull", "status": "running"}))
    end = ("end", {"id": "op1", "kind": "pull", "status": "done", "result": {"digest": "sha256:99"}})
    peer.on("GET", "/v1/operations/op1/events", events(*rows, end))
    terminal = Terminal([str(launcher), "pull", "img"], environment)
    assert terminal.finish() == 0
    text = terminal.seen.decode()
    assert "111111111111" in text
    assert "converting" in text
    assert "━" in text
    assert "Digest: sha256:99" in text
