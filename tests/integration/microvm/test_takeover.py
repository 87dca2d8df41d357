"""A network namespace that somebody else has set up, taken over by the guest: all of it, both ways, both families."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import harness
import pytest

pytestmark = pytest.mark.root

NUMBER = os.getpid() % 250 + 1
NETNS, HERE = f"cmk-{NUMBER}", f"cmk{NUMBER}"
GUEST, GATEWAY = f"198.19.{NUMBER}.2", f"198.19.{NUMBER}.1"
GUEST6, GATEWAY6 = f"fd00:{NUMBER:x}::2", f"fd00:{NUMBER:x}::1"
MAC = f"02:11:00:00:{NUMBER:02x}:02"


def ip(*words: str, inside: bool = False) -> None:
    subprocess.run(["ip", *(["-n", NETNS] if inside else []), *words], check=True, timeout=20)


@pytest.fixture
def prepared() -> Iterator[None]:
    ip("netns", "add", NETNS)
    try:
        ip("link", "add", HERE, "type", "veth", "peer", "name", "eth0", "netns", NETNS)
        for words in (["addr", "add", f"{GATEWAY}/24"], ["addr", "add", f"{GATEWAY6}/64", "nodad"]):
            ip(*words, "dev", HERE)
        ip("link", "set", HERE, "up")
        ip("link", "set", "eth0", "address", MAC, "mtu", "1380", inside=True)
        for words in (["addr", "add", f"{GUEST}/24"], ["addr", "add", f"{GUEST6}/64", "nodad"]):
            ip(*words, "dev", "eth0", inside=True)
        ip("link", "set", "eth0", "up", inside=True)
        ip("route", "add", "default", "via", GATEWAY, inside=True)
        ip("route", "add", "203.0.113.0/24", "dev", "eth0", inside=True)
        ip("-6", "route", "add", "default", "via", GATEWAY6, inside=True)
        ip("neigh", "add", "203.0.113.9", "lladdr", "02:00:00:00:00:99", "nud", "permanent", "dev", "eth0", inside=True)
        yield
    finally:
        # The interface in the namespace goes with its peer here.
        subprocess.run(["ip", "link", "delete", HERE], check=False, capture_output=True)
        ip("netns", "delete", NETNS)


def configuration(host: harness.Host, layer: Any) -> Any:
    config: Any = harness.configuration([layer], "sleep", "1000")
    config["linux"]["namespaces"] = [
        {"type": "pid"},
        {"type": "mount"},
        {"type": "network", "path": f"/run/netns/{NETNS}"},
    ]
    return config


def test_everything_that_is_set_is_the_guests(host: harness.Host, base_layer: Any, prepared: None) -> None:
    bundle = host.bundle("taken", configuration(host, base_layer))
    quiet: Any = {"capture_output": False, "stdin": subprocess.DEVNULL}
    assert host.vm("run", "--detach", "--bundle", str(bundle), "taken", **quiet).returncode == 0
    try:
        shown = host.vm("exec", "taken", "sh", "-c", "ip addr show eth0; ip route; ip -6 route; ip neigh").stdout
        for words in (
            "mtu 1380",
            MAC,
            f"inet {GUEST}/24",
            f"inet6 {GUEST6}/64",
            f"default via {GATEWAY} ",
            f"default via {GATEWAY6} ",
            "203.0.113.0/24",
            "203.0.113.9 dev eth0 lladdr 02:00:00:00:00:99",
        ):
            assert words in shown, shown
        for here, there in ((GATEWAY, GUEST), (GATEWAY6, GUEST6)):
            family = socket.AF_INET6 if ":" in here else socket.AF_INET
            with socket.create_server((here, 0), family=family) as server:
                server.settimeout(20)
                command = f"echo from the guest | nc {here} {server.getsockname()[1]}"
                words = [str(host.shim), "--socket", str(host.socket), "exec", "taken", "sh", "-c", command]
                with subprocess.Popen(words, stdin=subprocess.DEVNULL) as sender:
                    connection, peer = server.accept()
                    with connection:
                        assert peer[0] == there
                        assert connection.recv(100) == b"from the guest\n"
                    assert sender.wait(20) == 0
        # Engines that enter the namespaces of the container's process (`podman top`) see that, and nothing of the host.
        pid = host.state_of("taken")["pid"]
        shown = [path.name for path in Path(f"/proc/{pid}/root/proc").iterdir() if path.name.isdigit()]
        assert shown == ["1"]
        assert sorted(path.name for path in Path(f"/proc/{pid}/root").iterdir()) == ["etc", "proc"]
        # What the namespace's own kernel would answer never sees a packet.
        assert host.vm("exec", "taken", "cat", "/proc/sys/kernel/osrelease").stdout.strip() != os.uname().release
    finally:
        assert host.vm("delete", "--force", "taken").returncode == 0


@contextmanager
def further(number: int, name: str = "") -> Iterator[tuple[str, str]]:
    """One more interface of the namespace, with an address; that address, and the one of its other end here."""
    guest, here = f"198.19.{NUMBER}.{100 + 4 * number + 2}", f"198.19.{NUMBER}.{100 + 4 * number + 1}"
    name = name or f"eth{number}"
    ip("link", "add", f"{HERE}x{number}", "type", "veth", "peer", "name", name, "netns", NETNS)
    try:
        ip("addr", "add", f"{here}/30", "dev", f"{HERE}x{number}")
        ip("link", "set", f"{HERE}x{number}", "up")
        ip("addr", "add", f"{guest}/30", "dev", name, inside=True)
        ip("link", "set", name, "up", "mtu", f"{1400 - number}", inside=True)
        yield guest, here
    finally:
        subprocess.run(["ip", "link", "delete", f"{HERE}x{number}"], check=False, capture_output=True)


def links() -> str:
    return subprocess.run(["ip", "-n", NETNS, "-br", "link"], capture_output=True, text=True, check=True).stdout


def rename(name: str, to: str) -> None:
    """In the namespace; addresses of IPv4 stay."""
    for words in (["down"], ["name", to]):
        ip("link", "set", name, *words, inside=True)
    ip("link", "set", to, "up", inside=True)


def test_every_interface_is_the_guests(host: harness.Host, base_layer: Any, prepared: None) -> None:
    """By its name in the namespace, whatever its place there: the first is called as the second would be."""
    quiet: Any = {"capture_output": False, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    bundle = host.bundle("many", configuration(host, base_layer))
    rename("eth0", "eth1")
    with further(1, "eth0") as (guest, here):
        # One more than there were when the machine was made is refused, and taking it away again lets it start.
        assert host.vm("create", "--bundle", str(bundle), "many", **quiet).returncode == 0
        try:
            with further(2, "eth2"):
                started = host.vm("start", "many")
                words = "has 3 interfaces (eth1, eth0, eth2), and had 2 when the container was created"
                assert (started.returncode, words in started.stderr) == (1, True), started
                assert "microvm.network" in started.stderr
            assert host.vm("start", "many").returncode == 0
            first, second = (host.vm("exec", "many", "ip", "addr", "show", name).stdout for name in ("eth1", "eth0"))
            found = (f"{GUEST}/24" in first, f"{guest}/30" in second, "mtu 1399" in second)
            assert found == (True, True, True), (first, second)
            for to, at in ((GATEWAY, GUEST), (here, guest)):
                with socket.create_server((to, 0)) as server:
                    server.settimeout(60)
                    words = f"echo from the guest | nc {to} {server.getsockname()[1]}"
                    sender = subprocess.Popen(
                        [str(host.shim), "--socket", str(host.socket), "exec", "many", "sh", "-c", words],
                        stdin=subprocess.DEVNULL,
                    )
                    connection, peer = server.accept()
                    with connection:
                        assert (peer[0], connection.recv(100)) == (at, b"from the guest\n")
                    assert sender.wait(60) == 0
        finally:
            assert host.vm("delete", "--force", "many").returncode == 0
    assert "casemate" not in links()


def test_more_interfaces_than_a_machine_has_places_are_refused(
    host: harness.Host, base_layer: Any, prepared: None
) -> None:
    bundle = host.bundle("crowd", configuration(host, base_layer))
    with ExitStack() as stack:
        for number in range(1, 5):
            stack.enter_context(further(number))
        done = host.vm("run", "--bundle", str(bundle), "crowd", stdin=subprocess.DEVNULL)
        assert (done.returncode, "5 interfaces" in done.stderr, "a guest has 4" in done.stderr) == (1, True, True), done
        assert "casemate" not in links()
