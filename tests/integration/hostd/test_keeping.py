"""What hostd does for kept ports: its table and routing rule, made whole and taken away; and whom it connects for.

In a network namespace of the test's own. What the relay may not have is listed in :data:`INSIDE`: a message of another
length, none or two descriptors, thanks for what was not given, a file, a datagram socket, a unix one, connections that
no listener of ours accepted, and one that another namespace's root has made up, with the right mark and the right
addresses.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root
SOURCE = str(Path(__file__).resolve().parents[3] / "src")
INSIDE = r"""
import array, asyncio, errno, os, pathlib, socket, subprocess, tempfile, threading
from casemate.host import nft, nft_netlink, policyroutes, seqpacket
from casemate.host.rtnetlink import RouteSocket
from casemate.host.syscalls import libc_function
from casemate.hostd.keeping import Keeping
from casemate.hostd.protocol_keeping import GIVEN_LISTENER, RELAY_ANSWER, RELAY_REQUEST
from casemate.hostd.relaying import RelayProcess
from casemate.hostd.state import State
from casemate.network.firewall import kept
from casemate.spec.settings import Settings
from casemate.spec.workload import KeptPort, NetworkSpec, PodSpec

ADDRESS, PORT = "198.18.5.1", 7000
def sh(text): subprocess.run(text, shell=True, check=True)
sh("ip link set lo up")
settings = Settings({"network.table": "casetest_k", "network.link_prefix": "ck-", "network.pool": "198.18.5.0/24"})
library = nft.Nft()
folder = tempfile.TemporaryDirectory()
path = pathlib.Path(folder.name, "relay.sock")
k = Keeping(settings, State(), lambda: library, nft.Followed(), RelayProcess(path, os.getuid()), lambda event: None,
            pathlib.Path(folder.name, "relay.port"), lambda: True)
mark = kept.marks("casetest_k")
spec = PodSpec("0" * 64, "p", "p", network=NetworkSpec(address=ADDRESS, kept=(KeptPort(PORT), KeptPort(7001))))

def there():
    with RouteSocket() as sock:
        rule = sorted(table for _, _, table in policyroutes.rules(sock)) == [254, kept.routing_table("casetest_k")]
    found = nft_netlink.rules(k.name, nft_netlink.INET)
    listed = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    return rule, found == kept.RULES, f"{ADDRESS} . {PORT}" in listed

def connection(to=("127.0.0.1", 0), own=None, number=None):
    server = socket.create_server(to)
    one = socket.socket()
    if number is not None:
        one.setsockopt(socket.SOL_SOCKET, 36, number)
    if own:
        one.bind(own)
    one.connect(server.getsockname())
    server.close()
    return one

def elsewhere():
    made = []
    def work():
        libc_function("unshare")(0x40000000)
        sh(f"ip link set lo up; ip addr add {ADDRESS}/32 dev lo")
        made.append(connection((ADDRESS, 0), (ADDRESS, PORT), mark.down))
    thread = threading.Thread(target=work); thread.start(); thread.join()
    return made[0]

def asked(channel, data, fds):
    sent = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [one.fileno() for one in fds]))] if fds else []
    channel.sendmsg([data], sent)

async def answered(channel):
    try:
        data = await asyncio.get_running_loop().sock_recv(channel, 64)
    except ConnectionResetError:
        data = b""
    return RELAY_ANSWER.unpack(data) if data else "closed"

def met(door):
    # What a relay has of hostd: its listener and its channel.
    k.relay.hang_up()
    assert k.relay.reach()
    channel, _ = door.accept()
    data, [(_, _, content)], _, _ = channel.recvmsg(64, socket.CMSG_SPACE(4))
    assert RELAY_ANSWER.unpack(data) == (0, GIVEN_LISTENER)
    channel.setblocking(False)
    return socket.socket(fileno=array.array("i", content)[0]), channel

def told():
    return [one.severity for one in k.findings()]

async def main():
    k.put(spec)
    print("made", there(), told())
    keeper = asyncio.ensure_future(k.keep())
    for harm in ("nft flush ruleset", f"ip rule del table {kept.routing_table('casetest_k')}",
                 "ip rule del iif lo table main"):
        sh(harm)
        for _ in range(100):
            await asyncio.sleep(0.05)
            if all(there()):
                break
        print("again", there())
    keeper.cancel()
    door = seqpacket.listen(path)
    before = len(os.listdir("/proc/self/fd"))
    for name, data, make in (
        ("short", b"abc", lambda: [connection()]), ("long", bytes(8), lambda: [connection()]),
        ("none", RELAY_REQUEST.pack(1), lambda: []), ("took nothing", RELAY_REQUEST.pack(0), lambda: []),
        ("two", RELAY_REQUEST.pack(1), lambda: [connection(), connection()]),
    ):
        listener, channel = met(door)
        fds = make()
        asked(channel, data, fds)
        print(name, await answered(channel))
        for one in (*fds, listener, channel):
            one.close()
    listener, channel = met(door)
    print("reached", told())
    print("listens at", listener.getsockname()[0], listener.getsockopt(socket.SOL_SOCKET, 36) == mark.down)
    cases = (
        ("file", lambda: open("/dev/null")), ("datagrams", lambda: socket.socket(type=socket.SOCK_DGRAM)),
        ("unix", lambda: socket.socket(socket.AF_UNIX)), ("alone", socket.socket),
        ("six", lambda: socket.socket(socket.AF_INET6)),
        ("unmarked", connection), ("marked", lambda: connection(number=mark.down)), ("elsewhere", elsewhere),
        ("listener", lambda: listener.dup()),
    )
    for number, (name, make) in enumerate(cases, 1):
        with make() as one:
            asked(channel, RELAY_REQUEST.pack(number), [one])
            at, why = await answered(channel)
        print(name, at == number, errno.errorcode.get(why, why))
    listener.close(); channel.close(); k.relay.hang_up()
    print("left", len(os.listdir("/proc/self/fd")) - before)
    k.take(spec)
    print("gone", there(), told())

asyncio.run(main())
"""


def test_the_table_and_whom_it_connects_for() -> None:
    done = subprocess.run(["unshare", "-n", sys.executable, "-c", INSIDE], env={**os.environ, "PYTHONPATH": SOURCE},
                          capture_output=True, text=True, check=False, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    refused = [f"{name} True EPERM" for name in ("datagrams", "unix", "alone", "six", "unmarked", "marked")]
    assert done.stdout.splitlines() == [
        "made (True, True, True) ['warning']", *["again (True, True, True)"] * 3,
        "short closed", "long closed", "none closed", "took nothing closed", "two closed",
        "reached ['ok']", "listens at 192.0.0.8 True",
        "file True ENOTSOCK", *refused, "elsewhere True EPERM", "listener True EPERM",
        "left 0", "gone (False, False, False) []",
    ]  # fmt: skip
