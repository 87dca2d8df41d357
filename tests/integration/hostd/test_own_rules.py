"""Rules of the tables of names and of kept connections, replaced by somebody: put right, and told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root
SOURCE = str(Path(__file__).resolve().parents[3] / "src")
INSIDE = r"""
import asyncio, os, pathlib, socket, subprocess, tempfile, time
from casemate.host import nft, nft_netlink
from casemate.hostd.keeping import Keeping
from casemate.hostd.protocol_visibility import ResolverListen
from casemate.hostd.relaying import RelayProcess
from casemate.hostd.state import State
from casemate.hostd.visibility import Visibility
from casemate.network import resolver
from casemate.network.firewall import kept
from casemate.spec.settings import Settings
from casemate.spec.workload import KeptPort, NetworkSpec, PodSpec

NAME = "casetest_o"
settings = Settings({"network.table": NAME, "network.link_prefix": "co-", "network.pool": "198.18.6.0/24"})
library = nft.Nft()
folder = tempfile.TemporaryDirectory()
path, record = pathlib.Path(folder.name, "relay.sock"), pathlib.Path(folder.name, "relay.port")
told = []
emit = lambda event: told.extend(event.what)
keeping = Keeping(settings, State(), lambda: library, nft.Followed(), RelayProcess(path, os.getuid()), emit,
                  record, lambda: True)
names = Visibility(settings, lambda: library, emit)
spec = PodSpec("0" * 64, "p", "p", network=NetworkSpec(address="198.18.6.1", kept=(KeptPort(7000),)))
TABLES = {("inet", kept.table_name(NAME)): ("answer", "see"), ("ip", resolver.table_name(NAME)): ("bound", "lead")}

def run(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

def rules(family, table, chain):
    # Text and handle of each.
    listed = run("nft", "-a", "list", "chain", family, table, chain)
    lines = [line for line in listed.splitlines() if "# handle" in line]
    return [tuple(line.strip().split(" # handle ")) for line in lines[1:]]

def words(place):
    try:
        return [text for text, _ in rules(*place)]
    except subprocess.CalledProcessError:
        return []

async def repaired(place, before, harm):
    del told[:]
    run("nft", harm)
    until = time.monotonic() + 60
    while not told or words(place) != before:
        assert time.monotonic() < until, (told, words(place), before)
        await asyncio.sleep(0.02)
    return told

async def main():
    keeping.put(spec)
    _, sockets = await names.handle(ResolverListen())
    tasks = [asyncio.ensure_future(one.keep()) for one in (keeping, names)]
    for (family, table), chains in TABLES.items():
        for chain in chains:
            place = family, table, chain
            before = words(place)
            handle = rules(*place)[-1][1]
            print(*await repaired(place, before, f"replace rule {family} {table} {chain} handle {handle} accept"))
        print(*await repaired(place, before, f"add rule {family} {table} {chain} accept"))
        print(*await repaired(place, before, f"add chain {family} {table} {chain} {{ policy drop; }}"))
        print(*await repaired(place, before, f"add table {family} {table} {{ flags dormant; }}"))
        print(*await repaired(place, before, f"delete table {family} {table}"))
    # What a rule has counted is no change of it, nor is what somebody changes elsewhere.
    del told[:]
    run("nft", "add table inet other; add chain inet other o { type filter hook output priority 0; };"
               "add rule inet other o udp dport 9 counter")
    table = nft_netlink.NftSocket()
    asked = table.fingerprints("other")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("127.0.0.1", 9))
    assert "packets 1 " in run("nft", "list", "ruleset")
    print("counted", table.fingerprints("other") == asked, all(not one.lost() for one in (keeping, names._names)), told)
    for one in tasks:
        one.cancel()
    for number in sockets:
        os.close(number)
    for harm in ("", f"replace rule inet {kept.table_name(NAME)} see handle {{}} accept", "flush ruleset"):
        await another_life(harm)

async def another_life(harm):
    # While no hostd is there somebody changes a rule that leads to the relay; the next one learns of its pods again.
    place = "inet", kept.table_name(NAME), "see"
    before = words(place)
    if harm:
        run("nft", harm.format(rules(*place)[-1][1]))
    del told[:]
    later = Keeping(settings, State(), lambda: library, nft.Followed(), RelayProcess(path, os.getuid()), emit,
                    record, lambda: heard[0])
    later._read = True
    later._kept["198.18.6.1", 7000] = spec.id
    heard = [False]
    task = asyncio.ensure_future(later.keep())
    until = time.monotonic() + 60
    while words(place) != before or not later._rules.is_known:
        assert time.monotonic() < until, (told, words(place), before)
        await asyncio.sleep(0.02)
    print("before anybody hears", told)
    heard[0] = True
    while bool(told) != bool(harm):
        assert time.monotonic() < until
        await asyncio.sleep(0.02)
    assert not later.lost()
    print("another life", told)
    task.cancel()

subprocess.run("ip link set lo up", shell=True, check=True)
asyncio.run(main())
"""


def test_a_rule_that_somebody_replaced_in_the_smaller_tables_is_put_right() -> None:
    """And one added, a policy that drops, a table that sleeps, one that is gone; what rules count is no change."""
    done = subprocess.run(["unshare", "-n", sys.executable, "-c", INSIDE], env={**os.environ, "PYTHONPATH": SOURCE},
                          capture_output=True, text=True, check=False, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    wanted: list[str] = []
    for table, first, second in (("inet casetest_o_keep", "answer", "see"), ("ip casetest_o_names", "bound", "lead")):
        reasons = (
            f"a rule of chain {first} was changed", f"a rule of chain {second} was changed",
            f"rules of chain {second} were not ours", f"chain {second} dropped", "it slept", "all of it was gone",
        )  # fmt: skip
        wanted += [f"made nftables table {table} again: {reason}" for reason in reasons]
    away = ", while casemate-hostd was away or another version"
    lives = [
        "[]",
        f"['made nftables table inet casetest_o_keep again: a rule of chain see was changed{away}']",
        f"['made nftables table inet casetest_o_keep again: all of it was gone{away}']",
    ]
    wanted += ["counted True True []"]
    for told in lives:
        wanted += ["before anybody hears []", f"another life {told}"]
    assert done.stdout.splitlines() == wanted
