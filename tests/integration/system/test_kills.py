"""Both daemons killed while containers run; the host rebooted; what a crash left is named and removed.

What a killed casemated alone, or hostd alone, does to attached clients and records is in
tests/integration/api/test_crash.py, and each step of hostd's journal in tests/integration/hostd/test_recovery.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
from tests.integration.leaks import _links, _mounts
from tests.integration.system.site import COUNTING, IMAGE, Canary, Site, settle, traces
from tests.integration.system.test_network import SERVE, ask, free_port
from tests.integration.trees import entry, make_tar

pytestmark = pytest.mark.root
SETTINGS: dict[str, str] = {}

BOTH = ("casemated", "casemate-hostd")


def test_neither_containers_nor_execs_notice_and_the_books_are_right(site: Site) -> None:
    """Three rounds of killing both at once, with output flowing, an exec open, and containers that end meanwhile."""
    for turn in range(3):
        ender, after, gone = f"ender{turn}", f"after{turn}", f"gone{turn}"
        site("run", "-d", "--name", ender, IMAGE, "sh", "-c", "sleep 0.6; echo done; exit 7")
        site("run", "-d", "--name", after, IMAGE, "sh", "-c", "sleep 3; exit 8")
        site("run", "-d", "--name", gone, "--rm", IMAGE, "sh", "-c", "sleep 0.6")
        site("exec", "-d", Canary.NAME, "sh", "-c", f"for i in 1 2 3 4 5 6; do echo $i >> /exec{turn}; sleep 0.3; done")
        open_exec = subprocess.Popen(
            site.argv("exec", "-i", Canary.NAME, "cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=site.environment,
        )  # fmt: skip
        assert open_exec.stdin is not None
        assert open_exec.stdout is not None
        open_exec.stdin.write(b"before\n")
        open_exec.stdin.flush()
        assert open_exec.stdout.readline() == b"before\n"
        for name in BOTH if turn % 2 else reversed(BOTH):
            site.daemons.kill(name)
        time.sleep(1)
        site.daemons.start()
        # ps, wait, logs and inspect, of those that ended meanwhile and of those that go on.
        assert site("wait", ender).stdout == b"7\n"
        assert site("logs", ender).stdout == b"done\n"
        assert b"Exited (7)" in site("ps", "-a", "-f", f"name={ender}").stdout
        finished = site("inspect", "-f", "{{.State.FinishedAt}}", ender).stdout.decode()
        assert finished.startswith(time.strftime("%Y-%m-", time.gmtime())), finished
        assert site("wait", after).stdout == b"8\n"
        assert settle(lambda gone=gone: gone.encode() not in site("ps", "-a").stdout), "--rm holds over a kill"
        assert settle(lambda turn=turn: site("exec", Canary.NAME, "cat", f"/exec{turn}").stdout.split()[-1:] == [b"6"])
        open_exec.communicate(timeout=10)
        assert open_exec.returncode in (0, 125)
        assert site("rm", ender, after).returncode == 0


@pytest.mark.usefixtures("nothing_made")
def test_a_client_that_is_killed_leaves_nothing(site: Site) -> None:
    process = subprocess.Popen(site.argv("run", "--rm", "-i", IMAGE, "cat"), stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, env=site.environment)  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"x\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"x\n"
    process.kill()
    process.communicate()


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_killed_in_the_middle_of_a_run_it_converges(site: Site, delay_s: float) -> None:
    """Wherever both are hit, afterwards the container is there or not, can be removed, and nothing is left over."""
    name = f"middle{int(delay_s * 1000)}"
    before = traces(site)
    process = subprocess.Popen(
        site.argv("run", "-d", "--name", name, IMAGE, "sleep", "1000"), env=site.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(0.05 + delay_s)
    for victim in BOTH:
        site.daemons.kill(victim)
    process.wait(20)
    site.daemons.start()
    time.sleep(0.3)
    site("rm", "-f", name)
    assert settle(lambda: traces(site) == before), traces(site) ^ before
    leftovers = json.loads(site("system", "prune", "--left-overs", "--dry-run", "--json").stdout)
    assert not leftovers["removed"], leftovers


def test_published_ports_follow_what_runs(site: Site) -> None:
    """A container that ended while nobody looked has its port no more; one that runs is reached as before."""
    ports = {name: free_port() for name in ("p-stays", "p-ends")}
    for name, script in (("p-stays", SERVE), ("p-ends", "sleep 1")):
        done = site("run", "-d", "--name", name, "-p", f"{ports[name]}:80", IMAGE, "sh", "-c", script)
        assert done.returncode == 0, done.stderr
    for victim in BOTH:
        site.daemons.kill(victim)
    time.sleep(1.5)
    site.daemons.start()
    assert settle(lambda: ask([], "127.0.0.1", ports["p-stays"]) == b"hello\n")
    assert site("wait", "p-ends").returncode == 0
    rules = subprocess.run(["nft", "list", "table", "ip", site.daemons.scope.table], capture_output=True, check=True)
    assert str(ports["p-stays"]).encode() in rules.stdout
    assert str(ports["p-ends"]).encode() not in rules.stdout
    assert site("rm", "-f", *ports).returncode == 0


def _conmon_and_children(site: Site, ids: list[str]) -> set[int]:
    """What a reboot ends of these containers: their conmons and all processes of their cgroups."""
    found = set()
    for entry_ in Path("/proc").iterdir():
        if entry_.name.isdigit():
            try:
                line = (entry_ / "cmdline").read_bytes().decode(errors="replace")
                cgroup = (entry_ / "cgroup").read_text()
            except OSError:
                continue
            if (site.daemons.scope.cgroup in cgroup and any(one in cgroup for one in ids)) or (
                "conmon" in line and any(one in line for one in ids)
            ):
                found.add(int(entry_.name))
    return found


def test_a_reboot(site: Site) -> None:
    """State says running, nothing runs, another boot id: the restart policies say who comes back."""
    canary = site.inspect(Canary.NAME)["Id"]
    policies = {"r-no": "no", "r-always": "always", "r-unless": "unless-stopped", "r-failure": "on-failure",
                "r-stopped": "unless-stopped", "r-alwaysstopped": "always"}  # fmt: skip
    ids = {}
    for name, policy in policies.items():
        script = "echo $(cat /kept 2>/dev/null)start >> /kept; exec sleep 1000"
        done = site("run", "-d", "--name", name, "--restart", policy, IMAGE, "sh", "-c", script)
        assert done.returncode == 0, done.stderr
        ids[name] = done.stdout.decode().strip()
    assert site("stop", "-t", "0", "r-stopped", "r-alwaysstopped").returncode == 0
    for victim in BOTH:
        site.daemons.kill(victim)
    for pid in _conmon_and_children(site, list(ids.values())):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    # The mounts and namespaces of these pods are gone with the kernel that held them.
    run = site.folder / "host-run"
    pods = {record.parent.name: msgspec.json.decode(record.read_bytes())
            for record in site.folder.glob("host-state/pods/*/pod.json")}  # fmt: skip
    for pod in pods:
        children = {path.name for path in (site.folder / "host-state/pods" / pod).iterdir() if path.is_dir()}
        if canary in children:
            continue
        for line in sorted(_mounts(site.daemons.scope), key=len, reverse=True):
            path = line.removeprefix("mount ")
            if pod in path or any(child in path for child in children):
                subprocess.run(["umount", "-l", path], check=False, capture_output=True)
        for child in children:
            subprocess.run(["rm", "-rf", str(run / "c" / child), str(run / "runtime" / child),
                            str(run / "exits" / child)], check=True)  # fmt: skip
        subprocess.run(["rm", "-rf", str(run / "netns" / pod), str(run / "ns" / pod)], check=True)
        for record in (site.folder / "host-state/pods" / pod).rglob("*.json"):
            value = msgspec.json.decode(record.read_bytes())
            record.write_bytes(msgspec.json.encode(value | {"boot_id": "another"}))
    for interface in [line.split()[1] for line in _links(site.daemons.scope)]:
        theirs = [pod for pod in pods if interface.endswith(pod[:8])]
        if not any((site.folder / "host-state/pods" / pod / str(canary)).exists() for pod in theirs):
            subprocess.run(["ip", "link", "del", interface], check=False, capture_output=True)
    subprocess.run(
        ["/usr/bin/python3", "-c", "import sqlite3, sys; d = sqlite3.connect(sys.argv[1]); "
         "d.execute(\"UPDATE facts SET value='another' WHERE name LIKE '%boot%'\"); d.commit()",
         str(site.folder / "state/casemate.db")], check=True,
    )  # fmt: skip
    site.daemons.start()

    def running() -> set[str]:
        rows = site("ps", "--format", "{{.Names}}").stdout.decode().split()
        return {name for name in rows if name.startswith("r-")}

    expected = {"r-always", "r-unless", "r-failure", "r-alwaysstopped"}
    assert settle(lambda: running() == expected, 20), running()
    kept = settle(lambda: site("exec", "r-always", "cat", "/kept").stdout == b"start\nstartstart\n")
    assert kept, "files are kept over a reboot: " + str(site("exec", "r-always", "cat", "/kept"))
    ended = site.inspect("r-no")
    assert ended["State"]["Status"] == "exited"  # type: ignore[index]
    assert ended["State"]["ExitCode"] == 255  # type: ignore[index]
    assert site("rm", "-f", *policies).returncode == 0


def test_each_kind_of_leftover_is_named_and_removed(site: Site) -> None:
    """Made by hand under our names: the doctor names each with its remedy, prune removes it, and only it."""
    scope, pod, container = site.daemons.scope, "ab" * 32, "cd" * 32
    run, state = site.folder / "host-run", site.folder / "host-state"
    before = traces(site)
    parent = next(path for path in (Path("/sys/fs/cgroup"), *sorted(Path("/sys/fs/cgroup").glob("*/")))
                  if (path / scope.cgroup).is_dir())  # fmt: skip
    (parent / scope.cgroup / pod).mkdir()
    (run / "c" / container / "rootfs").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(run / "c" / container / "rootfs")], check=True)
    (run / "netns").mkdir(exist_ok=True)
    (run / "netns" / pod).touch()
    subprocess.run(["unshare", "--net", "mount", "--bind", "/proc/self/ns/net", str(run / "netns" / pod)], check=False)
    subprocess.run(["ip", "link", "add", f"{scope.link_prefix}{pod[:8]}", "type", "veth", "peer", "name",
                    f"{scope.link_prefix}{'cd' * 4}"], check=True)  # fmt: skip
    (state / "pods" / pod).mkdir()
    (state / "pods" / pod / "pod.json").write_bytes(b"{ cut off")
    (run / "exits" / container).write_text("0")
    image = state / "layers" / f"{'ef' * 32}.sqfs"
    subprocess.run(["tar2sqfs", "-q", "-f", str(image)], input=make_tar([entry("x", b"y")]), check=True)
    device = subprocess.run(["losetup", "--show", "-r", "-f", str(image)], capture_output=True, text=True, check=True)
    try:
        done = site("system", "doctor", "--json")
        answer = json.loads(done.stdout)
        found = {row["check"]: row for row in answer["findings"] if row.get("left_over")}
        wanted = {"mount", "network namespace", "cgroup", "interface", "bundle", "exit file", "loop device"}
        assert wanted <= set(found), set(found)
        assert any("pod folder" in check for check in found), set(found)
        assert all("prune" in row["remedy"] for row in found.values())
        listed = json.loads(site("system", "prune", "--left-overs", "--dry-run", "--json").stdout)["removed"]
        assert len(listed) >= len(wanted)
        assert (run / "c" / container).exists(), "a dry run removes nothing"
        done = site("system", "prune", "--left-overs")
        assert done.returncode == 0, done.stderr
        assert settle(lambda: traces(site) <= before), traces(site) - before
        again = json.loads(site("system", "prune", "--left-overs", "--dry-run", "--json").stdout)["removed"]
        assert not again, again
    finally:
        subprocess.run(["losetup", "-d", device.stdout.strip()], check=False, capture_output=True)
        image.unlink(missing_ok=True)


def test_a_process_that_nobody_owns_is_named_and_ended(site: Site) -> None:
    """A container whose record is lost: its conmon and processes are found, named, and ended by prune alone."""
    done = site("run", "-d", "--name", "lost", IMAGE, "sh", "-c", COUNTING)
    id_ = done.stdout.decode().strip()
    pid = site.daemons.client.inspect("lost").pid
    for victim in BOTH:
        site.daemons.kill(victim)
    [folder] = site.folder.glob(f"host-state/pods/*/{id_}")
    subprocess.run(["rm", "-rf", str(folder.parent)], check=True)
    site.daemons.start()
    assert Path(f"/proc/{pid}").exists(), "what is not known to be garbage is never killed"
    found = json.loads(site("system", "doctor", "--json").stdout)["findings"]
    assert any(row["check"] == "process" and row.get("left_over") for row in found)
    assert site("system", "prune", "--left-overs").returncode == 0
    assert settle(lambda: not Path(f"/proc/{pid}").exists())
    site("system", "prune", "--left-overs")
    assert site("rm", "-f", "lost").returncode == 0
