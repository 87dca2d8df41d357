"""The network as the host has it: sizes of packets, names, ways round, and what gets nowhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from tests.addresses import free_port, host_address
from tests.conformance.case import box_prints, case
from tests.conformance.cases_pods import SERVE
from tests.conformance.chamber import TIMEOUT_S, Chamber, until

from casemate.host import netns

T = TypeVar("T")
#: RFC 5737: addresses that are nobody's.
NOBODY = "198.51.100.9"
#: Of the way to a machine outside, beyond the host: less than an interface's here.
NARROW_BYTES = 900
UPLOAD_BYTES = 300_000


def counted(chamber: Chamber) -> dict[str, int]:
    """What the firewall has counted."""
    found: dict[str, int] = json.loads(chamber.ok("policy", "status", "--json"))["firewall"]
    return found


@contextlib.contextmanager
def listening() -> Iterator[tuple[socket.socket, str, int]]:
    """A datagram socket of the host's, and where it is."""
    with socket.socket(type=socket.SOCK_DGRAM) as one:
        one.bind(("0.0.0.0", 0))
        one.settimeout(TIMEOUT_S)
        yield one, host_address(), one.getsockname()[1]


@case("network.whole_packets", "packets of the interface's size that may not be divided pass; one byte more is refused")
def whole_packets(chamber: Chamber) -> None:
    shown = chamber.ok("exec", chamber.raw, "ip", "-o", "link", "show", "eth0")
    size = int(re.search(r"mtu (\d+)", shown)[1])  # type: ignore[index]
    with listening() as (one, where, port):
        done = chamber.cm("exec", chamber.raw, "/probe", "packet", "0.0.0.0", where, str(port), str(size + 1))
        assert b"too long" in done.stdout, done
        # By the kernel: gVisor takes a little less where headers are made by hand.
        done = chamber.cm("exec", chamber.raw, "/probe", "datagram", where, str(port), str(size))
        assert done.stdout == b"sent\n", done
        assert len(one.recv(65536)) == size - 28


@case("network.spoofed", "another's address: dropped, and counted")
def spoofed(chamber: Chamber) -> None:
    before = counted(chamber)["spoofed"]
    with listening() as (one, where, port):
        for source, size in ((NOBODY, 60), ("127.0.0.1", 61), ("0.0.0.0", 62)):
            done = chamber.cm("exec", chamber.raw, "/probe", "packet", source, where, str(port), str(size))
            assert done.stdout == b"sent\n", done
        # In the order in which they were sent: what comes first is what comes at all.
        data, peer = one.recvfrom(65536)
        assert (len(data), peer[0]) == (62 - 28, chamber.address(chamber.raw))
    # A sandbox's own network stack may keep a source of 127.0.0.1 to itself.
    assert counted(chamber)["spoofed"] > before


@case("network.nowhere", "metadata services, link-local addresses, multicast: dropped, and counted")
def nowhere(chamber: Chamber) -> None:
    before = counted(chamber)
    for name, where in (("metadata", "169.254.169.254"), ("link_local", "169.254.7.7"), ("multicast", "224.0.0.251")):
        chamber.ok("exec", chamber.raw, "/probe", "packet", "0.0.0.0", where, "80", "60")
        until(lambda n=name: counted(chamber)[n] > before[n])  # type: ignore[misc]


box_prints(
    "network.no_ipv6", "no IPv6 but the loopback's", "cat /proc/net/if_inet6 2>/dev/null | grep -v ' lo$' | wc -l", "0"
)


@case("network.names", "another container by its name")
def names(chamber: Chamber) -> None:
    with chamber.started() as other:
        where = chamber.address(other)
        until(lambda: where in chamber.exec(script=f"nslookup {other}").stdout.decode())


@case("network.hairpin", "a published port by the host's address: from itself, and from beside")
def hairpin(chamber: Chamber) -> None:
    port = free_port()
    with chamber.started("-p", f"{port}:80", script=SERVE) as name:
        script = f"nc -w 3 {host_address()} {port} </dev/null"
        for where in (name, chamber.box):
            until(lambda n=where: b"hello" in chamber.cm("exec", n, "sh", "-c", script).stdout)  # type: ignore[misc]


@contextlib.contextmanager
def outside(*route: str) -> Iterator[tuple[Callable[[Callable[[], object]], object], str]]:
    """A machine beside this host, led to by *route* (``mtu lock 900``): what runs work inside it, and its address."""
    low = 4 * (os.getpid() % 60) + 1
    name, host, machine = f"cf{os.getpid()}", f"203.0.113.{low}", f"203.0.113.{low + 1}"
    with subprocess.Popen(["unshare", "-n", "sleep", "300"]) as process:
        fd = -1
        try:
            own = os.stat("/proc/self/ns/net").st_ino
            while os.stat(f"/proc/{process.pid}/ns/net").st_ino == own:
                time.sleep(0.01)
            fd = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            inside = f"nsenter -t {process.pid} -n ip"
            for command in (
                f"ip link add {name} type veth peer name eth0 netns {process.pid}",
                f"ip addr add {host}/32 dev {name}", f"ip link set {name} up",
                f"{inside} addr add {machine}/32 dev eth0", f"{inside} link set eth0 up",
                f"{inside} route add {host} dev eth0 src {machine}",
                f"ip route add {machine} dev {name} src {host} {' '.join(route)}",
            ):  # fmt: skip
                subprocess.run(command.split(), check=True, timeout=TIMEOUT_S)
            yield lambda work: asyncio.run(netns.inside(fd, work)), machine
        finally:
            process.kill()
            if fd >= 0:
                os.close(fd)
            subprocess.run(["ip", "link", "del", name], check=False, capture_output=True, timeout=TIMEOUT_S)


@case("network.narrow_path", "a way that is narrower further on: the host says so, and what is sent gets there")
def narrow_path(chamber: Chamber) -> None:
    with outside("mtu", "lock", str(NARROW_BYTES)) as (inside, where):
        server = inside(lambda: socket.create_server((where, 7000)))
        assert isinstance(server, socket.socket)
        with server:
            server.settimeout(TIMEOUT_S)
            script = f"head -c {UPLOAD_BYTES} /dev/zero | nc -w 20 {where} 7000"
            sender = chamber.begin("exec", chamber.box, "sh", "-c", script)
            try:
                connection, peer = server.accept()
                with connection:
                    connection.settimeout(TIMEOUT_S)
                    got = 0
                    while got < UPLOAD_BYTES:
                        data = connection.recv(1 << 20)
                        assert data, f"the end after {got} bytes"
                        got += len(data)
                assert peer[0] != chamber.address(chamber.box), "the host's own address leaves it"
            finally:
                sender.communicate(timeout=TIMEOUT_S)
