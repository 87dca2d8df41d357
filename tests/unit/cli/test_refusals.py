"""What goes wrong between the command line and the daemon, and what is said then."""

from __future__ import annotations

import grp
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
from peer import Peer, Reply, problem

from casemate.cli.help import page
from casemate.cli.index import ROWS, load, paths


def test_no_daemon(cm, tmp_path: Path) -> None:
    done = cm("ps", env={"CASEMATE_HOST": f"unix://{tmp_path}/none.sock"})
    assert done.returncode == 125
    assert b"casemated is not running: there is no socket" in done.stderr
    assert b"systemctl start casemated" in done.stderr
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    assert b"nobody listens" in cm("ps", "-H", f"unix://{dead}").stderr
    both = cm("version", "-H", f"unix://{dead}")
    assert both.stdout.startswith(b"Client:\n Version:")
    assert both.returncode == 125
    problem_ = json.loads(cm("ps", "--json", "-H", f"unix://{dead}").stderr)
    assert problem_["code"] == "cli.daemon_unreachable"


def test_the_socket_is_for_a_group(launcher: Path, tmp_path: Path, peer: Peer) -> None:
    if os.geteuid() != 0:
        pytest.skip("missing: root, to become another user")
    group = grp.getgrall()[5]
    os.chown(peer.path, 0, group.gr_gid)
    peer.path.chmod(0o660)
    for folder in (tmp_path, *tmp_path.parents):
        if str(folder).startswith("/tmp/pytest"):
            folder.chmod(0o755)
    launcher.parent.chmod(0o755)
    launcher.parent.parent.chmod(0o755)
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(launcher), "-H", peer.host, "ps"],
        capture_output=True,
        timeout=30,
        check=False,
        cwd="/",
    )
    assert done.returncode == 125
    assert f"it is for root and the group {group.gr_name!r}".encode() in done.stderr
    assert f"usermod -aG {group.gr_name}".encode() in done.stderr


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(200, body=b"<html>"), b"the answer is not JSON"),
        (Reply(200, []), b"no JSON object"),
        (Reply(200, {"containers": 3}), b"has no list 'containers'"),
        (Reply(502, body=b"<html>bad \x1b[31m gateway"), b"answers 502 X without a problem document"),
        (Reply(500, {"detail": "x\x1b[31m", "trace_id": "t1"}), b"trace id: t1"),
    ],
)
def test_strange_answers(cm, peer: Peer, reply: Reply, words: bytes) -> None:
    peer.on("GET", "/v1/containers", reply)
    done = cm("ps")
    assert done.returncode == 125
    assert words in done.stderr
    assert b"\x1b" not in done.stderr


def test_wrong_addresses(cm) -> None:
    for host, words in (
        ("ftp://x", b"is not valid"),
        ("tcp://x", b"no name or no port"),
        ("tcp://x:99999", b"no port"),
    ):
        done = cm("ps", "-H", host)
        assert done.returncode == 125
        assert words in done.stderr


def test_a_kept_connection_that_the_daemon_closed_is_made_anew(cm, peer: Peer) -> None:
    peer.on("GET", "/v1/containers", Reply(value={"containers": [], "next_after": "x"}, close=True))
    first = []

    def page(request) -> Reply:
        first.append(request)
        return Reply(value={"containers": [], "next_after": "" if len(first) > 1 else "x"}, close=True)

    peer.on("GET", "/v1/containers", page)
    assert cm("ps").returncode == 0
    assert peer.connections == 2


def test_unknown_commands(cm) -> None:
    done = cm("rnu", "x")
    assert done.returncode == 125
    assert b"did you mean `casemate run`?" in done.stderr
    assert b"did you mean `casemate image pull`?" in cm("image", "pul").stderr
    assert b"unknown command: casemate pod" in cm("pod", "zzz").stderr
    assert cm("frobnicate").stderr.count(b"did you mean") == 0


def test_text_that_is_not_utf8(launcher: Path, peer: Peer) -> None:
    done = subprocess.run(
        [str(launcher), "-H", peer.host, "run", "img", b"\xff\xfe"], capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 125
    assert b"is not UTF-8" in done.stderr


def test_every_command_has_help_and_the_overview_names_it(cm) -> None:
    overview = cm("--help").stdout.decode()
    for path, *_ in ROWS:
        assert f"  {path} " in overview
    for path in paths():
        text = page(path, load(path))
        assert text.startswith(f"Usage: casemate {path}")
        assert "--json" in text
        assert all(len(line) <= 120 for line in text.splitlines())
    assert cm("help", "run").stdout == cm("run", "--help").stdout
    assert cm("image").stdout == cm("image", "--help").stdout
    assert cm("--help", "ps").stdout == cm("ps", "--help").stdout


def test_json_of_the_container_is_not_ours(cm, peer: Peer) -> None:
    """``--json`` behind the image is an argument of the container's command, also when something fails."""
    assert cm("run", "img", "prog", "--json").stderr.startswith(b"casemate: no POST")
    assert json.loads(cm("run", "--json", "img", "prog").stderr)["code"] == "object.not_found"
    assert json.loads(cm("--json", "run", "img", "prog").stderr)["code"] == "object.not_found"


@pytest.mark.parametrize("name", ["a/b", "", "../x"])
def test_names_that_no_object_has(cm, peer: Peer, name: str) -> None:
    done = cm("stop", name)
    assert done.returncode == 125
    assert b"no such object" in done.stderr
    assert not peer.requests


def test_what_head_cannot_say_is_asked_again(cm, peer: Peer, tmp_path: Path) -> None:
    peer.on("HEAD", "/v1/containers/web/archive", Reply(409))
    peer.on("GET", "/v1/containers/web/archive", problem(409, "object.conflict", "container 'web' was never started"))
    done = cm("cp", "web:/x", ".")
    assert done.returncode == 125
    assert b"was never started" in done.stderr


def test_referrals_that_have_no_row_are_counted(cm, peer: Peer) -> None:
    listed = {
        "waiting": [],
        "decided": [],
        "remembered": [],
        "counters": {"allowed": 7, "lost_bound": 3, "lost_away": 0},
    }
    peer.on("GET", "/v1/referrals", Reply(200, listed))
    done = cm("referral", "ls")
    assert done.returncode == 0
    assert b"Not in this list, since casemated began: 3 beyond the bound of what may wait." in done.stderr
    assert json.loads(cm("referral", "ls", "--json").stdout)["counters"]["lost_bound"] == 3
