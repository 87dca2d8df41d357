"""The level gvisor by the command line: what only this level can get wrong. The rest is tests/conformance's."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import Daemons
from tests.terminal import Cli

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def level(daemons: Daemons) -> Iterator[None]:
    if shutil.which("runsc") is None:
        pytest.skip("missing: runsc")
    welcome = daemons.client.info().levels["gvisor"]
    assert "unavailable" not in welcome, welcome
    yield
    folder = daemons.scope.folder / "host-run/runsc"
    assert not folder.exists() or not list(folder.iterdir()), "no state of a sandbox stays"


def run(cm: Cli, name: str, *command: str, options: tuple[str, ...] = ()) -> None:
    done = cm("run", "-d", "--isolation", "gvisor", "--name", name, *options, "busybox", *command)
    assert done.returncode == 0, done.stderr


def test_it_is_another_kernel_with_the_pods_address_also_after_a_restart(cm: Cli) -> None:
    run(cm, "g", "sh", "-c", "echo served > /tmp/index.html; httpd -f -p 8080 -h /tmp")
    host = Path("/proc/version").read_text()
    assert cm("exec", "g", "cat", "/proc/version").stdout.decode() != host
    address = json.loads(cm("inspect", "g").stdout)[0]["NetworkSettings"]["IPAddress"]
    assert address.encode() in cm("exec", "g", "ip", "address").stdout
    # The sandbox took the address off the pod's interface: the next one must find it there again.
    assert cm("restart", "-t", "0", "g").returncode == 0
    assert address.encode() in cm("exec", "g", "ip", "address").stdout
    ask = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 8080"
    peer = cm("run", "--rm", "busybox", "sh", "-c", ask)
    assert peer.stdout.endswith(b"served\n"), peer
    assert cm("rm", "-f", "g").returncode == 0


def test_copies_see_what_the_container_sees(cm: Cli, tmp_path: Path) -> None:
    run(cm, "g", "sleep", "1000", options=("-v", "gvisor-vol:/vol"))
    (tmp_path / "file").write_text("from outside\n")
    for target in ("/vol/in", "/data/in"):
        assert cm("cp", str(tmp_path / "file"), f"g:{target}").returncode == 0
        assert cm("exec", "g", "cat", target).stdout == b"from outside\n"
    assert cm("exec", "g", "sh", "-c", "echo inside > /vol/out; echo inside > /data/out").returncode == 0
    for source in ("/vol/out", "/data/out"):
        with tarfile.open(fileobj=io.BytesIO(cm("cp", f"g:{source}", "-").stdout)) as tar:
            member = tar.extractfile("out")
            assert member is not None
            assert member.read() == b"inside\n"
    assert b"A /data/out" in cm("diff", "g").stdout
    # What it wrote belongs to the pod's ids, as at every level.
    other = cm("run", "--rm", "-v", "gvisor-vol:/vol", "busybox", "stat", "-c", "%u:%g", "/vol/out")
    assert other.stdout == b"0:0\n", other
    assert cm("rm", "-f", "g").returncode == 0
    assert cm("volume", "rm", "gvisor-vol").returncode == 0


def test_figures_and_processes_are_the_containers_own(cm: Cli) -> None:
    run(cm, "g", "sh", "-c", "sleep 1000 & sleep 1000", options=("-m", "200m"))
    rows = cm("top", "g").stdout.decode().splitlines()
    assert len(rows) == 3, rows
    assert not [row for row in rows if "runsc" in row]
    (usage,) = json.loads(cm("--json", "stats", "--no-stream", "g").stdout)["rows"]
    assert usage["memory_limit_bytes"] == 200 << 20
    assert 0 < usage["memory_bytes"] < 200 << 20, "the sandbox itself counts"
    assert cm("update", "-m", "256m", "g").returncode == 0
    (usage,) = json.loads(cm("--json", "stats", "--no-stream", "g").stdout)["rows"]
    assert usage["memory_limit_bytes"] == 256 << 20
    assert cm("rm", "-f", "g").returncode == 0


def test_a_paused_one_is_killed_and_starts_again(cm: Cli) -> None:
    run(cm, "g", "sleep", "1000")
    assert cm("pause", "g").returncode == 0
    assert b"(Paused)" in cm("ps").stdout
    killed = cm("kill", "g")
    assert (killed.returncode, killed.stderr) == (0, b"")
    assert cm("wait", "g").stdout.strip() == b"137"
    assert cm("start", "g").returncode == 0
    assert cm("exec", "g", "echo", "on").stdout == b"on\n"
    assert cm("rm", "-f", "g").returncode == 0


def test_what_it_cannot_is_refused_by_name(cm: Cli) -> None:
    for options in (("--network", "host"), ("--privileged",), ("--device", "/dev/fuse"), ("--pid", "host")):
        done = cm("run", "--rm", "--isolation", "gvisor", *options, "busybox", "true")
        assert done.returncode == 125, options
        assert b"gvisor" in done.stderr, done.stderr
    assert cm("pod", "create", "--isolation", "gvisor", "pair").returncode == 0
    second = cm("run", "--rm", "--read-only", "--pod", "pair", "busybox", "true")
    assert (second.returncode, b"read-only root" in second.stderr) == (125, True), second
    assert cm("pod", "rm", "pair").returncode == 0


def test_memory_beyond_the_limit_is_told(cm: Cli) -> None:
    done = cm(
        *("run", "--rm", "--isolation", "gvisor", "-m", "64m"),
        *("busybox", "sh", "-c", "tail -c 200m /dev/zero | wc -c"),
    )
    assert done.returncode == 137, done
    assert b"memory" in done.stderr


def test_a_fork_bomb_ends_its_sandbox_and_nobody_elses(cm: Cli) -> None:
    run(cm, "other", "sleep", "1000")
    done = cm(
        *("run", "--rm", "--isolation", "gvisor", "--pids-limit", "15"),
        *("busybox", "sh", "-c", "while :; do sleep 600 & done"),
    )
    assert done.returncode != 0
    assert b"limit of 436 tasks on the host" in done.stderr, "what the limit means is said at the start"
    assert b"started more processes" in done.stderr, "and why it ended"
    assert cm("exec", "other", "echo", "alive").stdout == b"alive\n"
    assert cm("rm", "-f", "other").returncode == 0


def test_as_many_processes_as_the_limit_says_have_room(cm: Cli) -> None:
    done = cm(
        *("run", "--rm", "--isolation", "gvisor", "--pids-limit", "30"),
        *("busybox", "sh", "-c", "for i in $(seq 29); do sleep 1 & done; wait; echo all"),
    )
    assert (done.returncode, done.stdout) == (0, b"all\n"), done


def test_a_lost_sandbox_is_an_end(cm: Cli, daemons: Daemons) -> None:
    """A daemon that comes back finds the sandbox of an earlier one; one that was killed is told as such."""
    run(cm, "g", "sleep", "1000")
    daemons.kill("casemate-hostd")
    daemons.start("casemate-hostd")
    assert cm("exec", "g", "echo", "still").stdout == b"still\n"
    pid = int(json.loads(cm("inspect", "g").stdout)[0]["State"]["Pid"])
    os.kill(pid, signal.SIGKILL)
    assert cm("wait", "g").stdout.strip() == b"137"
    assert cm("rm", "g").returncode == 0
