"""Waiting machines through both daemons: the tap that one was made with becomes the pod's, and nothing stays of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.addresses import free_port
from tests.integration.daemons import Daemons

pytestmark = pytest.mark.root

Run = Callable[..., subprocess.CompletedProcess[str]]
_WAIT_S = 60.0


@pytest.fixture
def pooled(pair: Daemons, vm: Run) -> Iterator[Daemons]:
    """The pair with a pool of one machine, for this test."""
    restart(pair, "1")
    try:
        done = vm("run", "--rm", "--isolation", "microvm", "busybox", "true")
        assert done.returncode == 0, done.stderr
        yield pair
    finally:
        restart(pair, "0")
    assert not waiting(pair), "those that wait end with hostd"
    assert not taps(pair)


def restart(pair: Daemons, pool: str) -> None:
    pair.kill("casemate-hostd", signal.SIGTERM)
    pair.environment["CASEMATE_MICROVM_POOL"] = pool
    pair.start("casemate-hostd")


def waiting(pair: Daemons) -> list[Path]:
    return sorted((pair.scope.folder / "host-run/vm").glob("+*"))


def taps(pair: Daemons) -> list[str]:
    prefix = "w" + pair.environment["CASEMATE_NETWORK_LINK_PREFIX"]
    return [one.name for one in Path("/sys/class/net").iterdir() if one.name.startswith(prefix)]


def until(done: Callable[[], object]) -> None:
    end = time.monotonic() + _WAIT_S
    while not done():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def test_a_machine_that_waited_has_the_pods_network(pooled: Daemons, cm: Run) -> None:
    port = free_port()
    script = "echo served > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"
    words = ("run", "-d", "--isolation", "microvm", "--name", "waited", "-p", f"{port}:8080", "busybox", "sh", "-c")
    for _ in range(5):
        until(lambda: waiting(pooled) and taps(pooled))
        (before,) = waiting(pooled)
        # Nothing tells from outside when it is warm; one that is not yet is not taken, and the start is by clone.
        time.sleep(3)
        done = cm(*words, script)
        assert done.returncode == 0, done.stderr
        if not before.exists():
            break
        assert cm("rm", "-f", "waited").returncode == 0
    else:
        pytest.fail("no machine that waited was taken")
    address = cm("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "waited").stdout.strip()
    shown = cm("exec", "waited", "sh", "-c", "ip address; ip route; cat /proc/net/arp").stdout
    assert address in shown
    assert "192.0.2." not in shown, "nothing of the rehearsal (warming.NETWORK) stays"
    until(lambda: b"served" in asked(port))
    # Started anew, its tap is gone with the machine and made again.
    assert cm("restart", "-t", "0", "waited").returncode == 0
    until(lambda: b"served" in asked(port))
    assert cm("rm", "-f", "waited").returncode == 0


def test_one_that_is_stopped_is_passed_over(pooled: Daemons, cm: Run) -> None:
    """Its tap and its QEMU are there, and nobody answers: the pod's link is made anew, and a clone started."""
    until(lambda: waiting(pooled) and taps(pooled))
    (before,) = waiting(pooled)
    until(lambda: qemu_of(before))
    time.sleep(3)  # as above; one that is not warm yet is passed over for that
    os.kill(qemu_of(before), signal.SIGSTOP)
    done = cm("run", "--rm", "--isolation", "microvm", "busybox", "ip", "-4", "address")
    assert done.returncode == 0, done.stderr
    assert "eth0" in done.stdout


def qemu_of(folder: Path) -> int:
    """0 before it is known."""
    if not (folder / "machine.json").exists():
        return 0
    return int(json.loads((folder / "machine.json").read_text()).get("qemu_pid", 0))


def asked(port: int) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
            one.sendall(b"GET / HTTP/1.0\r\n\r\n")
            found = b""
            while data := one.recv(4096):
                found += data
            return found
    except OSError:
        return b""
