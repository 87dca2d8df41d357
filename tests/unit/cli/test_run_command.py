"""`run` against a peer: create, attach, pull what is missing; what it asks, what it prints, what it ends with."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from peer import Peer, Reply, Request, events, problem

from casemate.cli.context import Context
from casemate.cli.wire import client

ID = "ab" * 32


def test_run_creates_and_attaches_on_one_connection(cm, peer: Peer) -> None:
    def serve(request, websocket) -> None:
        websocket.control(started=True)
        websocket.output(b"hello\n")
        websocket.output(b"oops\n", 2)
        websocket.control(exit_code=7)

    peer.on("POST", "/v1/containers", Reply(201, {"id": ID, "name": "x", "warnings": ["swap is not limited"]}))
    peer.websocket(f"/v1/containers/{ID}/attach", serve)
    done = cm("run", "--rm", "-e", "A=1", "debian:12", "echo", "hello")
    assert (done.returncode, done.stdout) == (7, b"hello\n")
    assert done.stderr == b"warning: swap is not limited\noops\n"
    assert peer.requests[0].json == {
        "image": "debian:12",
        "command": ["echo", "hello"],
        "auto_remove": True,
        "env": ["A=1"],
    }
    assert peer.requests[1].query == [("start", "true")]
    assert peer.connections == 1


def test_run_detached_prints_the_id(cm, peer: Peer) -> None:
    peer.on("POST", "/v1/containers", Reply(201, {"id": ID, "name": "x"}))
    peer.on("POST", f"/v1/containers/{ID}/start", Reply(204))
    done = cm("run", "-d", "--cidfile", "cid", "debian:12")
    assert (done.returncode, done.stdout) == (0, f"{ID}\n".encode())
    again = cm("run", "-d", "--cidfile", "cid", "debian:12")
    assert again.returncode == 125
    assert b"is there already" in again.stderr
    assert json.loads(cm("run", "-d", "--json", "debian:12").stdout) == {"id": ID, "name": "x"}
    assert peer.connections == 2, "nothing is asked when the cidfile is there"


def test_run_detached_says_what_a_start_at_a_stronger_level_says(cm, peer: Peer) -> None:
    peer.on("POST", "/v1/containers", Reply(201, {"id": ID, "name": "x", "warnings": ["first"]}))
    peer.on("POST", f"/v1/containers/{ID}/start", Reply(204))
    peer.on("GET", f"/v1/containers/{ID}", Reply(200, {"warnings": ["first", "emulated"]}))
    done = cm("run", "-d", "--isolation", "microvm", "debian:12")
    assert (done.stdout, done.stderr) == (f"{ID}\n".encode(), b"warning: first\nwarning: emulated\n")


def test_a_start_that_takes_its_time_is_told_once(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    words: list[str] = []

    def note(text: str) -> None:
        words.append(text)
        told.set()

    def answer(request: Request) -> Reply:
        assert told.wait(30)
        return Reply(204)

    monkeypatch.setattr(client, "PATIENCE_MS", 10)
    context = Context(peer.host, "default", json=False)
    monkeypatch.setattr(Context, "note", lambda _self, text: note(text))
    peer.on("POST", f"/v1/containers/{ID}/start", answer)
    context.tell_of_wait(ID, "microvm")
    context.client.post(f"/v1/containers/{ID}/start")
    context.close()
    assert words == [
        "casemate: abababababab is still being started; the first micro-VM of a size makes its template first\n"
    ]


def test_cidfile_goes_when_nothing_was_created(cm, peer: Peer, tmp_path: Path) -> None:
    peer.on("POST", "/v1/containers", problem(409, "container.name_taken", "the name 'x' is taken"))
    done = cm("run", "-d", "--cidfile", "cid", "--name", "x", "debian:12")
    assert done.returncode == 125
    assert not (tmp_path / "cid").exists()
    assert done.stderr == b"casemate: the name 'x' is taken\n  remedy: do this\n"


@pytest.mark.parametrize(
    ("code", "exit_code"), [("container.command_not_found", 127), ("container.command_not_executable", 126)]
)
def test_the_problem_of_a_start_is_the_exit_code(cm, peer: Peer, code: str, exit_code: int) -> None:
    def serve(request, websocket) -> None:
        websocket.control(problem={"code": code, "detail": "no such command", "exit_code": exit_code})

    peer.on("POST", "/v1/containers", Reply(201, {"id": ID, "name": "x"}))
    peer.websocket(f"/v1/containers/{ID}/attach", serve)
    done = cm("run", "debian:12", "nope")
    assert done.returncode == exit_code
    assert b"no such command" in done.stderr


def test_a_problem_in_place_of_the_upgrade(cm, peer: Peer) -> None:
    peer.on("POST", "/v1/containers", Reply(201, {"id": ID, "name": "x"}))
    peer.on("GET", f"/v1/containers/{ID}/attach", problem(400, "container.command_not_found", "not in the image", 127))
    assert cm("run", "debian:12", "nope").returncode == 127


def _pulling(peer: Peer, *rows) -> None:
    peer.on("POST", "/v1/images/pull", Reply(202, {"id": "op1", "kind": "pull", "status": "running", "created_at": ""}))
    peer.on("GET", "/v1/operations/op1/events", events(*rows))


def test_run_pulls_a_missing_image(cm, peer: Peer) -> None:
    tries = []

    def create(request) -> Reply:
        tries.append(request)
        if len(tries) == 1:
            code = "image.platform_other" if "platform" in request.json else "image.not_found"
            return problem(404, code, "no image debian:12")
        return Reply(201, {"id": ID, "name": "x"})

    layer = "sha256:" + "7" * 64
    peer.on("POST", "/v1/containers", create)
    peer.on("POST", f"/v1/containers/{ID}/start", Reply(204))
    _pulling(
        peer,
        ("progress", {"item": layer, "phase": "downloading", "done": 1, "total": 5_000_000}),
        ("progress", {"item": layer, "phase": "downloading", "done": 9, "total": 5_000_000}),
        ("progress", {"item": layer, "phase": "done", "done": 10, "total": 5_000_000}),
        ("end", {"id": "op1", "kind": "pull", "status": "done", "created_at": "", "result": {"digest": "sha256:1"}}),
    )
    done = cm("run", "-d", "--platform", "linux/amd64", "debian:12")
    assert (done.returncode, done.stdout) == (0, f"{ID}\n".encode())
    assert done.stderr.decode().splitlines() == [
        "Unable to find image 'debian:12' for linux/amd64 locally",
        "777777777777: downloading (5MB)",
        "777777777777: done (5MB)",
    ]
    assert peer.asked("POST", "/v1/images/pull")[0].json == {"reference": "debian:12", "platform": "linux/amd64"}
    tries.clear()
    never = cm("run", "-d", "--pull", "never", "debian:12")
    assert never.returncode == 125
    assert b"no image debian:12" in never.stderr
    tries.clear()
    assert cm("run", "-dq", "debian:12").stderr == b""


def test_pull_always_and_a_failed_pull(cm, peer: Peer) -> None:
    failed = {"code": "image.unauthorized", "detail": "registry says 401", "exit_code": 125, "remedy": "casemate login"}
    _pulling(peer, ("end", {"id": "op1", "kind": "pull", "status": "failed", "problem": failed}))
    done = cm("run", "--pull=always", "debian:12")
    assert done.returncode == 125
    assert b"registry says 401" in done.stderr
    assert not peer.asked("POST", "/v1/containers")
    assert b"--pull: 'newer' is not valid" in cm("run", "--pull", "newer", "debian:12").stderr


def test_a_pull_that_another_cancelled(cm, peer: Peer) -> None:
    _pulling(peer, ("end", {"id": "op1", "kind": "pull", "status": "cancelled"}))
    done = cm("pull", "debian:12")
    assert done.returncode == 130
    assert b"was cancelled" in done.stderr


def test_pull_sends_the_logins_of_docker(cm, peer: Peer, tmp_path: Path) -> None:
    _pulling(peer, ("end", {"id": "op1", "kind": "pull", "status": "done", "result": {"digest": "sha256:12"}}))
    folder = tmp_path / "docker"
    login = cm(
        "login",
        "-u",
        "me",
        "--password-stdin",
        "reg.example:5000",
        stdin=b"secret\n",
        env={"DOCKER_CONFIG": str(folder)},
    )
    assert login.returncode == 0, login.stderr
    assert (folder / "config.json").stat().st_mode & 0o777 == 0o600
    done = cm("pull", "reg.example:5000/app:1", env={"DOCKER_CONFIG": str(folder)})
    assert done.stdout == b"Digest: sha256:12\nreg.example:5000/app:1\n"
    auth = {"registry": "reg.example:5000", "username": "me", "password": "secret"}
    assert peer.asked("POST", "/v1/images/pull")[0].json == {"reference": "reg.example:5000/app:1", "auth": auth}
    assert cm("logout", "reg.example:5000", env={"DOCKER_CONFIG": str(folder)}).stdout.startswith(b"Removed")
    cm("pull", "reg.example:5000/app:1", env={"DOCKER_CONFIG": str(folder)})
    assert "auth" not in peer.asked("POST", "/v1/images/pull")[1].json
    assert b"secret" not in login.stdout + login.stderr + done.stderr
