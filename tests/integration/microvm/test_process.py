"""Processes in a micro-VM through casemate-vm and conmon: output, input, exit codes, identity, terminals, exec."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest

from casemate.isolation import seccomp

pytestmark = pytest.mark.root


def output(folder: Path, stream: str = "stdout") -> str:
    """What the container wrote, put together from conmon's log."""
    found = []
    for line in (folder / "log").read_text().splitlines():
        _, name, flag, text = line.split(" ", 3)
        if name == stream:
            found.append(text + ("\n" if flag == "F" else ""))
    return "".join(found)


def exit_code(folder: Path, name: str) -> int:
    return int((folder / "exits" / name).read_text())


def run(host: harness.Host, name: str, config: dict[str, object], *more: str) -> tuple[int, Path]:
    """Create, start, wait, delete; the exit code, and conmon's folder."""
    process, folder = harness.conmon(host, name, host.bundle(name, config), *more)
    started = host.vm("start", name)
    assert started.returncode == 0, (started.stderr, (folder / "answer").read_text())
    process.wait(60)
    code = exit_code(folder, name)
    deleted = host.vm("delete", name)
    assert deleted.returncode == 0, deleted.stderr
    return code, folder


def test_output_and_exit_code(host: harness.Host, base_layer: Path) -> None:
    config = harness.configuration([base_layer], "sh", "-c", "echo out; echo err >&2; cat; exit 7")
    code, folder = run(host, "exit7", config)
    assert code == 7
    assert output(folder) == "out\n"
    assert output(folder, "stderr") == "err\n"


def test_a_large_output_arrives_whole(host: harness.Host, base_layer: Path) -> None:
    config = harness.configuration([base_layer], "sh", "-c", "seq 1 40000")
    code, folder = run(host, "large", config)
    assert code == 0
    assert output(folder).split() == [str(number) for number in range(1, 40001)]


def test_the_process_has_what_the_bundle_says(host: harness.Host, base_layer: Path) -> None:
    script = (
        "id -u; id -g; id -G; pwd; umask; echo $X; hostname; ulimit -n; grep -E 'Cap(Prm|Eff|Bnd|Inh|Amb)|NoNewPrivs'"
        " /proc/self/status; echo $$; cat /proc/self/cgroup"
    )
    config = harness.configuration(
        [base_layer],
        *("sh", "-c", script),
        user={"uid": 1000, "gid": 1001, "additionalGids": [7, 8], "umask": 0o77},
        cwd="/tmp",
        env=["PATH=/bin", "X=a b"],
        capabilities={name: ["CAP_CHOWN", "CAP_KILL"] for name in ("bounding",)},
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}],
    )
    code, folder = run(host, "identity", config)
    assert code == 0
    lines = output(folder).splitlines()
    assert lines[:3] == ["1000", "1001", "1001 7 8"]
    assert lines[3:8] == ["/tmp", "0077", "a b", "guest", "100"]
    status = dict(line.split(":\t") for line in lines[8:14])
    assert status["CapBnd"] == f"{1 << 0 | 1 << 5:016x}"
    assert status["CapPrm"] == status["CapEff"] == status["CapAmb"] == f"{0:016x}"
    assert status["NoNewPrivs"] == "1"
    assert lines[14:] == ["1", "0::/"]


def test_root_without_capabilities_in_the_bundle_has_none(host: harness.Host, base_layer: Path) -> None:
    code, folder = run(host, "nocaps", harness.configuration([base_layer], "grep", "CapEff", "/proc/self/status"))
    assert code == 0
    assert output(folder).split()[1] == f"{0:016x}"


def test_the_seccomp_profile_holds_in_the_container_and_in_an_exec(host: harness.Host, base_layer: Path) -> None:
    script = "grep Seccomp: /proc/self/status; mkdir /tmp/x || echo refused; while :; do sleep 1000; done"
    config = harness.configuration([base_layer], "sh", "-c", script)
    profile = seccomp.profile(frozenset(), "x86_64")
    rules = [
        rule | {"names": [name for name in rule["names"] if name not in ("mkdir", "mkdirat")]}
        for rule in profile["syscalls"]
    ]
    config["linux"] |= {"seccomp": profile | {"syscalls": rules}}  # type: ignore[operator]
    process, folder = harness.conmon(host, "seccomp", host.bundle("seccomp", config))
    assert host.vm("start", "seccomp").returncode == 0
    done = host.vm("exec", "seccomp", "sh", "-c", "grep Seccomp: /proc/self/status; mkdir /tmp/y || echo refused")
    assert done.stdout.split() == ["Seccomp:", "2", "refused"]
    deadline = time.monotonic() + 10  # what it wrote is on its way
    while "refused" not in output(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert output(folder).split() == ["Seccomp:", "2", "refused"]
    assert host.vm("delete", "--force", "seccomp").returncode == 0
    process.wait(20)


def test_a_bundle_that_is_broken_in_the_guest_leaves_nothing(host: harness.Host, base_layer: Path) -> None:
    config = harness.configuration([base_layer], "true")
    config["linux"] |= {"sysctl": {"no.such.setting": "1"}}  # type: ignore[operator]
    done = host.vm("create", "--bundle", str(host.bundle("broken", config)), "broken", stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "no.such.setting=1: No such file or directory" in done.stderr
    assert not (host.folder / "vm/broken").exists()


def test_memory_limits_kill_inside_and_are_reported(host: harness.Host, base_layer: Path) -> None:
    config = harness.configuration([base_layer], "dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=40")
    config["linux"] |= {"resources": {"memory": {"limit": 16 << 20}, "pids": {"limit": 50}}}  # type: ignore[operator]
    process, _ = harness.conmon(host, "oom", host.bundle("oom", config))
    assert host.vm("start", "oom").returncode == 0
    process.wait(60)
    assert host.machines is not None
    machine = host.machines.get("oom")
    assert machine is not None
    assert machine.container("oom") is not None
    assert machine.record.containers[0].oom_killed
    assert host.vm("delete", "oom").returncode == 0


def test_mounts_are_the_bundles_in_order(host: harness.Host, base_layer: Path) -> None:
    code, folder = run(host, "mounts", harness.configuration([base_layer], "cat", "/proc/self/mountinfo"))
    assert code == 0
    places = [line.split()[4] for line in output(folder).splitlines()]
    # The root's own place in the list is not the bundle's: it is mounted after what was mounted early.
    assert sorted(places)[0] == "/"
    assert [place for place in places if place != "/"] == ["/proc", "/dev", "/dev/pts", "/dev/shm", "/sys"]


def test_masked_and_read_only_paths(host: harness.Host, base_layer: Path) -> None:
    config = harness.configuration(
        [base_layer], "sh", "-c", "cat /proc/kcore | wc -c; echo 1 > /proc/sys/vm/drop_caches; touch /x; ls /proc/acpi"
    )
    config["root"] = {"path": "rootfs", "readonly": True}
    config["linux"] |= {"maskedPaths": ["/proc/kcore", "/proc/acpi"], "readonlyPaths": ["/proc/sys"]}  # type: ignore[operator]
    code, folder = run(host, "masked", config)
    assert code == 0
    assert output(folder).split() == ["0"]
    assert output(folder, "stderr").count("Read-only file system") == 2


def test_layers_are_joined_with_whiteouts(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    upper = harness.layer(tmp_path, "upper", {"etc/both": "upper\n", "etc/new": "new\n"}, busybox=False)
    config = harness.configuration([upper, base_layer], "cat", "/etc/base", "/etc/both", "/etc/new")
    code, folder = run(host, "layers", config)
    assert code == 0
    assert output(folder).split() == ["base", "upper", "new"]


@pytest.mark.parametrize(
    ("command", "words"), [("nothing", "executable file not found in $PATH"), ("/etc/base", "permission denied")]
)
def test_a_command_that_is_none_is_told_when_the_container_is_made(
    host: harness.Host, base_layer: Path, command: str, words: str
) -> None:
    _, folder = harness.conmon(host, "nocmd", host.bundle("nocmd", harness.configuration([base_layer], command)))
    assert words in (folder / "answer").read_text()
    assert host.vm("state", "nocmd").returncode == 1
    shutil.rmtree(folder)


@pytest.mark.parametrize("word", ["TERM", "15", "SIGTERM"])
def test_signals_reach_the_process(host: harness.Host, base_layer: Path, word: str) -> None:
    config = harness.configuration(
        [base_layer], "sh", "-c", "trap 'echo got; exit 3' TERM; while :; do sleep 0.1; done"
    )
    name = f"sig{word}"
    process, folder = harness.conmon(host, name, host.bundle(name, config))
    assert host.vm("start", name).returncode == 0
    time.sleep(0.5)
    assert host.vm("kill", name, word).returncode == 0
    process.wait(30)
    assert exit_code(folder, name) == 3
    assert host.state_of(name)["status"] == "stopped"
    assert host.vm("kill", name, "KILL").returncode == 1
    assert host.vm("delete", name).returncode == 0


def test_a_signal_to_one_whose_end_is_not_heard_of_yet(host: harness.Host, base_layer: Path) -> None:
    """A guest that says "no such process" says that the container has ended: engines must not hear a failure."""
    process, folder = harness.conmon(
        host, "unheard", host.bundle("unheard", harness.configuration([base_layer], "true"))
    )
    machines = host.machines
    assert machines is not None
    machine = machines.get("unheard")
    assert machine is not None
    # The moment between the end and hostd's knowledge of it, held open.
    machine.monitor.on_event = lambda _message: None
    assert host.vm("start", "unheard").returncode == 0
    process.wait(30)
    assert exit_code(folder, "unheard") == 0
    assert host.state_of("unheard")["status"] == "running"
    done = host.vm("kill", "unheard", "KILL")
    assert done.returncode == 1
    assert "container not running" in done.stderr
    assert host.vm("kill", "--all", "unheard", "KILL").returncode == 0
    joined = host.vm("exec", "unheard", "true", stdin=subprocess.DEVNULL)
    # Words about a command would be taken for "no such program" (127).
    assert "cannot exec in a stopped container" in joined.stderr
    assert host.vm("delete", "--force", "unheard").returncode == 0


def test_a_signal_to_the_waiter_reaches_the_process(host: harness.Host, base_layer: Path) -> None:
    config = harness.configuration([base_layer], "sh", "-c", "trap 'exit 5' USR1; while :; do sleep 0.1; done")
    process, folder = harness.conmon(host, "waiter", host.bundle("waiter", config))
    assert host.vm("start", "waiter").returncode == 0
    time.sleep(0.5)
    os.kill(int((folder / "pid").read_text()), signal.SIGUSR1)
    process.wait(30)
    assert exit_code(folder, "waiter") == 5
    assert host.vm("delete", "waiter").returncode == 0


@pytest.fixture(scope="module")
def sleeper(host: harness.Host, base_layer: Path) -> Iterator[str]:
    """A running container for execs."""
    config = harness.configuration([base_layer], "sh", "-c", "while :; do sleep 1000; done")
    process, _ = harness.conmon(host, "sleeper", host.bundle("sleeper", config))
    assert host.vm("start", "sleeper").returncode == 0
    yield "sleeper"
    assert host.vm("delete", "--force", "sleeper").returncode == 0
    process.wait(30)


def test_exec_in_the_foreground(host: harness.Host, sleeper: str) -> None:
    done = host.vm("exec", sleeper, "sh", "-c", "echo in; echo bad >&2; exit 9")
    assert (done.returncode, done.stdout, done.stderr) == (9, "in\n", "bad\n")


def test_exec_sees_the_containers_processes_and_root(host: harness.Host, sleeper: str) -> None:
    done = host.vm("exec", sleeper, "sh", "-c", "ps | grep -c 'while :'; cat /etc/base; hostname")
    assert done.stdout.split()[1:] == ["base", "guest"]
    assert int(done.stdout.split()[0]) >= 1


def test_input_goes_in_and_comes_out(host: harness.Host, sleeper: str) -> None:
    data = "".join(f"{number}\n" for number in range(60_000))
    done = host.vm("exec", sleeper, "cat", input=data)
    assert done.returncode == 0
    assert done.stdout == data


def test_the_end_of_input_is_seen_though_nobody_reads(host: harness.Host, sleeper: str) -> None:
    done = host.vm("exec", sleeper, "true", input="x" * 300_000)
    assert done.returncode == 0


def test_execs_at_the_same_time_do_not_mix(host: harness.Host, sleeper: str) -> None:
    command = [str(host.shim), "--socket", str(host.socket), "exec", sleeper, "sh", "-c"]
    many = [
        subprocess.Popen([*command, f"seq {start} {start + 2000}; exit {start // 10000}"], stdout=subprocess.PIPE)
        for start in (10_000, 20_000, 30_000)
    ]
    for index, one in enumerate(many, start=1):
        out, _ = one.communicate(timeout=60)
        assert one.returncode == index
        assert [int(word) for word in out.split()] == list(range(index * 10_000, index * 10_000 + 2001))


def test_exec_process_document(host: harness.Host, sleeper: str, tmp_path: Path) -> None:
    process = {
        "args": ["sh", "-c", "id -u; pwd; echo $Y"],
        "env": ["PATH=/bin", "Y=z"],
        "cwd": "/etc",
        "user": {"uid": 12, "gid": 34},
    }
    (tmp_path / "process.json").write_text(json.dumps(process))
    done = host.vm("exec", "--process", str(tmp_path / "process.json"), sleeper)
    assert done.stdout.split() == ["12", "/etc", "z"]


def test_exec_of_what_is_not_there(host: harness.Host, sleeper: str) -> None:
    done = host.vm("exec", sleeper, "nothing")
    assert done.returncode == 255
    assert "executable file not found" in done.stderr


def test_a_terminal(host: harness.Host, sleeper: str) -> None:
    master, slave = pty.openpty()
    command = [str(host.shim), "--socket", str(host.socket), "exec", "--tty", sleeper, "sh"]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""

    def until(pattern: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + 20
        while not re.search(pattern, seen):
            assert time.monotonic() < end, seen
            if select.select([master], [], [], 1)[0]:
                seen += os.read(master, 4096)

    until(rb"# ")
    os.write(master, b"tty; echo $((6*7))\n")
    until(rb"/dev/pts/\d+\r+\n42\r+\n")
    os.write(master, b"exit 4\n")
    assert process.wait(20) == 4
    os.close(master)


def test_pause_and_resume(host: harness.Host, sleeper: str) -> None:
    assert host.vm("pause", sleeper).returncode == 0
    assert host.state_of(sleeper)["status"] == "paused"
    assert host.vm("exec", sleeper, "true").returncode == 255
    assert host.vm("resume", sleeper).returncode == 0
    assert host.vm("exec", sleeper, "true").returncode == 0


def test_ps_and_list(host: harness.Host, sleeper: str) -> None:
    assert len(json.loads(host.vm("ps", "--format", "json", sleeper).stdout)) >= 1
    assert sleeper in host.vm("list").stdout


def test_a_name_can_be_taken_once(host: harness.Host, sleeper: str, base_layer: Path) -> None:
    done = host.vm("create", "--bundle", str(host.folder / "bundles" / sleeper), sleeper)
    assert done.returncode == 1
    assert "exists" in done.stderr


def test_features_and_version(host: harness.Host) -> None:
    assert json.loads(host.vm("features").stdout)["ociVersionMax"] == "1.1.0"
    assert "spec: 1.1.0" in host.vm("--version").stdout
