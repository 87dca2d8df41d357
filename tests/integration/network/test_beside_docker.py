"""Beside an iptables FORWARD chain that drops (Docker's, ufw's): packets of pods pass, and no rule of theirs changes.

In namespaces of the test's own, so that the host's FORWARD stays as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root
SOURCE = str(Path(__file__).resolve().parents[3] / "src")
INSIDE = r"""
import asyncio, os, socket, subprocess, sys
from pathlib import Path
from casemate.host import netns, rtnetlink
from casemate.network import links, nat
from casemate.network.plan import pod_link

def sh(text): return subprocess.run(text, shell=True, check=True, capture_output=True, text=True).stdout
def inside(link, work):
    number = rtnetlink.open_netns(link.pin)
    try: return asyncio.run(netns.inside(number, work))
    finally: os.close(number)
def theirs(): return sh("iptables -w 10 -S | grep -v casemate:")
sh("ip link set lo up; sysctl -qw net.ipv4.ip_forward=1")
sh("iptables -w 10 -P FORWARD DROP; iptables -w 10 -N DOCKER-USER; iptables -w 10 -A FORWARD -j DOCKER-USER")
sh("iptables -w 10 -A FORWARD -i docker0 -j ACCEPT; iptables -w 10 -A DOCKER-USER -j RETURN")
before = theirs()
some = nat.Nat("casetest_bd", "bd-", "198.18.6.0/24")
pods = [
    pod_link(f"{n:08x}" + "0" * 56, f"198.18.6.{n}", prefix="bd-", pool="198.18.6.0/24",
             netns_folder=Path(sys.argv[1]), mtu_bytes=1400, ports=())
    for n in (5, 6)
]
for one in pods:
    asyncio.run(links.apply(one))
    some.publish(one)
server = inside(pods[1], lambda: socket.create_server(("0.0.0.0", 7000)))

def passes(patience_s):
    def work():
        with socket.socket() as one:
            one.settimeout(patience_s)
            try: one.connect((pods[1].address, 7000))
            except TimeoutError: return False
            return True
    return inside(pods[0], work)

print("without", passes(0.5))
print("told", any("FORWARD" in line for line in asyncio.run(some.ensure(pods))))
print("with", passes(30), theirs() == before)
print("twice", asyncio.run(some.ensure(pods)), theirs() == before)
# As dockerd does when it starts, and firewalld when it reloads.
sh("iptables -w 10 -F FORWARD; iptables -w 10 -A FORWARD -j DOCKER-USER")
sh("iptables -w 10 -A FORWARD -i docker0 -j ACCEPT")
print("noticed", not some.is_as_left(), passes(0.5))
asyncio.run(some.ensure(pods))
print("again", passes(30), theirs() == before)
asyncio.run(some.remove())
print("removed", "casemate" in sh("iptables -w 10 -S"), theirs() == before)
"""


def test_beside_a_forward_chain_that_drops(tmp_path: Path) -> None:
    if shutil.which("iptables") is None:
        pytest.skip("missing: iptables")
    command = ["unshare", "-n", "-m", sys.executable, "-c", INSIDE, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": SOURCE}, capture_output=True, text=True,
                          check=False, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "without False", "told True", "with True True", "twice [] True", "noticed True False", "again True True",
        "removed False True",
    ]  # fmt: skip
