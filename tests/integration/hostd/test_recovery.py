"""hostd killed at any point: containers do not notice, records and kernel become one again, nothing leaks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
from tests.integration.hostd.driver import Client, Refused, running
from tests.integration.hostd.test_containers import log_of, run

from casemate.hostd import protocol
from casemate.spec.workload import NetworkSpec, Process, PublishedPort

pytestmark = pytest.mark.root

#: Every step of the journal in the life of a container, in order (tests/integration/hostd/stepping.py).
STEPS = (
    "pod.recorded",
    "pod.namespaces",
    "pod.cgroup",
    "pod.link",
    "pod.ready",
    "container.recorded",
    "container.rootfs",
    "container.binds",
    "container.bundle",
    "container.conmon",
    "container.created",
    "container.limited",
    "pod.ports",
    "container.starting",
    "container.started",
    "container.exited",
    "container.removing",
    "container.retired",
    "container.unmounted",
    "container.gone",
    "pod.removing",
    "pod.cgroup_gone",
    "pod.namespaces_gone",
    "pod.gone",
)


def observed(client: Client) -> dict[str, protocol.ObservedContainer]:
    return {one.id: one for pod in client.call(protocol.Observe(limit=100)).pods for one in pod.containers}


def test_containers_outlive_hostd_and_nothing_is_lost() -> None:
    with running() as hostd:
        client = Client(hostd.run / "hostd.sock")
        pod = hostd.pod()
        talker = hostd.container(pod, "sh", "-c", "i=0; while true; do echo $i; i=$((i+1)); sleep 0.02; done")
        client.call(protocol.ContainerRun(pod, talker))
        ender = run(hostd, client, "sh", "-c", "sleep 0.7; exit 9")
        after = run(hostd, client, "sh", "-c", "sleep 3; exit 4")
        client.call(protocol.ExecStart(talker.id, "a" * 64, Process(args=("cat",), env=("PATH=/bin",), stdin=True)))
        attached = socket.socket(fileno=client.take())
        client.call(
            protocol.ExecStart(talker.id, "b" * 64, Process(args=("sleep", "0.5"), env=("PATH=/bin",)), attach=False)
        )
        before = observed(client)[talker.id].pid
        hostd.kill()
        client.close()
        time.sleep(1.0)  # the daemon is away while one ends and another talks
        attached.settimeout(5)
        attached.send(b"through\n")
        assert attached.recv(100) == b"\x02through\n"
        hostd.start()
        client = hostd.wait_ready()
        seen = observed(client)
        assert (seen[talker.id].state, seen[talker.id].pid) == ("running", before)
        assert (seen[ender.id].state, seen[ender.id].exit_code, seen[ender.id].reason) == ("exited", 9, "")
        assert seen[after.id].state == "running"
        numbers = [int(line) for line in log_of(client, talker)]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > 30
        assert client.event(protocol.ContainerExited, container=after.id).exit_code == 4
        # The exec that went on is known, and ends as it should.
        attached.shutdown(socket.SHUT_WR)
        assert client.event(protocol.ExecEnded, exec_id="a" * 64).exit_code == 0
        attached.close()
        with pytest.raises(Refused):
            client.call(protocol.ExecKill(talker.id, "b" * 64, signal.SIGTERM))
        client.call(protocol.ContainerKill(talker.id, signal.SIGKILL))
        assert client.event(protocol.ContainerExited, container=talker.id).exit_code == 137
        client.close()


def test_a_reboot_leaves_exited_containers_that_start_again_with_their_files() -> None:
    with running() as hostd:
        client = Client(hostd.run / "hostd.sock")
        pod = hostd.pod()
        spec = hostd.container(pod, "sh", "-c", "echo $$ >> /data/starts; wc -l < /data/starts; sleep 60")
        client.call(protocol.ContainerRun(pod, spec))
        time.sleep(0.3)
        conmon = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and is_conmon(p, spec.id)]
        client.close()
        hostd.kill()
        # What a reboot does: no process, no mount, no /run, another boot id.
        for pid in conmon:
            os.kill(pid, signal.SIGKILL)
        subprocess.run(["sh", "-c", f"umount -R -l {hostd.run}; rm -rf {hostd.run}/*"], check=True, capture_output=True)
        for hierarchy in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")):
            procs = hierarchy / hostd.scope.cgroup / pod.id / spec.id / "cgroup.procs"
            if procs.exists():
                for pid in procs.read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
        for path in hostd.state.glob("pods/*/pod.json"), hostd.state.glob("pods/*/*/container.json"):
            for record in path:
                value = msgspec.json.decode(record.read_bytes())
                record.write_bytes(msgspec.json.encode(value | {"boot_id": "another"}))
        time.sleep(0.2)
        hostd.start()
        client = hostd.wait_ready()
        seen = observed(client)[spec.id]
        assert (seen.state, seen.exit_code, seen.reason) == ("exited", 255, "the host restarted")
        client.call(protocol.ContainerStart(spec.id))
        deadline = time.monotonic() + 5
        while log_of(client, spec)[-1:] != ["2"] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert log_of(client, spec)[-1] == "2"
        client.close()


def is_conmon(place: Path, container: str) -> bool:
    try:
        return place.joinpath("comm").read_text() == "conmon\n" and container in place.joinpath("cmdline").read_text()
    except OSError:
        return False


def test_a_conmon_that_is_killed_is_told_and_its_container_ended() -> None:
    with running() as hostd:
        client = Client(hostd.run / "hostd.sock")
        pod = hostd.pod()
        spec = hostd.container(pod, "sleep", "60")
        created = client.call(protocol.ContainerRun(pod, spec))
        os.kill(created.conmon_pid, signal.SIGKILL)
        event = client.event(protocol.ContainerExited, container=spec.id)
        assert event.exit_code == 255
        assert observed(client)[spec.id].reason
        deadline = time.monotonic() + 2
        while Path(f"/proc/{created.pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not Path(f"/proc/{created.pid}").exists()
        client.close()


def test_killed_at_each_step_of_the_journal_it_converges_and_leaks_nothing() -> None:
    missed = []
    with running() as hostd:
        assert hostd.stop() == 0
        for step in STEPS:
            hostd.start(module="tests.integration.hostd.stepping", TEST_CRASH_AT=step)
            client = hostd.wait_ready()
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            pod = hostd.pod(network=NetworkSpec(address=hostd.address(), ports=(PublishedPort(80, port),)))
            spec = hostd.container(pod, "true")
            try:
                client.call(protocol.ContainerRun(pod, spec))
                client.event(protocol.ContainerExited, container=spec.id)
                client.call(protocol.ContainerRemove(spec.id))
                missed.append(step)
            except (ConnectionError, OSError):
                pass
            client.close()
            assert hostd.process is not None
            hostd.process.kill()
            hostd.process.wait()
            hostd.start()
            client = hostd.wait_ready()
            found = [one for one in client.call(protocol.Doctor()).findings if one.left_over]
            assert not found, (step, found)
            # What is still there is whole: it can be seen, and removed.
            for one in client.call(protocol.Observe(limit=100)).pods:
                assert one.id == pod.id
                assert all(container.state in ("created", "running", "exited") for container in one.containers)
                client.call(protocol.PodRemove(one.id, force=True))
            assert not [one for one in client.call(protocol.Doctor()).findings if one.left_over], step
            client.close()
            assert hostd.stop() == 0
    assert not missed, f"never passed: {missed}"


def test_the_doctor_names_and_prune_removes_what_nobody_owns() -> None:
    with running() as hostd:
        client = Client(hostd.run / "hostd.sock")
        pod = hostd.pod()
        spec = hostd.container(pod, "sleep", "60")
        client.call(protocol.ContainerRun(pod, spec))
        client.close()
        hostd.kill()
        # The records are gone, everything else is there: the worst that a crash could leave.
        subprocess.run(["rm", "-rf", str(hostd.state / "pods" / pod.id)], check=True)
        hostd.start()
        client = hostd.wait_ready()
        kinds = {one.check for one in client.call(protocol.Doctor()).findings if one.left_over}
        expected = {
            "process",
            "mount",
            "network namespace",
            "namespaces",
            "cgroup",
            "interface",
            "bundle",
            "runtime state",
        }
        assert expected <= kinds
        before = len(client.call(protocol.Prune(dry_run=True)).findings)
        assert before >= len(expected)
        failed = [one for one in client.call(protocol.Prune()).findings if one.severity == "error"]
        assert not failed
        time.sleep(0.1)
        client.call(protocol.Prune())  # the exit file that the killed conmon's container wrote
        assert not [one for one in client.call(protocol.Doctor()).findings if one.left_over]
        client.close()


def test_a_pod_that_casemated_does_not_know_goes_only_when_asked() -> None:
    with running() as hostd:
        client = Client(hostd.run / "hostd.sock")
        known, unknown = run(hostd, client, "sleep", "60"), run(hostd, client, "sleep", "60")
        client.call(protocol.Prune())
        assert set(observed(client)) == {known.id, unknown.id}
        (named,) = [one for one in client.call(protocol.Doctor((known.pod,))).findings if one.left_over]
        assert unknown.pod[:12] in named.detail
        client.call(protocol.Prune(pods=(known.pod,)))
        assert set(observed(client)) == {known.id}
        client.close()


def test_terminated_it_ends_and_leaves_containers_alone() -> None:
    with running() as hostd:
        client = Client(hostd.run / "hostd.sock")
        spec = run(hostd, client, "sleep", "60")
        pid = observed(client)[spec.id].pid
        assert hostd.stop() == 0
        assert Path(f"/proc/{pid}").exists()
        client.close()
        hostd.start()
        client = hostd.wait_ready()
        assert observed(client)[spec.id].pid == pid
        client.close()
