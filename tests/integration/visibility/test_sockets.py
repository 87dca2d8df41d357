"""The sockets that hostd opens: who holds them sees the pods' connections, nobody else's, and can ask for nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from casemate.host import nft
from casemate.hostd.errors import Watched
from casemate.hostd.protocol_visibility import FlowsWatch
from casemate.hostd.visibility import Visibility
from casemate.spec.settings import Settings

pytestmark = pytest.mark.root
SOURCE = str(Path(__file__).resolve().parents[3] / "src")
INSIDE = """
import ipaddress, socket, subprocess
from casemate.host import flowsockets
subprocess.run("ip link set lo up; for a in 198.18.5.2/32 198.19.5.2/32 fd00:5::2/128 fd00:6::2/128; do ip addr add $a"
               " dev lo; done; nft add table inet x; nft 'add chain inet x c { type filter hook output priority 0; }';"
               " nft add rule inet x c ct state new counter", shell=True, check=True)
events = flowsockets.connection_events(["198.18.5.0/24", "fd00:5::/64"])
events.settimeout(0.5)
for source, target, port in (("198.19.5.2", "198.19.5.2", 1), ("198.18.5.2", "198.19.5.2", 2), ("198.19.5.2",
        "198.18.5.2", 3), ("fd00:6::2", "fd00:6::2", 4), ("fd00:5::2", "fd00:6::2", 5)):
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        sock.sendto(b"x", (target, port))
from casemate.node.flows import conntrack
seen = []
try:
    while True:
        seen.append(conntrack.parse(events.recv(8192)).original.port)
except TimeoutError:
    print(*seen)
try:
    events.setsockopt(socket.SOL_SOCKET, 27, 0)  # SO_DETACH_FILTER
except OSError as error:
    print(error.errno)
"""


def test_the_filter_lets_the_pods_connections_through_and_stays() -> None:
    done = subprocess.run(["unshare", "-n", sys.executable, "-c", INSIDE], env={**os.environ, "PYTHONPATH": SOURCE},
                          capture_output=True, text=True, check=True, timeout=30)  # fmt: skip
    assert done.stdout.split() == ["2", "3", "5", str(errno.EPERM)]


def test_a_log_group_has_one_reader_and_its_holder_no_rights() -> None:
    settings = Settings({"network.table": f"casetest_watch{os.getpid()}", "network.link_prefix": "twatch-"})
    library = nft.Nft()
    visibility = Visibility(settings, lambda: library, lambda event: None)

    async def body() -> None:
        _, sockets = await visibility.handle(FlowsWatch())
        try:
            with pytest.raises(Watched):
                await visibility.handle(FlowsWatch())
            command = struct.pack("=IHHII", 20, 1 << 8 | 2, 1 | 4, 1, 0) + struct.pack("!BBH", 2, 0, 0)
            code = (
                "import os, socket, sys; os.setuid(65534)\n"
                "s = socket.socket(fileno=int(sys.argv[1])); s.settimeout(5)\n"
                "s.send(bytes.fromhex(sys.argv[2]))\n"
                "while True:\n    d = s.recv(8192)\n    if d[4:6] == b'\\2\\0': break\n"
                "print(int.from_bytes(d[16:20], 'little', signed=True))"
            )
            # "Forget every connection", sent by somebody without privilege through the socket that root opened.
            done = subprocess.run([sys.executable, "-c", code, str(sockets[1]), command.hex()], pass_fds=sockets[1:2],  # noqa: ASYNC221
                                  capture_output=True, text=True, check=False, timeout=20)  # fmt: skip
            assert done.stdout.strip() == str(-errno.EPERM), done
        finally:
            for number in sockets:
                socket.socket(fileno=number).close()

    try:
        asyncio.run(body())
    finally:
        library.close()
