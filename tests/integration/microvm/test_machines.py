"""Machines: clones differ, crashes leave nothing, hostd goes and comes, templates are verified, monitors jailed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import harness
import pytest

from casemate.host import cgroups, hierarchy
from casemate.isolation.microvm import making
from casemate.isolation.microvm.errors import HostdUnreachable

pytestmark = pytest.mark.root


def started(host: harness.Host, name: str, layer: Path, *args: str) -> tuple[subprocess.Popen[bytes], Path]:
    process, folder = harness.conmon(host, name, host.bundle(name, harness.configuration([layer], *args)))
    done = host.vm("start", name)
    assert done.returncode == 0, (done.stderr, (folder / "answer").read_text())
    return process, folder


def qemu_of(host: harness.Host, name: str) -> int:
    """QEMU's pid: the child of the monitor that serves the machine's socket."""
    monitor = monitor_of(host, name)
    return int(Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()[0])


def monitor_of(host: harness.Host, name: str) -> int:
    assert host.machines is not None
    machine = host.machines.get(name)
    assert machine is not None
    return machine.monitor.channel.peer.pid if machine.monitor.child is None else machine.monitor.child.pid


def gone(pid: int, within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_monitor_and_qemu_are_in_the_pods_cgroups(host: harness.Host, base_layer: Path) -> None:
    """In every hierarchy of the host's: QEMU from its beginning, whatever its parent has to wait for."""
    hierarchies = hierarchy.detect()
    path = f"casetest-{os.getpid()}-born"
    hierarchies.create(path)
    try:
        folders = list(hierarchies.folders(path))
        if (unified := Path("/sys/fs/cgroup/unified")).is_dir():
            # Of version 2, which has another way; ours uses it where it is the only one.
            (unified / path).mkdir()
            folders.append(str(unified / path))
        config = harness.configuration([base_layer], "sleep", "1000")
        config["annotations"] |= {"org.casemate.cgroups": ":".join(map(str, folders))}  # type: ignore[operator]
        process, _ = harness.conmon(host, "born", host.bundle("born", config))
        pids = {monitor_of(host, "born"), qemu_of(host, "born")}
        for folder in folders:
            assert pids <= set(map(int, Path(folder, "cgroup.procs").read_text().split())), folder
        assert host.vm("delete", "--force", "born").returncode == 0
        process.wait(30)
        assert all(gone(pid) for pid in pids)
    finally:
        asyncio.run(cgroups.end(hierarchies, path))


RANDOM = (
    "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid; cat /proc/sys/kernel/random/boot_id;"
    " head -n 40 /proc/self/maps | grep -E 'stack|vdso' | cut -d- -f1"
)


def test_two_clones_draw_different_numbers_and_layouts(host: harness.Host, base_layer: Path) -> None:
    script = RANDOM.replace("| cut -d- -f1", "")
    found = []
    for name in ("clone1", "clone2"):
        process, folder = started(host, name, base_layer, "sh", "-c", script)
        process.wait(30)
        found.append([line.split(" ", 3)[3].split()[0] for line in (folder / "log").read_text().splitlines()])
        assert host.vm("delete", name).returncode == 0
    first, second = found
    assert len(first) == len(second) == 5
    same = [index for index, (one, other) in enumerate(zip(first, second, strict=True)) if one == other]
    # The boot id was drawn at the template, if anything drew it; what a process draws and how it is laid out was not.
    assert not set(same) - {2}


def test_the_clock_is_the_hosts(host: harness.Host, base_layer: Path) -> None:
    process, folder = started(host, "clock", base_layer, "date", "+%s")
    process.wait(30)
    seen = int((folder / "log").read_text().split()[-1])
    assert abs(seen - time.time()) < 30
    assert host.vm("delete", "clock").returncode == 0


@pytest.mark.parametrize("victim", ["qemu", "monitor", "waiter"])
def test_what_is_killed_takes_the_rest_with_it(host: harness.Host, base_layer: Path, victim: str) -> None:
    name = f"kill{victim}"
    other, _ = started(host, f"other{victim}", base_layer, "sleep", "1000")
    process, folder = started(host, name, base_layer, "sleep", "1000")
    pids = {
        "qemu": qemu_of(host, name),
        "monitor": monitor_of(host, name),
        "waiter": int((folder / "pid").read_text()),
    }
    os.kill(pids[victim], signal.SIGKILL)
    process.wait(20)
    assert int((folder / "exits" / name).read_text()) == 137
    assert host.vm("delete", "--force", name).returncode == 0
    assert all(gone(pid) for pid in pids.values())
    assert not (host.folder / "vm" / name).exists()
    assert host.state_of(f"other{victim}")["status"] == "running"
    assert host.vm("exec", f"other{victim}", "true").returncode == 0
    assert host.vm("delete", "--force", f"other{victim}").returncode == 0
    other.wait(20)


def test_hostd_goes_and_comes_back(host: harness.Host, base_layer: Path) -> None:
    script = "n=0; while [ $n -lt 30 ]; do echo line $n; n=$((n+1)); sleep 0.1; done; exit 6"
    process, folder = started(host, "stays", base_layer, "sh", "-c", script)
    ended, ended_folder = started(host, "endsmeanwhile", base_layer, "sh", "-c", "sleep 0.7; exit 8")
    host.stop()
    assert host.vm("state", "stays").returncode == 1
    ended.wait(20)
    assert int((ended_folder / "exits/endsmeanwhile").read_text()) == 8
    host.start()
    assert host.state_of("stays")["status"] == "running"
    assert host.vm("exec", "stays", "echo", "again").stdout == "again\n"
    assert host.state_of("endsmeanwhile")["status"] == "stopped"
    process.wait(30)
    assert int((folder / "exits/stays").read_text()) == 6
    assert (folder / "log").read_text().count("line") == 30
    for name in ("stays", "endsmeanwhile"):
        assert host.vm("delete", name).returncode == 0


def begin(host: harness.Host, name: str, bundle: Path, *, had: bool) -> int:
    """Begin a machine as hostd does while conmon starts; its QEMU's pid. *had*: it is asked for, as by casemate-vm."""
    assert host._loop is not None

    async def work() -> int:
        machines = host.machines
        assert machines is not None
        making.begin(machines, name, bundle)
        if had:
            machine = await machines.early.take(name)
        else:
            while (machine := machines.get(name)) is None or not machine.record.qemu_pid:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert machine is not None
        return machine.record.qemu_pid

    return asyncio.run_coroutine_threadsafe(work(), host._loop).result(60)


def test_a_machine_that_was_begun_in_vain_ends(host: harness.Host, base_layer: Path) -> None:
    config = harness.configuration([base_layer], "true")
    config["annotations"] |= {"org.casemate.pod": "begun"}  # type: ignore[operator]
    bundle = host.bundle("begun", config)
    qemu = begin(host, "begun", bundle, had=False)
    assert host.vm("delete", "--force", "begun").returncode == 0
    assert gone(qemu)
    # hostd is killed between the machine and its container.
    qemu = begin(host, "begun", bundle, had=True)
    host.stop()
    host.start()
    assert gone(qemu)
    assert not (host.folder / "vm/begun").exists()


def test_a_damaged_template_is_made_anew(host: harness.Host, base_layer: Path) -> None:
    assert host.machines is not None
    # Other tests of this host may have had others made.
    key = host.machines._recipe(None).key()
    memory = host.state / "templates" / key / "memory"
    before = memory.stat().st_ino
    host.stop()
    memory.chmod(0o600)
    with memory.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"damage")
    host.start()
    process, folder = started(host, "anew", base_layer, "true")
    process.wait(30)
    assert int((folder / "exits/anew").read_text()) == 0
    assert memory.stat().st_ino != before
    assert host.vm("delete", "anew").returncode == 0


def test_the_monitor_and_qemu_hold_no_privilege(host: harness.Host, base_layer: Path) -> None:
    process, _ = started(host, "jailed", base_layer, "sleep", "1000")
    for pid in (monitor_of(host, "jailed"), qemu_of(host, "jailed")):
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        assert int(status["Uid"].split()[0]) >= 999_000_000
        # The machine's 9p server: chown, dac_override, fowner, fsetid, setfcap, in a user namespace of its own.
        allowed = 0 if pid == monitor_of(host, "jailed") else 0x8000001B
        assert {int(status[f"Cap{kind}"], 16) for kind in ("Prm", "Eff", "Inh", "Amb")} == {allowed}
        assert status["NoNewPrivs"] == "1"
    qemu = qemu_of(host, "jailed")
    assert int(status["CapBnd"], 16) == 0x8000001B
    assert "Seccomp:\t2" in Path(f"/proc/{qemu}/status").read_text()
    assert Path(f"/proc/{qemu}/root/usr/bin/env").exists()
    assert sorted(os.listdir(f"/proc/{qemu}/root")) == ["bin", "etc", "lib", "lib64", "proc", "share", "sys", "usr"]
    # Of the host's /sys only how large its huge pages are.
    found = [path for path, _, files in os.walk(f"/proc/{qemu}/root/sys") if files]
    assert all("/sys/kernel/mm/transparent_hugepage" in path for path in found)
    assert os.listdir(f"/proc/{qemu}/root/share") == []
    assert os.listdir(f"/proc/{qemu}/root/etc") == ["ld.so.cache"]
    mounts = Path(f"/proc/{qemu}/mountinfo").read_text().splitlines()
    assert all("ro" in line.split()[5].split(",") or line.split()[4] in ("/proc", "/share") for line in mounts), mounts
    for kind in ("net", "ipc", "uts", "pid", "mnt", "user"):
        assert os.readlink(f"/proc/{qemu}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    command = ["nsenter", "-t", str(qemu), "-n", "ip", "-o", "link"]
    links = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split(": ")[1] for line in links.stdout.splitlines()] == ["lo"]
    # What is open is the machine's own: memory, state, layer, sockets; nothing of the host's tree.
    opened = {os.readlink(f"/proc/{qemu}/fd/{number}") for number in os.listdir(f"/proc/{qemu}/fd")}
    files = {name for name in opened if name.startswith("/") and not name.startswith("/memfd:")}
    assert files <= {"/dev/null", "/dev/net/tun", "/share", str(base_layer)}
    assert host.vm("delete", "--force", "jailed").returncode == 0
    process.wait(20)


def test_the_template_cannot_be_written_by_a_clone(host: harness.Host, base_layer: Path) -> None:
    process, _ = started(host, "sealed", base_layer, "sleep", "1000")
    qemu = qemu_of(host, "sealed")
    (number,) = [one for one in os.listdir(f"/proc/{qemu}/fd") if _is_template(f"/proc/{qemu}/fd/{one}")][:1]
    opened = os.open(f"/proc/{qemu}/fd/{number}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.pwrite(opened, b"x", 0)
    os.close(opened)
    assert host.vm("delete", "--force", "sealed").returncode == 0
    process.wait(20)


def _is_template(path: str) -> bool:
    return os.readlink(path).startswith("/memfd:casemate-template") and os.stat(path).st_size >= 128 << 20


ROOT_ROW = {"containerID": 0, "hostID": 0, "size": 65_536}


def test_what_a_bundle_asks_in_vain_is_refused_and_leaves_nothing(host: harness.Host, base_layer: Path) -> None:
    cases = {
        "unknown mount type": {"mounts": [{"destination": "/x", "type": "nfs", "source": "a:/b"}]},
        "a socket of the host": {
            "mounts": [{"destination": "/x", "type": "bind", "source": str(host.socket), "options": ["bind"]}]
        },
        "neither layers nor a root": {"annotations": {}},
        "ids that make root of the host": {"linux": {"uidMappings": [ROOT_ROW], "gidMappings": [ROOT_ROW]}},
        "a hook inside by no whole path": {"hooks": {"startContainer": [{"path": "bin/true"}]}},
        "a hook inside the container's namespaces that fails": {"hooks": {"createContainer": [{"path": "/bin/false"}]}},
        "a hook that fails": {"hooks": {"createRuntime": [{"path": "/bin/false"}]}},
        "a hook that is not there": {"hooks": {"prestart": [{"path": "/nowhere"}]}},
        "the host's network": {"linux": {"namespaces": [{"type": "pid"}]}},
        "the host's network by its path": {"linux": {"namespaces": [{"type": "network", "path": "/proc/1/ns/net"}]}},
        "a layer that is not there": {"annotations": {"org.casemate.layers": "/nowhere.sqfs"}},
        "a layer that is none": {"annotations": {"org.casemate.layers": "/etc/services"}},
    }
    for index, (what, change) in enumerate(cases.items()):
        name = f"vain{index}"
        config = harness.configuration([base_layer], "true") | change
        done = host.vm("create", "--bundle", str(host.bundle(name, config)), name, stdin=subprocess.DEVNULL)
        assert done.returncode == 1, what
        assert done.stderr.startswith("casemate-vm: "), what
        assert not (host.folder / "vm" / name).exists(), what
    assert not json.loads(host.vm("list", "--format", "json").stdout)


def test_machines_that_start_together_are_apart(host: harness.Host, base_layer: Path) -> None:
    bundle = host.bundle("together", harness.configuration([base_layer], "sleep", "1000"))
    command = [str(host.shim), "--socket", str(host.socket), "create", "--bundle", str(bundle)]
    null = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    many = [subprocess.Popen([*command, f"together{index}"], **null) for index in range(2)]  # type: ignore[call-overload]
    assert [one.wait(60) for one in many] == [0, 0]
    assert host.machines is not None
    uids = {machine.record.uid for machine in host.machines.all()}
    assert len(uids) == len(many)
    for index in range(2):
        assert host.vm("delete", "--force", f"together{index}").returncode == 0


def test_no_hostd_is_a_clear_error(host: harness.Host) -> None:
    done = subprocess.run(
        [host.shim, "--socket", "/nowhere/vm.sock", "state", "x"],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert done.returncode == 1
    assert "is casemate-hostd running? `systemctl start casemate-hostd`" in done.stderr
    assert HostdUnreachable.code in done.stderr
    assert "microvm.hostd_unreachable" in done.stderr


def test_nothing_is_left_at_the_end(host: harness.Host) -> None:
    assert shutil.which("qemu-system-x86_64")
    assert list((host.folder / "vm").iterdir()) == []
    assert host.machines is not None
    assert host.machines.all() == []
