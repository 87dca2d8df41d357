"""What a test may leave behind in the kernel: looked for before and after, within names that are the test's own.

Use: ``from tests.integration.leaks import Scope, scope`` in a ``conftest.py``; a test that takes the fixture
``scope`` gets names of its own and fails when anything bearing them (or any descriptor or child of this process)
is left. Other tests may run on the same host at the same time.
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from casemate.host import nft_netlink, policyroutes
from casemate.host.rtnetlink import RouteSocket
from casemate.network.firewall import kept

#: The kernel takes network namespaces, interfaces and loop devices away in its own time.
_SETTLE_S = 5.0


@dataclass(frozen=True)
class Scope:
    """A test's own folder, and names for what it makes in the kernel."""

    folder: Path
    link_prefix: str
    table: str
    cgroup: str
    pool: str

    @property
    def environment(self) -> dict[str, str]:
        """Settings that keep daemons of this test within the scope."""
        return {
            "CASEMATE_PATHS_STATE": str(self.folder / "state"),
            "CASEMATE_PATHS_HOST_STATE": str(self.folder / "host-state"),
            "CASEMATE_PATHS_RUN": str(self.folder / "run"),
            "CASEMATE_PATHS_HOST_RUN": str(self.folder / "host-run"),
            "CASEMATE_NETWORK_TABLE": self.table,
            "CASEMATE_NETWORK_LINK_PREFIX": self.link_prefix,
            "CASEMATE_NETWORK_POOL": self.pool,
            "CASEMATE_CGROUP_PARENT": self.cgroup,
        }


#: Pools of scopes that may still be in use: one's rules would translate what another's pods send.
_pools: set[str] = set()
_ALL_POOLS = 512


def _new_pool() -> str:
    """A /24 that no other scope of this process has. 198.18.0.0/15 is for tests of networks (RFC 2544): nobody routes
    it."""
    numbers = [one for one in range(_ALL_POOLS) if _pool(one) not in _pools] or range(_ALL_POOLS)
    pool = _pool(random.SystemRandom().choice(numbers))
    _pools.add(pool)
    return pool


def _pool(number: int) -> str:
    return f"198.{18 + (number >> 8)}.{number & 0xFF}.0/24"


def new_scope(folder: Path) -> Scope:
    """Names that no other test has: they follow from this process and the folder."""
    unique = int.from_bytes(os.urandom(2), "big")
    letters = "".join("ghijklmnopqrstuv"[(unique >> shift) & 15] for shift in (0, 4, 8, 12))
    return Scope(folder, f"t{letters}-", f"casetest_{letters}", f"casetest-{letters}", _new_pool())


def left(scope: Scope) -> set[str]:
    """Everything within *scope*, and this process's descriptors and children, a line each."""
    return {
        *_mounts(scope),
        *_loops(scope),
        *_links(scope),
        *_tables(scope),
        *_rules(scope),
        *_cgroups(scope),
        *_own(scope),
    }


def _mounts(scope: Scope) -> Iterator[str]:
    place = f" {scope.folder}"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        if place in line:
            yield f"mount {line.split()[4]}"


def _loops(scope: Scope) -> Iterator[str]:
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            backing = entry.read_text().strip()
            if backing.startswith(f"{scope.folder}/"):
                yield f"loop device {entry.parts[3]} over {backing}"


def _links(scope: Scope) -> Iterator[str]:
    for entry in Path("/sys/class/net").iterdir():
        if entry.name.startswith(scope.link_prefix):
            yield f"interface {entry.name}"


def _tables(scope: Scope) -> Iterator[str]:
    # Not by nft(8), which reads every table of the host first: with many tests' tables that takes seconds.
    for family, name in nft_netlink.tables():
        if name.startswith(scope.table):
            yield f"nft table {family} {name}"
    if shutil.which("iptables") is not None:
        rules = subprocess.run(["iptables", "-w", "10", "-S", "FORWARD"], capture_output=True, check=False, timeout=20)
        if f"casemate:{scope.table}".encode() in rules.stdout:
            yield f"iptables FORWARD rule of {scope.table}"


def _rules(scope: Scope) -> Iterator[str]:
    mark = kept.marks(scope.table).kept
    with RouteSocket() as sock:
        yield from (f"routing rule {mark:#x} {table}" for found, _, table in policyroutes.rules(sock) if found == mark)


def _cgroups(scope: Scope) -> Iterator[str]:
    for place in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")]:
        folder = place / scope.cgroup
        if not place.is_mount():
            continue  # a folder that an engine made beside the hierarchies, and no cgroup
        if folder.is_dir():
            # The parent itself may stay: it is made once for a host.
            yield from (f"cgroup {one}" for one in folder.iterdir() if one.is_dir())


def _own(scope: Scope) -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            yield f"descriptor {name} -> {os.readlink(f'/proc/self/fd/{name}')}"
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            yield from (f"child {pid} {_command(pid)}" for pid in (task / "children").read_text().split())
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and str(scope.folder) in _command(entry.name):
            yield f"process {entry.name} {_command(entry.name)}"


def _command(pid: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")[:300]
    return ""


def clean(scope: Scope) -> None:
    """Take away what of *scope* can be found, so that one failed test does not fail the next."""
    _pools.discard(scope.pool)
    for line in sorted(_mounts(scope), key=len, reverse=True):
        subprocess.run(["umount", "-l", line.removeprefix("mount ")], check=False, capture_output=True, timeout=20)
    for line in _links(scope):
        subprocess.run(["ip", "link", "del", line.split()[1]], check=False, capture_output=True, timeout=20)
    for line in _tables(scope):
        if line.startswith("nft "):
            family, name = line.split()[2:]
            nft_netlink.delete_table(family, name)
    for line in _rules(scope):
        mark, table = line.split()[-2:]
        rule = ["ip", "rule", "del", "fwmark", f"{mark}/0xfffffffe", "table", table]
        subprocess.run(rule, check=False, capture_output=True, timeout=20)
        if int(table) > 255:
            subprocess.run(["ip", "route", "flush", "table", table], check=False, capture_output=True, timeout=20)
    if shutil.which("iptables") is not None:
        listing = subprocess.run(
            ["iptables", "-w", "10", "-S", "FORWARD"], check=False, capture_output=True, timeout=20
        )
        for rule in listing.stdout.decode("utf-8", "replace").splitlines():
            if f"casemate:{scope.table}" in rule:
                argv = ["iptables", "-w", "10", "-D", *shlex.split(rule)[1:]]
                subprocess.run(argv, check=False, capture_output=True, timeout=20)
    for place in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")]:
        for folder in sorted((place / scope.cgroup).rglob("*/"), key=lambda one: -len(one.parts)):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            (place / scope.cgroup).rmdir()


@pytest.fixture
def scope() -> Iterator[Scope]:
    """A scope of the test's own; afterwards nothing of it may be left in the kernel."""
    # Not below /tmp's per-test folders: their mode 0700 would shut out the pods' ids, as no real host's does.
    folder = Path(tempfile.mkdtemp(prefix="casetest-", dir="/var/tmp"))
    folder.chmod(0o755)
    one = new_scope(folder)
    before = left(one)
    try:
        yield one
        deadline = time.monotonic() + _SETTLE_S
        while (leaked := left(one) - before) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not leaked, "left behind:\n" + "\n".join(sorted(leaked))
    finally:
        clean(one)
        subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=False, timeout=60)
