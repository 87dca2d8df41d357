"""The rest of the command line: run, spec, events, update, features, hooks, logs; and what is in mountinfo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

import harness
import pytest

from casemate.host import hierarchy
from casemate.spec import capabilities

pytestmark = pytest.mark.root


def run(host: harness.Host, name: str, config: Any, *flags: str, **options: Any) -> subprocess.CompletedProcess[str]:
    bundle = host.bundle(name, config)
    return host.vm("run", "--bundle", str(bundle), *flags, name, **{"input": "", **options})


def test_run_is_create_start_wait_and_delete(host: harness.Host, base_layer: Path) -> None:
    config = harness.configuration([base_layer], "sh", "-c", "cat; echo err >&2; exit 5")
    done = run(host, "ran", config, input="through\n")
    assert (done.returncode, done.stdout, done.stderr) == (5, "through\n", "err\n")
    assert host.vm("state", "ran").returncode == 1
    detached = run(host, "ran2", harness.configuration([base_layer], "sleep", "1000"), "--detach", capture_output=False)
    assert detached.returncode == 0
    assert host.state_of("ran2")["status"] == "running"
    assert host.vm("delete", "--force", "ran2").returncode == 0


def test_run_ends_with_the_signal_that_it_gets(host: harness.Host, base_layer: Path) -> None:
    script = "trap 'exit 44' TERM; echo ready; while true; do sleep 0.1; done"
    bundle = host.bundle("signalled", harness.configuration([base_layer], "sh", "-c", script))
    command = [str(host.shim), "--socket", str(host.socket), "run", "--bundle", str(bundle), "signalled"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(30) == 44


def test_what_spec_writes_runs(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    assert host.vm("spec", "--bundle", str(tmp_path)).returncode == 0
    assert host.vm("spec", "--bundle", str(tmp_path)).returncode == 1
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["root"] == {"path": "rootfs", "readonly": True}
    config["process"] |= {"terminal": False, "args": ["sh", "-c", "hostname; ls /sys/fs/cgroup/cgroup.procs"]}
    config["process"]["env"] = ["PATH=/bin"]
    config["annotations"] = {"org.casemate.layers": str(base_layer)}
    done = run(host, "specified", config)
    assert done.stdout == "casemate\n/sys/fs/cgroup/cgroup.procs\n", done.stderr


def test_features_are_json(host: harness.Host) -> None:
    found = json.loads(host.vm("features").stdout)
    assert found["hooks"] == [
        *("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    ]
    assert "SCMP_ACT_KILL_PROCESS" in found["linux"]["seccomp"]["actions"]
    assert "rbind" in found["mountOptions"]
    assert found["linux"]["capabilities"] == sorted(capabilities.ALL)
    assert found["potentiallyUnsafeConfigAnnotations"] == ["org.casemate."]
    # Members that a version after ociVersionMax has added must not be there.
    known = {"ociVersionMin", "ociVersionMax", "hooks", "mountOptions", "linux", "annotations"}
    assert found.keys() == known | {"potentiallyUnsafeConfigAnnotations"}
    known = {"namespaces", "capabilities", "cgroup", "seccomp", "apparmor", "selinux", "intelRdt"}
    assert found["linux"].keys() == known
    assert (found["ociVersionMin"], found["ociVersionMax"]) == ("1.0.0", "1.1.0")


def test_events_and_live_limits(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    config: Any = harness.configuration([base_layer], "sleep", "1000")
    assert run(host, "limited", config, "--detach", capture_output=False).returncode == 0
    try:
        before = json.loads(host.vm("events", "--stats", "limited").stdout)
        assert (before["type"], before["id"]) == ("stats", "limited")
        assert before["data"]["pids"]["current"] == 1
        assert before["data"]["cpu"]["usage"]["total"] > 0
        assert host.vm("update", "--memory", "33554432", "--pids-limit", "7", "limited").returncode == 0
        document = tmp_path / "resources.json"
        document.write_text('{"cpu": {"quota": 50000, "period": 100000}}')
        assert host.vm("update", "--resources", str(document), "limited").returncode == 0
        read = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max"
        found = host.vm("exec", "limited", "sh", "-c", f"mount -t cgroup2 x /tmp; {read} 2>&1")
        after = json.loads(host.vm("events", "--stats", "limited").stdout)["data"]
        assert after["pids"]["limit"] == 7, found.stdout
        assert host.vm("update", "limited").returncode == 1
        assert host.vm("update", "--memory", "lots", "limited").returncode == 1
    finally:
        assert host.vm("delete", "--force", "limited").returncode == 0


def test_an_engines_limits_are_on_the_host(host: harness.Host, base_layer: Path) -> None:
    """In the cgroup that its bundle names, with the machine in it; memory there is the machine's."""
    config: Any = harness.configuration([base_layer], "sleep", "1000")
    path, found = f"casetest-{uuid.uuid4().hex[:8]}/limits", hierarchy.detect()
    config["linux"] |= {
        "cgroupsPath": f"/{path}",
        "resources": {
            "cpu": {"shares": 2048, "quota": 150000, "period": 500000, "cpus": "0", "mems": "0"},
            "memory": {"limit": 50593792, "reservation": 40960000},
        },
    }

    def read(name_v1: str, name_v2: str) -> str:
        files = [Path(folder, name) for folder in found.folders(path) for name in (name_v1, name_v2)]
        return next(file.read_text().strip() for file in files if file.exists())

    try:
        bundle = host.bundle("limits", config)
        done = host.vm("create", "--bundle", str(bundle), "limits", stdin=subprocess.DEVNULL, capture_output=False)
        assert done.returncode == 0
        assert read("cpuset.cpus", "cpuset.cpus") == "0"
        assert read("cpu.shares", "cpu.weight") in ("2048", "79")
        assert read("cpu.cfs_quota_us", "cpu.max") in ("150000", "150000 500000")
        assert read("memory.soft_limit_in_bytes", "memory.low") == "40960000"
        assert int(read("memory.limit_in_bytes", "memory.max")) > 50593792 + (128 << 20)
        assert int(read("pids.max", "pids.max")) == 128
        assert len(found.pids(path)) == 3, "waiter, monitor, QEMU"
        assert host.vm("update", "--cpu-share", "512", "--cpuset-cpus", "0-1", "limits").returncode == 0
        assert read("cpu.shares", "cpu.weight") in ("512", "20")
        assert read("cpuset.cpus", "cpuset.cpus") == "0-1"
        assert host.vm("update", "--cpuset-cpus", "4000", "limits").returncode == 1
    finally:
        assert host.vm("delete", "--force", "limits").returncode == 0
        assert not found.exists(path)
        found.remove(path.partition("/")[0])


def test_a_bundle_without_a_cgroup_gets_one(host: harness.Host, base_layer: Path) -> None:
    """Of its name, with the machine in it, as long as the container is there."""
    assert host.machines is not None
    found, parent = hierarchy.detect(), host.machines.settings.cgroup_parent
    config: Any = harness.configuration([base_layer], "sleep", "1000")
    config["linux"]["resources"] = {"cpu": {"shares": 2048}}
    assert run(host, "placed", config, "--detach", capture_output=False).returncode == 0
    try:
        path = f"{parent}/placed"
        shown = Path(f"/proc/{host.state_of('placed')['pid']}/cgroup").read_text()
        assert f":/{path}\n" in shown
        assert len(found.pids(path)) == 3, "waiter, monitor, QEMU"
        files = [Path(folder, name) for folder in found.folders(path) for name in ("cpu.shares", "cpu.weight")]
        assert [file.read_text().strip() for file in files if file.exists()] in (["2048"], ["79"])
    finally:
        assert host.vm("delete", "--force", "placed").returncode == 0
    assert not found.exists(parent)


def test_a_cgroup_of_others_is_refused_and_left_alone(host: harness.Host, base_layer: Path) -> None:
    path, found = f"casetest-{uuid.uuid4().hex[:8]}", hierarchy.detect()
    config: Any = harness.configuration([base_layer], "true")
    config["linux"]["cgroupsPath"] = f"/{path}"
    found.create(path)
    try:
        with subprocess.Popen(["sleep", "1000"]) as other:
            found.join(path, other.pid)
            refused = run(host, "intruder", config)
            assert (refused.returncode, "is not empty: 1 process(es)" in refused.stderr) == (1, True), refused
            assert other.poll() is None
            other.kill()
    finally:
        found.remove(path)


def test_standard_input_of_nobody_is_the_guests_null(host: harness.Host, base_layer: Path) -> None:
    config = harness.configuration([base_layer], "readlink", "/proc/self/fd/0")
    bundle = host.bundle("silent", config)
    done = host.vm("run", "--bundle", str(bundle), "silent", stdin=subprocess.DEVNULL)
    assert done.stdout == "/dev/null\n", done.stderr


def test_exec_as_a_user_with_variables(host: harness.Host, base_layer: Path) -> None:
    config = harness.configuration([base_layer], "sleep", "1000", noNewPrivileges=False)
    assert run(host, "users", config, "-d", capture_output=False).returncode == 0
    script = "id -u; id -g; echo $ONE$TWO; pwd"
    flags = ["--user", "12:34", "--env", "ONE=1", "-e", "TWO=2", "--cwd", "/etc"]
    assert host.vm("exec", *flags, "users", "sh", "-c", script).stdout.split() == ["12", "34", "12", "/etc"]
    assert host.vm("exec", "--user", "www", "users", "true").returncode == 255
    read = ("exec", "users", "grep", "NoNewPrivs", "/proc/self/status")
    assert host.vm(*read).stdout.split() == ["NoNewPrivs:", "0"]
    assert host.vm(read[0], "--no-new-privs", *read[1:]).stdout.split() == ["NoNewPrivs:", "1"]
    assert host.vm("kill", "--all", "users", "KILL").returncode == 0
    assert host.vm("delete", "--force", "users").returncode == 0


def test_hooks_get_the_state_and_run_in_their_order(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = tmp_path / "hook"
    script.write_text(f'#!/bin/sh\n(echo "$1 $ONE $(readlink /proc/self/ns/net)"; cat; echo) >> {log}\n')
    script.chmod(0o755)

    def hook(name: str) -> list[dict[str, Any]]:
        return [{"path": str(script), "args": ["hook", name], "env": [f"ONE={name}", "PATH=/usr/bin:/bin"]}]

    config: Any = harness.configuration([base_layer], "sleep", "1000")
    config["annotations"]["our"] = 'a "word"'
    config["hooks"] = {name: hook(name) for name in ("poststop", "prestart", "poststart", "createRuntime")}
    assert run(host, "hooked", config, "-d", capture_output=False).returncode == 0
    pid = host.state_of("hooked")["pid"]
    inside = os.readlink(f"/proc/{pid}/ns/net")
    assert inside != os.readlink("/proc/self/ns/net")
    assert host.vm("delete", "--force", "hooked").returncode == 0
    lines = log.read_text().splitlines()
    outside = os.readlink("/proc/self/ns/net")
    names = ["prestart", "createRuntime", "poststart", "poststop"]
    assert [line for line in lines if not line.startswith("{")] == [f"{name} {name} {outside}" for name in names]
    states = [json.loads(line) for line in lines if line.startswith("{")]
    assert [one["status"] for one in states] == ["creating", "creating", "running", "stopped"]
    assert [one["pid"] for one in states] == [pid, pid, pid, 0]
    assert {one["id"] for one in states} == {"hooked"}
    assert states[0]["annotations"]["our"] == 'a "word"'
    assert states[0]["bundle"] == str(host.folder / "bundles/hooked")


def test_a_hook_that_never_ends_is_ended(host: harness.Host, base_layer: Path) -> None:
    config: Any = harness.configuration([base_layer], "true")
    config["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]}
    done = run(host, "slowhook", config)
    assert done.returncode == 1
    assert "did not end within 1 s" in done.stderr
    assert not (host.folder / "vm/slowhook").exists()


def test_the_log_is_what_containerd_reads(host: harness.Host, tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    done = host.vm("--root", "/x", "--debug", "--log", str(log), "--log-format", "json", "state", "no-such")
    assert done.returncode == 1
    # With --debug what was done stands before it; readers take the last.
    entry = json.loads(log.read_text().splitlines()[-1])
    assert (entry["level"], "does not exist" in entry["msg"] or "container id" in entry["msg"]) == ("error", True)


def test_mountinfo_lists_the_bundles_mounts_in_order(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    config: Any = harness.configuration([base_layer], "cat", "/proc/self/mountinfo")
    shutil.copytree(tmp_path, tmp_path / "shared")
    bind = {"destination": "/data", "type": "bind", "source": str(tmp_path / "shared"), "options": ["rbind"]}
    for order in (1, len(config["mounts"])):
        one = config | {"mounts": [*config["mounts"]]}
        one["mounts"].insert(order, bind)
        one["mounts"].append({"destination": "/last", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]})
        shown = [line.split()[4] for line in run(host, "mounts", one).stdout.splitlines()]
        wanted = [mount["destination"] for mount in one["mounts"]]
        assert [place for place in shown if place in wanted] == wanted


def test_copy_up_keeps_what_the_image_has(host: harness.Host, tmp_path: Path) -> None:
    layer = harness.layer(tmp_path, "full", {"data/deep/file": "content\n", "data/file": "x\n"})
    script = (
        "cat /data/deep/file; touch /data/new && ls /data; stat -c %a /fresh; touch /fixed/x 2>/dev/null || ls /fixed"
    )
    config: Any = harness.configuration([layer], "sh", "-c", script)
    for target, *options in (("/data", "rw"), ("/fresh", "rw"), ("/fixed", "ro")):
        mount = {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": [*options, "tmpcopyup"]}
        config["mounts"].append(mount)
    done = run(host, "copied", config)
    assert done.stdout.split() == ["content", "deep", "file", "new", "1777"], done.stderr


@pytest.mark.parametrize(
    ("change", "script", "shown"),
    [
        ({"linux": {"sysctl": {"kernel.msgmax": "9000", "net.ipv4.ip_forward": "1"}}}, "MSG", ["9000", "1"]),
        (
            {"linux": {"devices": [{"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640}]}},
            "stat -c '%F %a %t %T' /dev/mine",
            ["character", "special", "file", "640", "1", "3"],
        ),
        ({"process": {"oomScoreAdj": 321}}, "cat /proc/self/oom_score_adj", ["321"]),
        (
            {"process": {"user": {"uid": 7, "gid": 8, "umask": 0o27, "additionalGids": [9, 10]}}},
            "umask; id -G",
            ["0027", "8", "9", "10"],
        ),
        ({"process": {"cwd": "/etc", "env": ["PATH=/bin", "A=b c"]}}, "pwd; echo $A", ["/etc", "b", "c"]),
        ({"hostname": "named"}, "hostname", ["named"]),
        (
            {"mounts+": {"destination": "/m", "type": "tmpfs", "source": "x", "options": ["ro", "noexec", "size=1m"]}},
            "touch /m/x || grep ' /m ' /proc/mounts | cut -d' ' -f3,4",
            ["tmpfs", "ro,noexec,relatime,size=1024k,inode64"],
        ),
        (
            {"mounts+": {"destination": "/c", "type": "cgroup", "source": "x", "options": ["ro"]}},
            "ls /c/cgroup.events",
            ["/c/cgroup.events"],
        ),
        ({"domainname": "named.example"}, "cat /proc/sys/kernel/domainname", ["named.example"]),
        (
            {
                "process": {
                    "scheduler": {"policy": "SCHED_RR", "priority": 7},
                    "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
                }
            },
            "cut -d' ' -f40,41 /proc/self/stat; busybox ionice -p $$",
            ["7", "2", "best-effort:", "prio", "6"],
        ),
        ({"linux": {"personality": {"domain": "LINUX32"}}}, "uname -m", ["i686"]),
        (
            {
                "linux": {"resources": {"unified": {"memory.high": "52428800", "pids.max": "33"}}},
                "mounts+": {"destination": "/c", "type": "cgroup", "source": "x", "options": ["ro"]},
            },
            "cat /c/memory.high /c/pids.max",
            ["52428800", "33"],
        ),
        (
            {"linux": {"namespaces": [{"type": "mount"}, {"type": "network"}]}},
            "[ $$ -gt 1 ] && echo the pod\\'s",
            ["the", "pod's"],
        ),
    ],
    ids=[
        "sysctl",
        "device",
        "oom",
        "user",
        "cwd",
        "hostname",
        "tmpfs",
        "cgroup",
        "domain",
        "execution",
        "personality",
        "unified",
        "no pid namespace",
    ],
)
def test_fields_of_a_bundle(
    host: harness.Host, base_layer: Path, change: dict[str, Any], script: str, shown: list[str]
) -> None:
    words = script.replace("MSG", "cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_forward")
    config: Any = harness.configuration([base_layer], "sh", "-c", words)
    for key, value in change.items():
        if key == "mounts+":
            config["mounts"].append(value)
        elif isinstance(value, dict):
            config[key] |= value
        else:
            config[key] = value
    done = run(host, "field", config)
    assert done.stdout.split() == shown, done.stderr
