"""Names, addresses and ports as people expect them, from another network namespace and between containers."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest
from tests.addresses import free_port
from tests.integration.system.site import IMAGE, Site, refusal, refused, settle

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_made")]

SERVE = "while :; do echo hello | nc -l -p 80; done"


@pytest.fixture
def neighbour() -> Iterator[list[str]]:
    """Another machine on a wire to this host (a network namespace): the argv that runs a program there."""
    name = f"cmn{os.getpid() % 10000}"
    for argv in (["ip", "netns", "add", name],
                 ["ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name],
                 ["ip", "addr", "add", "198.51.100.1/30", "dev", f"{name}a"], ["ip", "link", "set", f"{name}a", "up"],
                 ["ip", "-n", name, "addr", "add", "198.51.100.2/30", "dev", f"{name}b"],
                 ["ip", "-n", name, "link", "set", f"{name}b", "up"], ["ip", "-n", name, "link", "set", "lo", "up"],
                 ["ip", "-n", name, "route", "add", "default", "via", "198.51.100.1"]):  # fmt: skip
        subprocess.run(argv, check=True, capture_output=True)
    try:
        yield ["ip", "netns", "exec", name]
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", f"{name}a"], check=False, capture_output=True)


def ask(prefix: list[str], address: str, port: int) -> bytes:
    script = (f"import socket; s = socket.create_connection(('{address}', {port}), 1); s.settimeout(2); "
              "print(s.recv(100).decode(), end='')")  # fmt: skip
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run([*prefix, "/usr/bin/python3", "-c", script], capture_output=True, check=False,
                              timeout=10).stdout  # fmt: skip
    return b""


def test_a_published_port_from_here_there_and_beside(site: Site, neighbour: list[str]) -> None:
    port = free_port()
    done = site("run", "-d", "--name", "web", "-p", f"{port}:80", IMAGE, "sh", "-c", SERVE)
    assert done.returncode == 0, done.stderr
    try:
        assert settle(lambda: ask([], "127.0.0.1", port) == b"hello\n"), "from the host"
        assert settle(lambda: ask(neighbour, "198.51.100.1", port) == b"hello\n"), "from the neighbour"
        address = site("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web").stdout.decode().strip()
        assert ask(neighbour, address, 81) == b""
        beside = site("run", "--rm", IMAGE, "sh", "-c", f"nc -w 2 {address} 80 < /dev/null").stdout
        assert beside == b"hello\n", "a container reaches another by its address"
    finally:
        site("rm", "-f", "web")
    assert ask([], "127.0.0.1", port) == b"", "the port goes with its container"


def test_a_port_on_the_loopback_is_not_for_neighbours(site: Site, neighbour: list[str]) -> None:
    port = free_port()
    site("run", "-d", "--name", "local", "-p", f"127.0.0.1:{port}:80", IMAGE, "sh", "-c", SERVE)
    try:
        assert settle(lambda: ask([], "127.0.0.1", port) == b"hello\n")
        assert ask(neighbour, "198.51.100.1", port) == b""
    finally:
        site("rm", "-f", "local")


def test_a_container_reaches_outside_with_the_host_s_address(site: Site, neighbour: list[str]) -> None:
    script = ("import socket; s = socket.create_server(('198.51.100.2', 9)); s.settimeout(20)\n"
              "print('up', flush=True)\n"
              "c, peer = s.accept(); print(peer[0], flush=True)")  # fmt: skip
    with subprocess.Popen([*neighbour, "/usr/bin/python3", "-c", script], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        site("run", "--rm", IMAGE, "sh", "-c", "nc -w 2 198.51.100.2 9 < /dev/null")
        assert server.stdout.readline() == b"198.51.100.1\n"
        server.kill()


def test_a_container_without_network_reaches_nothing(site: Site, neighbour: list[str]) -> None:
    done = site(
        "run", "--rm", "--network", "none", IMAGE, "sh", "-c", "nc -w 1 198.51.100.1 22 < /dev/null; ls /sys/class/net"
    )
    assert done.stdout == b"lo\n"


def test_hosts_and_resolv_conf(site: Site) -> None:
    done = site("run", "--rm", "-h", "box", "--add-host", "db:192.0.2.7", "--dns", "192.0.2.53", "--dns-search",
                "example.org", "--dns-option", "ndots:2", IMAGE, "sh", "-c",
                "cat /etc/hosts /etc/resolv.conf /etc/hostname; hostname -i; "
                "ping -c 1 -w 1 localhost | head -n 1")  # fmt: skip
    text = done.stdout.decode()
    assert "127.0.0.1\tlocalhost" in text.replace("  ", "\t"), text
    assert "192.0.2.7\tdb" in text
    assert "nameserver 192.0.2.53\n" in text
    assert "search example.org\n" in text
    assert "options ndots:2\n" in text
    assert "\tbox" in text
    assert "(127.0.0.1)" in text


def test_a_name_server_is_reached_over_udp(site: Site, neighbour: list[str]) -> None:
    """A resolver on the neighbour answers one question of a container: NAT of UDP, and its own name server."""
    script = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('198.51.100.2', 53))\n"
        "s.settimeout(20); print('up', flush=True)\n"
        "while True:\n"
        "    q, peer = s.recvfrom(512); end = q.index(b'\\0', 12) + 5\n"
        "    a = b'\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4' + bytes([192, 0, 2, 99])\n"
        "    a = a if q[end-4:end-2] == b'\\0\\1' else b''\n"
        "    s.sendto(q[:2] + b'\\x81\\x80\\0\\1\\0' + bytes([bool(a)]) + b'\\0\\0\\0\\0' + q[12:end] + a, peer)"
    )
    with subprocess.Popen([*neighbour, "/usr/bin/python3", "-c", script], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as server:  # fmt: skip
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        done = site("run", "--rm", "--dns", "198.51.100.2", IMAGE, "nslookup", "somewhere.test")
        server.kill()
    assert b"192.0.2.99" in done.stdout, done


def test_the_published_port_of_another_is_refused(site: Site) -> None:
    port = free_port()
    site("run", "-d", "--name", "first", "-p", f"{port}:80", IMAGE, "sleep", "1000")
    try:
        done = site("--json", "run", "-d", "--name", "second", "-p", f"{port}:80", IMAGE, "sleep", "1000")
        assert done.returncode == 125, done
        assert b'"port.taken"' in done.stderr
        assert b'"remedy":' in done.stderr
    finally:
        site("rm", "-f", "first", "second")


def test_a_port_is_free_while_its_container_is_at_rest(site: Site) -> None:
    """As with Docker: freed at the end, whether by stop or by itself, published again at the start."""
    port = free_port()
    flags = ["-d", "-p", f"{port}:80", "-p", f"{port}:80/udp", IMAGE, "sh", "-c"]
    assert site("run", "--name", "first", *flags, SERVE).returncode == 0
    try:
        assert settle(lambda: ask([], "127.0.0.1", port) == b"hello\n")
        assert site("stop", "-t", "0", "first").returncode == 0
        with socket.create_server(("127.0.0.1", port)) as program:
            program.settimeout(5)
            with socket.create_connection(("127.0.0.1", port), 5):
                program.accept()[0].close()  # a program of the host has its connections
        done = site("run", "--name", "second", *flags, "sleep 1; exit 3")
        assert done.returncode == 0, done.stderr
        refusal(site("start", "first"), f"0.0.0.0:{port}/tcp is held by container second")
        assert site("wait", "second").stdout == b"3\n"
        assert site("start", "first").returncode == 0, "an end of its own frees the port too"
        assert settle(lambda: ask([], "127.0.0.1", port) == b"hello\n")
        refusal(site("start", "second"), "is held by container first")
        assert site("rm", "-f", "first").returncode == 0
        with socket.create_server(("127.0.0.1", port)):
            refusal(site("start", "second"), "is held by a program of the host")
        assert site("start", "second").returncode == 0
    finally:
        site("rm", "-f", "first", "second")


def test_the_ports_of_a_pod_stay_until_its_last_container_ends(site: Site) -> None:
    port = free_port()
    assert site("pod", "create", "--name", "shop", "-p", f"{port}:80").returncode == 0
    try:
        for name, script in (("front", SERVE), ("side", "exec sleep 1000")):
            done = site("run", "-d", "--pod", "shop", "--name", name, IMAGE, "sh", "-c", script)
            assert done.returncode == 0, done.stderr
        assert settle(lambda: ask([], "127.0.0.1", port) == b"hello\n")
        assert site("stop", "-t", "0", "side").returncode == 0
        assert settle(lambda: ask([], "127.0.0.1", port) == b"hello\n")
        other = ["run", "--rm", "-p", f"{port}:80", IMAGE, "true"]
        refused(site, "port.taken", *other)
        assert site("stop", "-t", "0", "front").returncode == 0
        assert site(*other).returncode == 0
    finally:
        site("pod", "rm", "-f", "shop")
