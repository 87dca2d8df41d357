"""What the field's own test suites ask of an OCI runtime: hooks inside, filters, flags, what containers share."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import pytest

pytestmark = pytest.mark.root


@contextmanager
def running(host: harness.Host, name: str, config: Any, *flags: str) -> Iterator[None]:
    bundle = host.bundle(name, config)
    # The container has what we give as its standard files, for as long as it lives: no pipe that we would wait for.
    null = subprocess.DEVNULL
    words = ["run", "--bundle", str(bundle), "--detach", *flags, name]
    assert host.vm(*words, capture_output=False, stdin=null, stdout=null).returncode == 0
    try:
        yield
    finally:
        assert host.vm("delete", "--force", name).returncode == 0


def ran(host: harness.Host, name: str, config: Any, *flags: str) -> subprocess.CompletedProcess[str]:
    return host.vm("run", "--bundle", str(host.bundle(name, config)), *flags, name, input="")


def test_hooks_in_the_container_and_in_its_network(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    outside = tmp_path / "hook"
    outside.write_text(f"#!/bin/sh\n(readlink /proc/self/ns/net; cat) > {log}\n")
    outside.chmod(0o755)
    config: Any = harness.configuration([base_layer], "cat", "/tmp/hook", user={"uid": 0, "gid": 0})
    inside = {"path": "/bin/sh", "args": ["sh", "-c", "echo $ONE; cat > /tmp/hook"], "env": ["ONE=1", "PATH=/bin"]}
    config["hooks"] = {"createContainer": [{"path": str(outside)}], "startContainer": [inside]}
    done = ran(host, "inhooks", config)
    # What a hook writes to its output stands with the container's errors.
    assert (done.returncode, done.stderr) == (0, "1\n")
    state = json.loads(done.stdout)
    assert (state["id"], state["status"], state["pid"] > 1) == ("inhooks", "created", True)
    netns, document = log.read_text().split("\n", 1)
    assert netns != os.readlink("/proc/self/ns/net")
    assert json.loads(document)["status"] == "creating"
    config["hooks"]["startContainer"] = [{"path": "/bin/false"}]
    failed = ran(host, "badhook", config)
    assert (failed.returncode, "hook /bin/false ended with code 1" in failed.stderr) == (1, True), failed
    assert host.vm("delete", "--force", "badhook").returncode == 0


@pytest.mark.parametrize(
    ("action", "shown"),
    [("SCMP_ACT_ERRNO", "33"), ("SCMP_ACT_KILL_PROCESS", "159"), ("SCMP_ACT_LOG", "0")],
)
def test_seccomp_actions(host: harness.Host, base_layer: Path, action: str, shown: str) -> None:
    config: Any = harness.configuration([base_layer], "sh", "-c", "mkdir /tmp/x; echo $?")
    rule = {"names": ["mkdir", "mkdirat"], "action": action}
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}
    config["linux"]["seccomp"]["syscalls"] = [rule | ({"errnoRet": 5} if "ERRNO" in action else {})]
    done = ran(host, "filtered", config)
    assert done.stdout == f"{'1' if shown == '33' else shown}\n", done
    assert ("Input/output error" in done.stderr) == ("ERRNO" in action)


def test_a_listener_outside_is_refused_by_name(host: harness.Host, base_layer: Path) -> None:
    config: Any = harness.configuration([base_layer], "true")
    rule = {"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    done = ran(host, "notified", config)
    assert (done.returncode, "SCMP_ACT_NOTIFY" in done.stderr) == (1, True)
    assert not (host.folder / "vm/notified").exists()


def test_containers_of_one_machine_share_processes(host: harness.Host, base_layer: Path) -> None:
    first: Any = harness.configuration([base_layer], "sleep", "1000")
    first["annotations"] |= {"org.casemate.pod": "shared", "org.casemate.more": "1"}
    with running(host, "sharer", first):
        pid = host.state_of("sharer")["pid"]
        second: Any = harness.configuration([base_layer], "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; echo $$")
        second["annotations"] |= {"org.casemate.pod": "shared"}
        space = next(one for one in second["linux"]["namespaces"] if one["type"] == "pid")
        space["path"] = f"/proc/{pid}/ns/pid"
        done = ran(host, "joiner", second)
        assert done.returncode == 0, done.stderr
        command, number = done.stdout.rsplit(" ", 1)
        assert (command, int(number) > 1) == ("sleep 1000", True)
        space["path"] = "/proc/1/ns/pid"
        refused = ran(host, "stranger", second)
        assert (refused.returncode, "pid namespace /proc/1/ns/pid is of the host" in refused.stderr) == (1, True)
        assert host.vm("state", "stranger").returncode == 1


def test_the_root_and_dev_as_the_bundle_says(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    script = "grep -E ' (/|/dev|/data) ' /proc/self/mountinfo; echo x > /dev/made; echo x > /dev/null && echo through"
    config: Any = harness.configuration([base_layer], "sh", "-c", script)
    config["linux"]["rootfsPropagation"] = "shared"
    config["mounts"][1]["options"].append("ro")
    folder = tmp_path / "folder..with dots"
    folder.mkdir()
    bind = {"destination": "/data", "type": "bind", "source": str(folder), "options": ["rbind", "rshared"]}
    config["mounts"].append(bind)
    done = ran(host, "rooted", config)
    assert done.stdout.endswith("\nthrough\n"), done
    rows = {row[4]: row for line in done.stdout.splitlines()[:-1] if (row := line.split())}
    assert rows["/"][6].startswith("shared:")
    assert rows["/dev"][5] == "ro,nosuid"
    # The source's own name: what suites and tools compare with the bundle.
    assert rows["/data"][3].endswith("/folder..with\\040dots")
    assert rows["/data"][6].startswith("shared:")
    assert "Read-only" in done.stderr


def test_lists_and_processes_as_tools_read_them(host: harness.Host, base_layer: Path) -> None:
    with running(host, "listed", harness.configuration([base_layer], "sleep", "1000"), "--root", "/one"):
        assert host.vm("--root", "/one", "list", "-q").stdout == "listed\n"
        assert host.vm("--root", "/two", "list", "-q").stdout.strip() == ""
        assert host.vm("--root", "/two", "state", "listed").returncode == 1
        row = json.loads(host.vm("list", "--format", "json").stdout)[-1]
        assert (row["id"], row["owner"], row["created"][-1]) == ("listed", "", "Z")
        assert json.loads(host.vm("ps", "--format", "json", "listed").stdout) == [row["pid"]]
        table = host.vm("ps", "listed").stdout.splitlines()
        assert table[0].split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
        assert table[1].endswith("sleep 1000")
        assert host.vm("list", "--format", "yaml").returncode == 1
        assert host.vm("kill", "listed", "0").returncode == 0
        line = host.vm("events", "--stats", "listed").stdout
        assert line.startswith('{"type":"stats","id":"listed","data":{')


def test_flags_of_an_exec(host: harness.Host, base_layer: Path) -> None:
    config: Any = harness.configuration([base_layer], "sleep", "1000", cwd="/etc")
    config["process"]["env"].append("OWN=1")
    with running(host, "execs", config):
        script = "pwd; echo $OWN; echo $HOME; id -G; grep -E 'CapEff|CapAmb' /proc/self/status"
        flags = ["--additional-gids", "7", "--cap", "CAP_NET_RAW", "--user", "0:6"]
        shown = host.vm("exec", *flags, "execs", "sh", "-c", script).stdout.split()
        assert shown == ["/etc", "1", "/root", "6", "7", "CapEff:", "0000000000002000", "CapAmb:", "0000000000000000"]
        for refused in (["--cap", "CAP_NONE"], ["--apparmor", "x"], ["--preserve-fds", "1"], ["--cgroup", "x"]):
            assert host.vm("exec", *refused, "execs", "true").returncode == 255
        # A terminal in the foreground without one of the caller's: what it shows is standard output.
        assert host.vm("exec", "--tty", "execs", "tty", input="").stdout == "/dev/pts/0\n"
        assert host.vm("pause", "execs").returncode == 0
        paused = host.vm("exec", "execs", "true")
        assert (paused.returncode, "cannot exec in a paused container" in paused.stderr) == (255, True)
        assert host.vm("resume", "execs").returncode == 0


def test_a_closed_output_is_closed_outside(host: harness.Host, base_layer: Path) -> None:
    config = harness.configuration([base_layer], "sh", "-c", "echo first; exec >&- 2>&-; exec sleep 1000")
    bundle = host.bundle("closes", config)
    # The pipe ends long before the container does.
    done = host.vm("run", "--bundle", str(bundle), "--detach", "closes", stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (0, "first\n")
    assert host.state_of("closes")["status"] == "running"
    assert host.vm("delete", "--force", "closes").returncode == 0


def test_sockets_of_an_activation_are_refused(host: harness.Host, base_layer: Path) -> None:
    bundle = host.bundle("activated", harness.configuration([base_layer], "true"))
    for count, code in (("0", 0), ("2", 1)):
        done = host.vm("run", "--bundle", str(bundle), "activated", input="", env={"LISTEN_FDS": count})
        assert done.returncode == code, done.stderr


def _with_devices(base_layer: Path, rules: list[dict[str, object]], *words: str) -> Any:
    config: Any = harness.configuration([base_layer], *words)
    names = ["CAP_MKNOD", "CAP_SYSLOG", "CAP_SYS_ADMIN"]
    config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), names)
    config["linux"]["resources"] = {"devices": [{"allow": False, "access": "rwm"}, *rules]}
    return config


def test_a_container_opens_no_device_but_the_usual(host: harness.Host, base_layer: Path) -> None:
    script = (
        "busybox mknod /tmp/zero c 1 5 && head -c 2 /tmp/zero | wc -c;"
        "busybox mknod /tmp/disk b $(grep virtblk /proc/devices | cut -c1-3) 0 && head -c 2 /tmp/disk;"
        "busybox mknod /tmp/kmsg c 1 11 && head -c 2 /tmp/kmsg"
    )
    done = ran(host, "usual", _with_devices(base_layer, [], "sh", "-c", script))
    assert done.stdout == "2\n", done
    assert [line.split(": ")[-1] for line in done.stderr.splitlines()] == ["Operation not permitted"] * 2, done


def test_rules_for_devices_hold_in_the_guest_and_can_be_replaced(
    host: harness.Host, base_layer: Path, tmp_path: Path
) -> None:
    kmsg = {"type": "c", "major": 1, "minor": 11}
    config = _with_devices(base_layer, [{"allow": True, "access": "r", **kmsg}], "sleep", "600")
    config["linux"]["devices"] = [{"path": "/dev/kmsg", **kmsg}]
    may_read = ("exec", "ruled", "dd", "if=/dev/kmsg", "of=/dev/null", "bs=8k", "count=1")
    may_write = ("exec", "ruled", "sh", "-c", "echo word > /dev/kmsg")
    with running(host, "ruled", config):
        assert host.vm(*may_read).returncode == 0
        refused = host.vm(*may_write)
        assert (refused.returncode, "Operation not permitted" in refused.stderr) == (1, True), refused
        wanted = tmp_path / "resources"
        wanted.write_text(json.dumps({"devices": [{"allow": False}, {"allow": True, "access": "w", **kmsg}]}))
        assert host.vm("update", "--resources", str(wanted), "ruled").returncode == 0
        assert host.vm(*may_write).returncode == 0
        assert "Operation not permitted" in host.vm(*may_read).stderr
        wanted.write_text(json.dumps({"devices": [{"allow": False}]}))
        assert host.vm("update", "--resources", str(wanted), "ruled").returncode == 0
        assert host.vm(*may_write).returncode == 1


def test_a_device_where_the_host_lets_none_be_made(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    root = base_layer.parent / "base"
    config = _with_devices(base_layer, [], "stat", "-c", "%t:%T %u:%g %a", "/noise", "/in/noise")
    config["linux"]["devices"] = [
        {"path": path, "type": "c", "major": 1, "minor": 9, "uid": 7, "gid": 8, "fileMode": 0o640}
        for path in ("/noise", "/in/noise/")
    ]
    del config["annotations"]["org.casemate.layers"]
    config["root"]["path"] = str(tmp_path / "root")
    subprocess.run(["cp", "-a", str(root), str(tmp_path / "root")], check=True)
    done = ran(host, "noded", config)
    assert done.stdout == "1:9 7:8 640\n" * 2, done
    # Of the host's folder the guest has but the file that its node lay over.
    assert (tmp_path / "root/noise").stat().st_size == 0


def test_a_changed_configuration_changes_nothing_after_create(host: harness.Host, base_layer: Path) -> None:
    config = harness.configuration([base_layer], "cat", "/etc/base")
    bundle = host.bundle("kept", {"ociVersion": "1.0.2"})
    (bundle / "other").mkdir()
    (bundle / "other/config.json").write_text(json.dumps(config))
    null = subprocess.DEVNULL
    words = ["create", "--bundle", str(bundle), "--config", "other/config.json", "kept"]
    assert host.vm(*words, capture_output=False, stdin=null, stdout=null).returncode == 0
    (bundle / "other/config.json").write_text("{}")
    executed = host.vm("exec", "kept", "echo", "inside")
    assert (executed.returncode, executed.stdout) == (0, "inside\n"), executed
    assert host.vm("start", "kept").returncode == 0
    assert host.vm("delete", "--force", "kept").returncode == 0


def test_hooks_have_the_variables_that_the_bundle_says(host: harness.Host, base_layer: Path, tmp_path: Path) -> None:
    config: Any = harness.configuration([base_layer], "true")
    log = tmp_path / "log"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"echo ${{ONE-none}} >> {log}"]}
    config["hooks"] = {"createRuntime": [hook, hook | {"env": []}, hook | {"env": ["ONE=own"]}]}
    done = host.vm(
        "run", "--bundle", str(host.bundle("vars", config)), "vars", input="", env=os.environ | {"ONE": "ours"}
    )
    assert (done.returncode, log.read_text()) == (0, "ours\nnone\nown\n"), done


@pytest.mark.parametrize(
    ("sysctl", "missing", "words"),
    [
        ("kernel.hostname", "", "the host name is the bundle's"),
        ("fs.mqueue.queues_max", "ipc", "of type ipc"),
        ("kernel.domainname", "uts", "of type uts"),
    ],
)
def test_a_setting_of_what_the_bundle_does_not_have_is_refused(
    host: harness.Host, base_layer: Path, sysctl: str, missing: str, words: str
) -> None:
    config: Any = harness.configuration([base_layer], "true")
    config["linux"]["sysctl"] = {sysctl: "100"}
    config["linux"]["namespaces"] = [one for one in config["linux"]["namespaces"] if one["type"] != missing]
    done = ran(host, "settings", config)
    assert (done.returncode, words in done.stderr) == (1, True), done


def test_a_bundle_that_nobody_thought_of_ends_nobody_else(host: harness.Host, base_layer: Path) -> None:
    config: Any = harness.configuration([base_layer], "true")
    config["linux"]["cgroupsPath"] = "casetest\0none"
    done = ran(host, "odd", config)
    assert (done.returncode, "cgroup path" in done.stderr) == (1, True), done
    config["linux"]["cgroupsPath"] = ""
    config["root"]["path"] = "root\0fs"
    del config["annotations"]["org.casemate.layers"]
    done = ran(host, "odd", config)
    assert done.returncode == 1, done
    assert host.vm("list").returncode == 0


def test_a_map_that_maps_everybody_to_themselves_is_none(host: harness.Host, base_layer: Path) -> None:
    config: Any = harness.configuration([base_layer], "id", "-u")
    rows = [{"containerID": 0, "hostID": 0, "size": 4294967295}]
    config["linux"] |= {"uidMappings": rows, "gidMappings": rows}
    config["linux"]["namespaces"].append({"type": "user"})
    done = ran(host, "mapped", config)
    assert (done.returncode, done.stdout) == (0, "0\n"), done
