"""The command line from another host (TLS with client certificates), as a member of the group, and a daemon killed."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import USER, Daemons, ensure_user, running_daemons
from tests.terminal import Cli, until


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of a server on 127.0.0.1 and a client."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*argv: str) -> None:
        subprocess.run(["openssl", *argv], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    usage = ("-addext", "keyUsage=critical,keyCertSign")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", *usage)
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext")
        openssl("x509", "-req", "-in", f"{name}.csr", *sign, "-out", f"{name}.pem")
    ensure_user()
    os.chown(folder / "server.key", pwd.getpwnam(USER).pw_uid, -1)
    for place in (folder, *folder.parents):
        if place.name.startswith(("pytest", "tls")):
            place.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def remote(certificates: Path) -> Iterator[tuple[Daemons, dict[str, str]]]:
    """Daemons that listen on TLS too, and the environment of a client elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running_daemons(
        CASEMATE_API_TLS_LISTEN=f"127.0.0.1:{port}",
        CASEMATE_API_TLS_CERTIFICATE=str(certificates / "server.pem"),
        CASEMATE_API_TLS_KEY=str(certificates / "server.key"),
        CASEMATE_API_TLS_CLIENT_CA=str(certificates / "ca.pem"),
    ) as pair:
        pair.import_busybox()
        yield (
            pair,
            {
                "PATH": os.environ["PATH"],
                "HOME": "/nonexistent",
                "LC_ALL": "C.UTF-8",
                "CASEMATE_HOST": f"tcp://127.0.0.1:{port}",
                "CASEMATE_TLS_CERT": str(certificates / "client.pem"),
                "CASEMATE_TLS_KEY": str(certificates / "client.key"),
                "CASEMATE_TLS_CA": str(certificates / "ca.pem"),
            },
        )


def test_commands_over_tls(remote: tuple[Daemons, dict[str, str]], launcher: Path) -> None:
    _, environment = remote

    def cm(*argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(launcher), *argv], input=stdin, capture_output=True, env=environment, timeout=60, check=False
        )

    assert b"Server:" in cm("version").stdout
    data = os.urandom(1 << 20)
    done = cm("run", "--rm", "-i", "busybox", "cat", stdin=data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data
    assert cm("run", "--rm", "busybox", "sh", "-c", "exit 8").returncode == 8
    stranger = subprocess.run(
        [str(launcher), "ps"],
        capture_output=True,
        env=environment | {"CASEMATE_TLS_CERT": "/none"},
        timeout=60,
        check=False,
    )
    assert stranger.returncode == 125


def test_the_daemon_is_killed_while_attached(remote: tuple[Daemons, dict[str, str]], launcher: Path) -> None:
    """The client says so and ends with 125; the container goes on, and its output is there afterwards."""
    pair, environment = remote
    local = environment | {"CASEMATE_HOST": f"unix://{pair.socket}"}
    script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
    process = subprocess.Popen(
        [str(launcher), "run", "--name", "count", "busybox", "sh", "-c", script],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=local,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"1\n"
    pair.kill("casemated", signal.SIGKILL)
    _, told = process.communicate(timeout=10)
    assert process.returncode == 125
    assert b"The process goes on" in told
    pair.start()

    def cm(*argv: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([str(launcher), *argv], capture_output=True, env=local, timeout=60, check=False)

    assert cm("ps", "--format", "{{.Names}}").stdout == b"count\n"
    seen = len(cm("logs", "count").stdout.splitlines())
    until(lambda: len(cm("logs", "count").stdout.splitlines()) > seen)
    numbers = cm("logs", "count").stdout.split()
    assert numbers == [str(number).encode() for number in range(1, len(numbers) + 1)], "no line is lost"
    assert cm("rm", "-f", "count").returncode == 0


def test_a_member_of_the_group_is_not_root(
    cm: Cli, launcher: Path, environment: dict[str, str], daemons: Daemons
) -> None:
    """Through the socket's group everybody runs containers; host paths want a grant, and the message says which."""
    account = pwd.getpwnam(USER)
    for place in (launcher.parent, launcher.parent.parent):
        place.chmod(0o755)

    def as_nobody(*argv: str, group: int = account.pw_gid) -> subprocess.CompletedProcess[bytes]:
        prefix = ["setpriv", "--reuid=65534", f"--regid={group}", "--clear-groups"]
        return subprocess.run(
            [*prefix, str(launcher), *argv], capture_output=True, env=environment, cwd="/", timeout=60, check=False
        )

    assert as_nobody("run", "--rm", "busybox", "echo", "hi").stdout == b"hi\n"
    refused = as_nobody("run", "--rm", "-v", "/etc:/x", "busybox", "true")
    assert refused.returncode == 125
    assert b"host_paths" in refused.stderr
    outside = as_nobody("ps", group=65534)
    assert outside.returncode == 125
    assert b"usermod -aG casemate" in outside.stderr
