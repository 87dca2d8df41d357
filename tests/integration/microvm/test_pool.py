"""Machines that wait: what is handed out is the pod's alone, and nothing of waiting ones stays when hostd goes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
import test_takeover
from test_machines import gone, qemu_of
from test_takeover import prepared

__all__ = ["prepared"]

pytestmark = pytest.mark.root

WAIT_S = 60.0


#: As test_takeover's, for tests of another run beside this one.
NUMBER = os.getpid() % 250 + 1


@pytest.fixture
def pooled(built: tuple[Path, Path], kernel_state: Path, base_layer: Path) -> Iterator[harness.Host]:
    """A service of its own, whose pool holds one machine: the first start says what is in demand."""
    folder = Path(tempfile.mkdtemp(prefix="cm-vp-"))
    host = harness.Host(kernel_state, folder, built[1], pool=1, taps=f"wp{NUMBER}-")
    host.start()
    try:
        ran(host, "first", [base_layer], "true")
        yield host
        host.end_all()
    finally:
        host.stop()
        shutil.rmtree(folder, ignore_errors=True)
    assert host.failure is None


def waiting(host: harness.Host) -> tuple[int, int]:
    """Monitor and QEMU of the machine that waits, once it does."""
    end = time.monotonic() + WAIT_S
    assert host.machines is not None
    while host.machines.pool.count() == 0:
        assert time.monotonic() < end, "no machine was made ready"
        time.sleep(0.05)
    one = host.machines.pool._ready[0].machine.record
    return one.pid, one.qemu_pid


def ran(host: harness.Host, name: str, layers: list[Path], *args: str) -> bytes:
    """Run a container to its end; what it wrote."""
    process, folder = start(host, name, layers, *args)
    process.wait(60)
    assert (folder / "exits" / name).read_text() == "0", (folder / "log").read_bytes()
    host.vm("delete", "--force", name)
    return (folder / "log").read_bytes()


def start(host: harness.Host, name: str, layers: list[Path], *args: str) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a container of a pod of ours, without a network: for an engine's no waiting machine is taken."""
    config = harness.configuration(layers, *args)
    config["annotations"] |= {"org.casemate.pod": name}  # type: ignore[operator]
    process, folder = harness.conmon(host, name, host.bundle(name, config))
    assert host.vm("start", name).returncode == 0, (folder / "answer").read_text()
    return process, folder


#: What two machines must not have in common: random numbers, an identifier, where a program's stack lies.
DRAWN = "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | sha256sum; grep stack /proc/self/maps"


def test_what_is_handed_out_is_the_pods_alone(pooled: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    monitor, qemu = waiting(pooled)
    seen = "ls -d /bin/warm /etc/resolv.conf /c 2>/dev/null; ls /sys/class/net; grep -c 192.0.2 /proc/net/fib_trie"
    script = f"cat /etc/base; {seen}; hostname; date +%s; {DRAWN}"
    process, folder = start(pooled, "taken", [base_layer], "sh", "-c", f"{script}; sleep 1000")
    assert qemu_of(pooled, "taken") == qemu, "the machine that waited"
    text = until(folder / "log", 8)
    assert text[0] == "base", "the container's own layer stands where the warming one's did"
    assert text[1:3] == ["lo", "0"], "neither the card nor the rehearsal's address"
    text[1:3] = []
    assert text[1] == "guest"
    assert abs(int(text[2]) - time.time()) < 60
    assert len(text) == 6, "nothing of ours is to be seen"
    pooled.vm("delete", "--force", "taken")
    process.wait(20)
    assert gone(qemu)
    assert gone(monitor)
    # The next one: another machine of the same template, which ran the same container of ours; other numbers and
    # layouts, and several layers this time.
    _, other = waiting(pooled)
    assert other != qemu
    upper = harness.layer(tmp_path, "upper", {"etc/both": "upper\n"}, busybox=False)
    output = ran(pooled, "next", [upper, base_layer], "sh", "-c", f"cat /etc/both; {DRAWN}").decode()
    assert "upper" in output
    drawn = [text[3], text[4].split()[0], text[5].split("-")[0]]
    assert all(len(one) >= 8 and one not in output for one in drawn), (drawn, output)


def until(log: Path, lines: int) -> list[str]:
    """The lines of conmon's log, without its stamps, once there are so many."""
    end = time.monotonic() + WAIT_S
    while len(found := [line.split(" F ", 1)[-1] for line in log.read_text().splitlines()]) < lines:
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def test_an_engines_container_gets_one_that_waited(pooled: harness.Host, base_layer: Path, prepared: None) -> None:
    """Its tap goes into the engine's namespace; the root is a folder of the host, written as its owner would."""
    _, qemu = waiting(pooled)
    root = pooled.folder / "root"
    shutil.copytree(base_layer.with_suffix(""), root, symlinks=True)
    config = test_takeover.configuration(pooled, base_layer)
    del config["annotations"]
    config["root"] = {"path": str(root)}
    process, folder = harness.conmon(pooled, "engines", pooled.bundle("engines", config))
    assert pooled.vm("start", "engines").returncode == 0, (folder / "answer").read_text()
    assert qemu_of(pooled, "engines") == qemu, "the machine that waited"
    with socket.create_server((test_takeover.GATEWAY, 0)) as server:
        server.settimeout(WAIT_S)
        port = server.getsockname()[1]
        script = f"echo mine > /written; ip addr show eth0; nc {test_takeover.GATEWAY} {port}"
        words = [str(pooled.shim), "--socket", str(pooled.socket), "exec", "engines", "sh", "-c", script]
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as client:
            connection, peer = server.accept()
            connection.sendall(b"from the host")
            connection.close()
            shown = client.communicate(timeout=WAIT_S)[0].decode()
    assert peer[0] == test_takeover.GUEST
    assert shown.endswith("from the host")
    assert test_takeover.MAC in shown
    assert (root / "written").read_text() == "mine\n"
    assert (root / "written").stat().st_uid == 0
    pooled.vm("delete", "--force", "engines")
    process.wait(30)
    assert gone(qemu, 30.0)
    inside = ["ip", "-n", test_takeover.NETNS, "-br", "link"]
    assert "casemate0" not in subprocess.run(inside, capture_output=True, text=True, check=True).stdout


def test_a_dead_machine_is_not_handed_out(pooled: harness.Host, base_layer: Path) -> None:
    _, qemu = waiting(pooled)
    os.kill(qemu, signal.SIGKILL)
    assert gone(qemu)
    assert ran(pooled, "after", [base_layer], "echo", "ok").rstrip().endswith(b"ok")


def test_a_machine_that_does_not_answer_is_not_handed_out(pooled: harness.Host, base_layer: Path) -> None:
    """Stopped, it lives: the start used to wait for it for 30 s, and to fail."""
    _, qemu = waiting(pooled)
    os.kill(qemu, signal.SIGSTOP)
    process, _ = start(pooled, "beside", [base_layer], "sleep", "1000")
    assert qemu_of(pooled, "beside") != qemu
    pooled.vm("delete", "--force", "beside")
    process.wait(30)
    assert gone(qemu, 30.0)


def test_waiting_machines_end_with_hostd_and_strays_with_the_next(pooled: harness.Host) -> None:
    monitor, qemu = waiting(pooled)
    pooled.stop()
    assert gone(qemu)
    assert gone(monitor)
    pooled.start()
    assert pooled.machines is not None
    assert not list((pooled.folder / "vm").glob("+*"))
