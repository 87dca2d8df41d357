"""The level ``microvm`` from the command line to the guest's kernel and back, through both daemons.

What a container can do is compared level by level in tests/conformance; here stands what is this level's own.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.integration.daemons import Daemons
from tests.integration.levels.conftest import Run

pytestmark = pytest.mark.root
MICROVM = ("--isolation", "microvm")


def until(check: Callable[[], object], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, check
        time.sleep(0.05)


def machines(pair: Daemons) -> list[str]:
    return sorted(one.name for one in (pair.scope.folder / "host-run/vm").iterdir() if not one.name.startswith("+"))


def monitor_of(pair: Daemons, machine: str) -> int:
    record = json.loads((pair.scope.folder / f"host-run/vm/{machine}/machine.json").read_text())
    return int(record["pid"])


def problem(done: subprocess.CompletedProcess[str]) -> str:
    """The code of the error that a command with --json answered."""
    return str(json.loads(done.stderr.strip().splitlines()[-1]).get("code", "")) if done.stderr.strip() else ""


@contextmanager
def container(vm: Run, name: str, *words: str) -> Iterator[str]:
    done = vm("run", "-d", "--name", name, *MICROVM, *words)
    assert done.returncode == 0, done.stderr
    try:
        yield name
    finally:
        vm("rm", "-f", "-v", name)


def test_without_a_kernel_the_remedy_is_named(pair: Daemons, cm: Run) -> None:
    done = cm("run", "--rm", *MICROVM, "busybox", "true")
    assert done.returncode == 125
    assert "casemate system kernel install" in done.stderr
    assert machines(pair) == []


def test_a_file_that_is_no_kernel_is_refused(cm: Run, tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_bytes(b"no package")
    done = cm("system", "kernel", "install", "-q", str(tmp_path / "x.deb"))
    assert done.returncode == 125
    assert "no whole Debian package" in done.stderr
    done = cm("system", "kernel", "use", "9.9")
    assert "is not installed" in done.stderr


def test_a_disk_that_is_full_when_the_template_is_written(pair: Daemons, vm: Run) -> None:
    folder = pair.scope.folder / "host-state/templates"
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "full", str(folder)], check=True)
    try:
        done = vm("run", "--rm", *MICROVM, "busybox", "true")
        assert done.returncode == 125
        assert "template" in done.stderr
        assert "No space" in done.stderr
        # Besides what every template is made with: the lock, and the layer of the container that is rehearsed.
        assert not [one for one in folder.iterdir() if one.name != "lock" and not one.match("warm*.sqfs")]
        assert machines(pair) == []
        assert vm("ps", "-aq").stdout == ""
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_run_and_what_it_says_of_the_machine(pair: Daemons, vm: Run) -> None:
    done = vm("run", "--rm", *MICROVM, "busybox", "sh", "-c", "uname -r; exit 7")
    assert done.returncode == 7, done.stderr
    kernel = json.loads(vm("system", "kernel", "ls", "--json").stdout)["kernels"][0]
    assert kernel["chosen"]
    assert done.stdout.strip() == kernel["version"]
    level = vm("system", "info", "--format", '{{index .levels "microvm"}}').stdout
    assert f"guest kernel {kernel['version']}" in level
    if "emulated" in level:
        assert "emulated (TCG)" in done.stderr
    until(lambda: machines(pair) == [])


def test_a_machine_ends_with_its_container_and_keeps_what_was_written(pair: Daemons, vm: Run, tmp_path: Path) -> None:
    script = "echo kept >/root/kept; rm /etc/group; mkdir /made; sleep 100000"
    with container(vm, "keeps", "busybox", "sh", "-c", script):
        until(lambda: vm("exec", "keeps", "test", "-d", "/made").returncode == 0)
        running = set(vm("diff", "keeps").stdout.splitlines())
        assert {"A /root/kept", "D /etc/group", "A /made"} <= running
        assert vm("stop", "-t", "0", "keeps").returncode == 0
        until(lambda: machines(pair) == [])
        # Its files are there without it: through a machine that is made for the copy.
        assert set(vm("diff", "keeps").stdout.splitlines()) == running
        assert vm("cp", "keeps:/root/kept", str(tmp_path / "out")).returncode == 0
        assert (tmp_path / "out").read_text() == "kept\n"
        assert vm("cp", str(tmp_path / "out"), "keeps:/root/in").returncode == 0
        assert machines(pair) == []
        assert vm("start", "keeps").returncode == 0
        done = vm("exec", "keeps", "sh", "-c", "cat /root/kept /root/in; ls /etc")
        assert done.stdout.startswith("kept\nkept\n"), done.stderr
        assert "group" not in done.stdout


def test_copies_that_are_refused(pair: Daemons, vm: Run) -> None:
    with container(vm, "copies", "busybox", "sleep", "100000"):
        assert "does not exist" in vm("cp", "copies:/nosuch", "/dev/null").stderr
        for name, kind in (("../out", tarfile.REGTYPE), ("/absolute", tarfile.REGTYPE), ("null", tarfile.CHRTYPE)):
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode="w") as tar:
                info = tarfile.TarInfo(name)
                info.type = kind
                tar.addfile(info)
            done = vm("cp", "-", "copies:/root", input=out.getvalue().decode("latin-1"), encoding="latin-1")
            assert done.returncode != 0, name
        done = vm("cp", "-", "copies:/root", input="no tar at all" * 100)
        assert done.returncode != 0
        assert vm("exec", "copies", "ls", "-A", "/root").stdout == ""


def test_both_daemons_may_be_killed(pair: Daemons, vm: Run) -> None:
    with container(vm, "goes-on", "busybox", "sleep", "100000"):
        for name in ("casemate-hostd", "casemated"):
            pair.kill(name)
            pair.start()
            assert vm("exec", "goes-on", "echo", "alive").stdout == "alive\n"
            assert "sleep" in vm("top", "goes-on").stdout
        pair.kill("casemate-hostd")
        os.kill(monitor_of(pair, machines(pair)[0]), signal.SIGKILL)
        pair.start()
        until(lambda: vm("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "goes-on").stdout == "exited 137\n")
        assert machines(pair) == []
        assert vm("start", "goes-on").returncode == 0


def test_a_pod_is_one_machine(pair: Daemons, vm: Run) -> None:
    made = vm("pod", "create", *MICROVM, "--name", "pod")
    assert made.returncode == 0, made.stderr
    try:
        script = "mkdir /www; echo shared >/www/index.html; httpd -f -h /www -p 8080"
        assert vm("run", "-d", "--pod", "pod", "--name", "one", "busybox", "sh", "-c", script).returncode == 0
        assert vm("run", "-d", "--pod", "pod", "--name", "two", "busybox", "sleep", "100000").returncode == 0
        assert machines(pair) == [made.stdout.strip()]
        fetch = ("exec", "two", "wget", "-qO-", "http://127.0.0.1:8080")
        until(lambda: vm(*fetch).stdout == "shared\n")
        # Neither's end is the other's; the first comes again into the machine that went on.
        assert vm("stop", "-t", "0", "one").returncode == 0
        assert vm("exec", "two", "true").returncode == 0
        until(lambda: json.loads((pair.scope.folder / f"host-run/vm/{machines(pair)[0]}/machine.json").read_text())[
            "containers"][0]["id"] == vm("inspect", "-f", "{{.Id}}", "two").stdout.strip())  # fmt: skip
        assert vm("start", "one").returncode == 0
        until(lambda: vm(*fetch).stdout == "shared\n")
        # The machine's end is both's.
        os.kill(monitor_of(pair, machines(pair)[0]), signal.SIGKILL)
        until(lambda: vm("ps", "-q").stdout == "")
        codes = {vm("inspect", "-f", "{{.State.ExitCode}}", name).stdout.strip() for name in ("one", "two")}
        assert codes == {"137"}
        again = vm("start", "two")
        assert again.returncode == 0, again.stderr
        assert vm("exec", "two", "true").returncode == 0
    finally:
        assert vm("pod", "rm", "-f", "pod").returncode == 0
    assert machines(pair) == []


def test_another_image_joins_a_machine_that_runs(pair: Daemons, vm: Run) -> None:
    tag = "further"
    busybox = Path("/bin/busybox").read_bytes()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data, mode in (("bin/sh", busybox, 0o755), ("only-here", b"further\n", 0o644)):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))
    operation = pair.client.follow(pair.client.import_image(iter([out.getvalue()]), tag=tag, format_="rootfs"))
    assert operation.status == "done"
    assert vm("pod", "create", *MICROVM, "--name", "mixed").returncode == 0
    try:
        assert vm("run", "-d", "--pod", "mixed", "--name", "old", "busybox", "sleep", "100000").returncode == 0
        done = vm("run", "--rm", "--pod", "mixed", tag, "/bin/sh", "-c", "while read l; do echo $l; done </only-here")
        assert done.stdout == "further\n", done.stderr
        # What was there before is where it was.
        assert "app" in vm("exec", "old", "cat", "/etc/passwd").stdout
    finally:
        vm("pod", "rm", "-f", "mixed")


def test_limits_inside_and_a_size_that_follows_them(vm: Run) -> None:
    with container(vm, "limited", "-m", "100m", "--cpus", "0.5", "busybox", "sleep", "100000"):
        assert vm("exec", "limited", "cat", "/sys/fs/cgroup/memory.max").stdout == f"{100 << 20}\n"
        total = vm("exec", "limited", "sh", "-c", "grep MemTotal /proc/meminfo").stdout.split()[1]
        assert 200 << 10 < int(total) < 256 << 10
        assert vm("update", "-m", "64m", "--cpus", "1", "limited").returncode == 0
        assert vm("exec", "limited", "cat", "/sys/fs/cgroup/memory.max").stdout == f"{64 << 20}\n"
        assert vm("exec", "limited", "cat", "/sys/fs/cgroup/cpu.max").stdout == "100000 100000\n"


def test_memory_shown_is_what_the_host_pays(pair: Daemons, vm: Run) -> None:
    with container(vm, "weighed", "busybox", "sleep", "100000"):
        rows = pair.client.stats(["weighed"]) if hasattr(pair.client, "stats") else []
        pid = monitor_of(pair, machines(pair)[0])
        child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        text = Path(f"/proc/{child}/smaps_rollup").read_text()
        pss = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) << 10
        shown = rows[0].memory_bytes if rows else _shown(vm)
        assert 0.5 * pss < shown < 2 * pss


def _shown(vm: Run) -> int:
    done = vm("stats", "--no-stream", "--json", "weighed")
    found = json.loads(done.stdout)
    row = (found.get("containers") or found.get("rows"))[0] if isinstance(found, dict) else found[0]
    return int(row["memory_bytes"])


def test_a_bind_whose_folder_vanishes_is_no_end(vm: Run, tmp_path: Path) -> None:
    folder = tmp_path / "goes"
    folder.mkdir()
    (folder / "file").write_text("there\n")
    with container(vm, "loses", "-v", f"{folder}:/host", "busybox", "sleep", "100000"):
        assert vm("exec", "loses", "cat", "/host/file").stdout == "there\n"
        (folder / "file").unlink()
        folder.rmdir()
        assert vm("exec", "loses", "ls", "/host/file").returncode != 0
        assert vm("exec", "loses", "echo", "alive").stdout == "alive\n"


def test_what_is_larger_than_the_machine_ends_as_such(vm: Run) -> None:
    """What is written counts as memory: the file system is full, or the guest's kernel has to kill; both are said."""
    done = vm("run", "--rm", *MICROVM, "busybox", "sh", "-c", "dd if=/dev/zero of=/large bs=1M count=500 2>&1")
    said = "No space left on device" in done.stdout or "needed more memory" in done.stderr
    assert done.returncode in (1, 137), done
    assert said, done


@pytest.mark.parametrize("flags", [("--network", "host"), ("--ipc", "host"), ("--pid", "host")])
def test_no_namespace_of_the_host(vm: Run, flags: tuple[str, ...]) -> None:
    done = vm("run", "--rm", *MICROVM, *flags, "busybox", "true")
    assert done.returncode == 125
    assert "kernel of its own" in done.stderr


def test_prune_takes_the_templates_which_come_again(pair: Daemons, vm: Run) -> None:
    folder = pair.scope.folder / "host-state/templates"
    assert vm("run", "--rm", *MICROVM, "busybox", "true").returncode == 0
    assert list(folder.glob("*/manifest.json"))
    with container(vm, "running", "busybox", "sleep", "100000"):
        assert "template of micro-VMs" in vm("system", "prune", "-n").stdout
        assert vm("system", "prune", "--left-overs").returncode == 0
        assert list(folder.glob("*/manifest.json"))
        assert vm("system", "prune", "-f").returncode == 0
        assert not list(folder.glob("*/manifest.json"))
        # What runs keeps its memory.
        assert vm("exec", "running", "echo", "alive").stdout == "alive\n"
    assert vm("run", "--rm", *MICROVM, "busybox", "true").returncode == 0


def test_nothing_is_left(pair: Daemons, vm: Run) -> None:
    """The last: taps, machines, cgroups and folders of every test before."""
    until(lambda: machines(pair) == [])
    links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout

    def taps() -> list[str]:
        return [line for line in links.splitlines() if line.startswith(pair.scope.link_prefix)]

    until(lambda: not taps() or not [one for one in taps() if "w" not in one.split()[0]])
    done = vm("system", "doctor")
    assert "nothing of ours belongs to nobody" in done.stdout, done.stdout
