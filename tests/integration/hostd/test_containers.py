"""Containers through hostd's own socket, with the real runtime, kernel and conmon."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest
from tests.integration.hostd.driver import Client, Hostd, Refused

from casemate.hostd import protocol
from casemate.spec.workload import (
    ContainerSpec,
    Log,
    NetworkSpec,
    PodSpec,
    Process,
    PublishedPort,
    Resources,
    Rlimit,
    Security,
    Sysctl,
    TmpfsMount,
    User,
    VolumeMount,
)

pytestmark = pytest.mark.root


def run(hostd: Hostd, client: Client, *args: str, pod: PodSpec | None = None, **values: object) -> ContainerSpec:
    pod = pod or hostd.pod()
    spec = hostd.container(pod, *args, **values)
    client.call(protocol.ContainerRun(pod, spec))
    return spec


def log_of(client: Client, spec: ContainerSpec) -> list[str]:
    client.call(protocol.ContainerLog(spec.id))
    text = b""
    while client.fds:
        number = client.take()
        with os.fdopen(number, "rb") as file:
            text += file.read()
    found = [""]
    for line in text.decode().splitlines():
        _time, _stream, tag, rest = line.split(" ", 3)
        found[-1] += rest
        if tag == "F":
            found.append("")
    return found[:-1] if not found[-1] else found


def output(hostd: Hostd, client: Client, *args: str, **values: object) -> list[str]:
    """What a container says, which then is removed."""
    spec = run(hostd, client, *args, **values)
    client.event(protocol.ContainerExited, container=spec.id)
    lines = log_of(client, spec)
    client.call(protocol.ContainerRemove(spec.id))
    return lines


def test_runs_logs_exits_and_goes(hostd: Hostd, client: Client) -> None:
    spec = run(hostd, client, "sh", "-c", "echo out; echo err >&2; exit 7")
    event = client.event(protocol.ContainerExited, container=spec.id)
    assert event.exit_code == 7
    assert not event.oom_killed
    assert sorted(log_of(client, spec)) == ["err", "out"]
    seen = client.call(protocol.Observe()).pods
    [pod] = [one for one in seen if one.id == spec.pod]
    assert pod.containers[0].state == "exited"
    assert pod.containers[0].exit_code == 7
    client.call(protocol.ContainerRemove(spec.id))
    client.call(protocol.ContainerRemove(spec.id))  # again: nothing to do
    assert spec.pod not in [one.id for one in client.call(protocol.Observe()).pods]


def test_what_a_container_sees_of_itself(hostd: Hostd, client: Client) -> None:
    pod = hostd.pod()
    script = (
        "id -u; hostname; cat /proc/self/uid_map; ls -ld /data; grep -E 'Seccomp:|NoNewPrivs|CapEff' /proc/self/status"
    )
    lines = output(hostd, client, "sh", "-c", script, pod=pod)
    assert lines[0] == "0"
    assert lines[1] == "box"
    inside, outside, count = map(int, lines[2].split())
    assert (inside, count) == (0, 65536)
    assert outside >= hostd.first_id
    assert lines[3].split()[2:4] == ["root", "root"]
    status = dict(line.split(":\t") for line in lines[4:])
    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "1"
    # Nothing granted: the empty set was asked for.
    assert int(status["CapEff"], 16) == 0


def test_what_a_container_may_not(hostd: Hostd, client: Client) -> None:
    script = """
    mount -t tmpfs none /tmp 2>&1 | grep -c denied
    cat /proc/kcore 2>/dev/null | wc -c
    (echo 1 > /proc/sys/kernel/core_pattern) 2>/dev/null && echo wrote || echo refused
    mkdir /sys/fs/cgroup/memory/x 2>/dev/null && echo made || echo refused
    mknod /tmp/d b 1 1 2>/dev/null && echo made || echo refused
    unshare -U true 2>/dev/null && echo unshared || echo refused
    ls /proc/1/root/ >/dev/null && echo own
    """
    lines = output(hostd, client, "sh", "-c", script)
    assert lines[1:] == ["0", "refused", "refused", "refused", "refused", "own"]


def test_environment_user_directory_and_limits(hostd: Hostd, client: Client) -> None:
    lines = output(
        hostd,
        client,
        "sh",
        "-c",
        "echo $A; id -u; id -G; pwd; umask; ulimit -n",
        env=("PATH=/bin", "A=b c"),
        user=User(uid=1000, gid=1000, groups=(5,), umask=0o027),
        cwd="/home/alice",
        rlimits=(Rlimit("nofile", 100, 200),),
    )
    assert lines == ["b c", "1000", "1000 5", "/home/alice", "0027", "100"]


def test_a_limit_above_the_hosts_is_lowered_with_a_warning(hostd: Hostd, client: Client) -> None:
    pod = hostd.pod()
    spec = hostd.container(pod, "sh", "-c", "ulimit -Hn", rlimits=(Rlimit("nofile", 1 << 40, 1 << 40),))
    created = client.call(protocol.ContainerRun(pod, spec))
    assert any("nofile" in warning and "lowered" in warning for warning in created.warnings)
    assert client.event(protocol.ContainerExited, container=spec.id).exit_code == 0
    client.call(protocol.ContainerRemove(spec.id))


@pytest.mark.parametrize(
    ("command", "code", "exit_code"),
    [
        ("nothere", "container.command_not_found", 127),
        ("/data/nothere", "container.command_not_found", 127),
        ("/bin/notexec", "container.command_not_executable", 126),
        ("/data", "container.command_not_executable", 126),
    ],
)
def test_commands_that_cannot_be_run(hostd: Hostd, client: Client, command: str, code: str, exit_code: int) -> None:
    pod = hostd.pod()
    before = {one.id for one in client.call(protocol.Observe(limit=100)).pods}
    with pytest.raises(Refused) as caught:
        client.call(protocol.ContainerRun(pod, hostd.container(pod, command)))
    assert caught.value.code == code
    assert caught.value.problem["exit_code"] == exit_code
    assert {one.id for one in client.call(protocol.Observe(limit=100)).pods} == before


def test_network_address_gateway_names_and_ports(hostd: Hostd, client: Client) -> None:
    address = hostd.address()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    network = NetworkSpec(
        address=address, dns=("192.0.2.53",), dns_search=("example.org",), ports=(PublishedPort(80, port),)
    )
    pod = hostd.pod(network=network)
    script = "cat /etc/resolv.conf; grep box /etc/hosts; ls /sys/class/net; (echo hello | nc -l -p 80) ; true"
    spec = run(hostd, client, "sh", "-c", script, pod=pod)
    deadline = time.monotonic() + 5
    data = b""
    while not data and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                data = connection.recv(100)
        except OSError:
            time.sleep(0.05)
    assert data == b"hello\n"
    client.event(protocol.ContainerExited, container=spec.id)
    lines = log_of(client, spec)
    assert "nameserver 192.0.2.53" in lines
    assert "search example.org" in lines
    assert f"{address}\tbox" in lines
    assert {"lo", "eth0"} <= set(lines)
    client.call(protocol.ContainerRemove(spec.id))


def test_network_none_has_only_loopback(hostd: Hostd, client: Client) -> None:
    lines = output(hostd, client, "sh", "-c", "ls /sys/class/net", pod=hostd.pod(network=NetworkSpec(mode="none")))
    assert lines == ["lo"]


def test_attach_gives_output_from_the_first_byte_and_takes_input(hostd: Hostd, client: Client) -> None:
    pod = hostd.pod()
    spec = hostd.container(pod, "sh", "-c", "echo first; cat", stdin=True)
    client.call(protocol.ContainerRun(pod, spec, attach=True))
    with socket.socket(fileno=client.take()) as connection:
        connection.settimeout(5)
        assert connection.recv(100) == b"\x02first\n"
        connection.send(b"echoed\n")
        assert connection.recv(100) == b"\x02echoed\n"
        connection.shutdown(socket.SHUT_WR)
        assert client.event(protocol.ContainerExited, container=spec.id).exit_code == 0
    client.call(protocol.ContainerRemove(spec.id))


def test_terminal_and_resize(hostd: Hostd, client: Client) -> None:
    pod = hostd.pod()
    spec = hostd.container(pod, "sh", "-c", "read x; stty size; tty", stdin=True, terminal=True)
    client.call(protocol.ContainerRun(pod, spec, attach=True))
    client.call(protocol.ContainerResize(spec.id, 33, 111))
    with socket.socket(fileno=client.take()) as connection:
        connection.settimeout(5)
        connection.send(b"\n")
        text = b""
        while b"/dev/" not in text:
            text += connection.recv(1000)[1:]
    assert b"33 111" in text
    client.event(protocol.ContainerExited, container=spec.id)
    client.call(protocol.ContainerRemove(spec.id))


def test_exec_attached_with_exit_code(hostd: Hostd, client: Client) -> None:
    spec = run(hostd, client, "sleep", "60")
    exec_id = "e" * 64
    process = Process(args=("sh", "-c", "echo in; cat; exit 5"), env=("PATH=/bin",), stdin=True)
    started = client.call(protocol.ExecStart(spec.id, exec_id, process))
    assert started.pid > 0
    with socket.socket(fileno=client.take()) as connection:
        connection.settimeout(5)
        assert connection.recv(100) == b"\x02in\n"
        connection.send(b"more")
        assert connection.recv(100) == b"\x02more"
        connection.shutdown(socket.SHUT_WR)
        assert client.event(protocol.ExecEnded, exec_id=exec_id).exit_code == 5
    # Detached, ended by a signal.
    client.call(protocol.ExecStart(spec.id, exec_id, Process(args=("sleep", "60"), env=("PATH=/bin",)), attach=False))
    client.call(protocol.ExecKill(spec.id, exec_id, signal.SIGKILL))
    assert client.event(protocol.ExecEnded, exec_id=exec_id).exit_code == 137
    with pytest.raises(Refused) as caught:
        client.call(protocol.ExecKill(spec.id, exec_id, signal.SIGTERM))
    assert caught.value.code == "hostd.exec_missing"
    with pytest.raises(Refused) as caught:
        client.call(protocol.ExecStart(spec.id, exec_id, Process(args=("nothere",), env=("PATH=/bin",))))
    assert caught.value.code == "container.command_not_found"
    client.call(protocol.ContainerRemove(spec.id, force=True))


def test_stop_start_again_keeps_what_was_written(hostd: Hostd, client: Client) -> None:
    script = "cat /tmp/x 2>/dev/null; echo $$ >> /tmp/x; wc -l < /tmp/x; sleep 60"
    spec = run(hostd, client, "sh", "-c", f"trap 'exit 3' TERM; {script} & wait")
    deadline = time.monotonic() + 5
    while not log_of(client, spec) and time.monotonic() < deadline:
        time.sleep(0.02)
    client.call(protocol.ContainerKill(spec.id, signal.SIGTERM))
    assert client.event(protocol.ContainerExited, container=spec.id).exit_code == 3
    client.call(protocol.ContainerStart(spec.id))
    deadline = time.monotonic() + 5
    while log_of(client, spec)[-1:] != ["2"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert log_of(client, spec)[-1] == "2"
    client.call(protocol.ContainerKill(spec.id, signal.SIGKILL))
    assert client.event(protocol.ContainerExited, container=spec.id).exit_code == 137
    with pytest.raises(Refused) as caught:
        client.call(protocol.ContainerKill(spec.id, signal.SIGTERM))
    assert caught.value.code == "hostd.wrong_state"
    client.call(protocol.ContainerRemove(spec.id))


def test_pause_stats_top_update(hostd: Hostd, client: Client) -> None:
    spec = run(hostd, client, "sleep", "60", resources=Resources(memory_bytes=64 << 20, pids=50))
    [usage] = client.call(protocol.ContainerStats((spec.id, "f" * 64))).containers
    assert usage.memory_limit_bytes == 64 << 20
    assert usage.pids == 1
    assert usage.pids_limit == 50
    [row] = client.call(protocol.ContainerTop(spec.id)).processes
    assert (row.command, row.uid) == ("sleep 60", 0)
    client.call(protocol.ContainerUpdate(spec.id, Resources(memory_bytes=96 << 20)))
    [usage] = client.call(protocol.ContainerStats((spec.id,))).containers
    assert (usage.memory_limit_bytes, usage.pids_limit) == (96 << 20, 50)
    client.call(protocol.ContainerPause(spec.id))
    [pod] = [one for one in client.call(protocol.Observe(limit=100)).pods if one.id == spec.pod]
    assert pod.containers[0].state == "paused"
    with pytest.raises(Refused):
        client.call(protocol.ContainerPause(spec.id))
    client.call(protocol.ContainerKill(spec.id, signal.SIGKILL))
    assert client.event(protocol.ContainerExited, container=spec.id).exit_code == 137
    client.call(protocol.ContainerRemove(spec.id))


def test_out_of_memory_is_told(hostd: Hostd, client: Client) -> None:
    spec = run(hostd, client, "sh", "-c", "tail /dev/zero", resources=Resources(memory_bytes=16 << 20, pids=50))
    event = client.event(protocol.ContainerExited, container=spec.id)
    assert event.oom_killed
    assert event.exit_code in (1, 137)
    assert client.event(protocol.ContainerOom, container=spec.id)
    client.call(protocol.ContainerRemove(spec.id))


def test_a_fork_bomb_meets_its_limit(hostd: Hostd, client: Client) -> None:
    script = "for i in $(seq 100); do sleep 30 & done 2>&1 | tail -1; echo end"
    spec = run(hostd, client, "sh", "-c", script, resources=Resources(pids=20))
    time.sleep(0.5)
    [usage] = client.call(protocol.ContainerStats((spec.id,))).containers or [None]
    assert usage is None or usage.pids <= 20
    client.call(protocol.ContainerRemove(spec.id, force=True))


def test_init_reaps_and_forwards(hostd: Hostd, client: Client) -> None:
    lines = output(hostd, client, "sh", "-c", "cat /proc/1/comm", init=True)
    assert lines == ["init"]  # /dev/init is catatonit


def test_volume_keeps_owners_and_is_filled_from_the_image(hostd: Hostd, client: Client) -> None:
    client.call(protocol.VolumeCreate("default", "v1"))
    mounts = (VolumeMount("v1", "/data"),)
    lines = output(
        hostd,
        client,
        "sh",
        "-c",
        "cat /data/seed; echo new > /data/new; chown 1000 /data/new",
        mounts=mounts,
        security=Security(capabilities=("CAP_CHOWN",)),
    )
    assert lines == ["from the image"]
    spec = run(hostd, client, "sh", "-c", "stat -c %u /data/new /data/seed; sleep 60", mounts=mounts)
    with pytest.raises(Refused) as caught:
        client.call(protocol.VolumeRemove("default", "v1"))
    assert caught.value.code == "object.conflict"
    client.call(protocol.ContainerRemove(spec.id, force=True))
    assert client.call(protocol.VolumeList("default")).volumes == (("v1", -1),)
    [(name, size)] = client.call(protocol.VolumeList("default", sizes=True)).volumes
    assert name == "v1"
    assert 8192 <= size < 1 << 20  # a folder and two small files
    client.call(protocol.VolumeRemove("default", "v1"))


def test_tmpfs_read_only_sysctl_and_shm(hostd: Hostd, client: Client) -> None:
    script = """
    touch /x 2>/dev/null && echo wrote || echo read-only
    touch /scratch/x && echo scratch
    df -k /scratch | tail -1 | awk '{print $2}' 2>/dev/null || df -k /scratch | tail -1
    cat /proc/sys/net/core/somaxconn
    """
    lines = output(
        hostd,
        client,
        "sh",
        "-c",
        script,
        read_only=True,
        mounts=(TmpfsMount("/scratch", size_bytes=1 << 20),),
        sysctls=(Sysctl("net.core.somaxconn", "77"),),
    )
    assert lines[:2] == ["read-only", "scratch"]
    assert lines[-1] == "77"


def test_two_containers_share_the_pods_network_ipc_and_ids(hostd: Hostd, client: Client) -> None:
    pod = hostd.pod()
    ready = client.call(protocol.PodCreate(pod))
    assert ready.first_id >= hostd.first_id
    assert ready.interface.startswith(hostd.scope.link_prefix)
    links = "for n in net ipc uts user; do readlink /proc/self/ns/$n; done"
    seen = []
    for _ in range(2):
        spec = hostd.container(pod, "sh", "-c", links)
        client.call(protocol.ContainerCreate(spec))
        client.call(protocol.ContainerStart(spec.id))
        client.event(protocol.ContainerExited, container=spec.id)
        seen.append(log_of(client, spec))
    assert seen[0][:4] == seen[1][:4]
    with pytest.raises(Refused) as caught:
        client.call(protocol.PodRemove(pod.id))
    assert caught.value.code == "hostd.wrong_state"
    client.call(protocol.PodRemove(pod.id, force=True))
    client.call(protocol.PodRemove(pod.id))


def test_log_is_bounded_and_its_end_stays(hostd: Hostd, client: Client) -> None:
    bound = 64 << 10
    script = """
    i=0
    while [ $i -lt 6000 ]; do
        echo line $i of a container that says much
        i=$((i+1)); [ $((i%500)) = 0 ] && sleep 0.4
    done
    true
    """
    spec = run(hostd, client, "sh", "-c", script, log=Log(max_bytes=bound))
    folder = hostd.state / "pods" / spec.pod / spec.id
    highest = 0
    while not any(isinstance(one, protocol.ContainerExited) for one in client.events):
        highest = max(highest, sum(one.stat().st_size for one in folder.glob("log*") if one.exists()))
        client.call(protocol.ContainerLog(spec.id))
        while client.fds:
            os.close(client.take())
        time.sleep(0.1)
    lines = log_of(client, spec)
    assert lines[-1] == "line 5999 of a container that says much"
    assert len("\n".join(lines)) > bound // 8
    numbers = [int(line.split()[1]) for line in lines]
    assert numbers == list(range(numbers[0], 6000))
    assert highest <= 2 * bound
    client.call(protocol.ContainerRemove(spec.id))


def test_no_log_is_kept_when_none_is_wanted(hostd: Hostd, client: Client) -> None:
    spec = run(hostd, client, "echo", "x", log=Log(keep=False))
    client.event(protocol.ContainerExited, container=spec.id)
    assert log_of(client, spec) == []
    client.call(protocol.ContainerRemove(spec.id))


def test_files_in_and_out(hostd: Hostd, client: Client, tmp_path: Path) -> None:
    spec = run(hostd, client, "sh", "-c", "echo changed > /data/seed; ln -s /etc/passwd /data/link; mkfifo /data/pipe")
    client.event(protocol.ContainerExited, container=spec.id)
    client.call(protocol.ContainerReadFile(spec.id, "/data/link"))
    with os.fdopen(client.take()) as file:
        assert file.read().startswith("root:x:0:0")
    for path, code in (
        ("/data/pipe", "argument.invalid"),
        ("/nothere", "object.not_found"),
        ("/data", "argument.invalid"),
    ):
        with pytest.raises(Refused) as caught:
            client.call(protocol.ContainerReadFile(spec.id, path))
        assert caught.value.code == code
    with (tmp_path / "diff").open("wb+") as file:
        client.call(protocol.ContainerDiff(spec.id), [file.fileno()])
        file.seek(0)
        assert {b"C /data/seed", b"A /data/link"} <= set(file.read().split(b"\0"))
    with (tmp_path / "tar").open("wb+") as file:
        client.call(protocol.ContainerArchive(spec.id, "/data/seed"), [file.fileno()])
        file.seek(0)
        assert b"changed\n" in file.read()
        file.seek(0)
        client.call(protocol.ContainerExtract(spec.id, "/home"), [file.fileno()])
    client.call(protocol.ContainerReadFile(spec.id, "/home/seed"))
    with os.fdopen(client.take()) as file:
        assert file.read() == "changed\n"
    client.call(protocol.ContainerRemove(spec.id))


def test_security_words_do_what_they_say(hostd: Hostd, client: Client) -> None:
    security = Security(capabilities=("CAP_CHOWN", "CAP_KILL"), no_new_privileges=False)
    lines = output(
        hostd,
        client,
        "sh",
        "-c",
        "grep -E 'CapEff|CapBnd|CapInh|CapAmb|NoNewPrivs' /proc/self/status",
        security=security,
    )
    status = dict(line.split(":\t") for line in lines)
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 1 << 0 | 1 << 5
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "0"
