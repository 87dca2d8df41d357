"""Completion: what is offered, and that the three shells take it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from peer import Peer, Reply

from casemate.cli.complete import FILES, offers


def words(*typed: str) -> list[str]:
    return [word for word, _ in offers(list(typed))]


def test_commands_and_flags() -> None:
    assert {"run", "image", "ps", "container"} <= set(words(""))
    assert words("ru") == ["run"]
    assert {"ls", "pull", "rm", "build-debian"} <= set(words("image", ""))
    assert words("image", "pu") == ["pull", "push"] or set(words("image", "pu")) == {"pull", "push"}
    assert {"--rm", "--name", "--json"} <= set(words("run", "--"))
    assert words("run", "--na") == ["--name"]
    assert "--name" not in words("run", "--name", "x", "--n")
    assert "--env" in words("run", "--env", "x", "--e")
    assert words("run", "--isolation", "g") == ["gvisor"]
    assert words("run", "--isolation=m") == ["--isolation=microvm"]
    assert words("run", "--pull", "") == ["missing", "always", "never"]
    assert FILES[0] in words("run", "--env-file", "")
    assert FILES[0] in words("run", "-it", "-v", "")
    assert words("completion", "") == ["bash", "zsh", "fish"]
    assert words("--json", "ru") == ["run"]
    assert words("nope", "") == []


def test_names_come_from_the_daemon(cm, peer: Peer) -> None:
    peer.on(
        "GET", "/v1/containers", Reply(value={"containers": [{"name": "web", "status": "running"}, {"name": "db\x1b"}]})
    )
    peer.on("GET", "/v1/images", Reply(value={"images": [{"names": ["docker.io/library/debian:12"]}]}))
    assert cm("__complete", "stop", "").stdout == b"web\trunning\n"
    assert cm("__complete", "rm", "web", "w").stdout == b"web\trunning\n"
    assert peer.requests[-1].params() == {"all": "true"}
    assert cm("__complete", "run", "-it", "deb").stdout == b"debian:12\n"
    assert cm("__complete", "run", "debian:12", "").stdout == b"", "what follows the image is the container's"
    away = cm("__complete", "stop", "", env={"CASEMATE_HOST": "unix:///none"})
    assert (away.returncode, away.stdout, away.stderr) == (0, b"", b"")


def test_bash(cm, launcher: Path, peer: Peer, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "script").write_bytes(cm("completion", "bash").stdout)
    (tmp_path / "env-file").write_text("")
    peer.on("GET", "/v1/containers", Reply(value={"containers": [{"name": "web"}, {"name": "worker"}]}))
    program = """
    source ./script
    try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _casemate; echo "${COMPREPLY[@]}"; }
    try casemate ver; try casemate stop w; try casemate run --rm --isol; try casemate run --env-file env
    """
    done = subprocess.run(
        ["bash", "-c", program],
        capture_output=True,
        cwd=tmp_path,
        timeout=30,
        check=False,
        env=environment | {"PATH": f"{launcher.parent}:{environment['PATH']}"},
    )
    assert done.stdout.decode().splitlines() == ["version", "web worker", "--isolation", "env-file"], done.stderr


@pytest.mark.parametrize(("shell", "check"), [("bash", ["-n"]), ("zsh", ["-n"]), ("fish", ["--no-execute"])])
def test_the_scripts_are_sound(cm, tmp_path: Path, shell: str, check: list[str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"missing: {shell}")
    (tmp_path / "script").write_bytes(cm("completion", shell).stdout)
    subprocess.run([shell, *check, str(tmp_path / "script")], check=True, timeout=30)


def test_an_unknown_shell(cm) -> None:
    assert b"bash, zsh or fish" in cm("completion", "csh").stderr
