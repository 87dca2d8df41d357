"""What must be refused at hostd's socket. The list:

- a peer of another uid; a second connection while one lives; a first operation that is not hello;
- garbage, a truncated message, unknown operations and fields, numbers out of range, a message that is too large,
  deep nesting, too many descriptors; a peer that does nothing but that is hung up on;
- more requests at once than the bound; a peer that never reads;
- ids with ``../``, layers that are not here, addresses outside the pool or taken, a pod's project that differs;
- the caller's descriptor: none, a file, a pair that casemated made itself, a datagram socket, a listener, a client's
  end, a socket bound to the API's name but connected to a server of root's, more than one;
- grants: host paths, devices, capabilities, namespaces, privileged, seccomp unconfined, by uid and by group;
- mount targets over /, /proc, /sys, /dev or with ``..``; two mounts at one target; host sysctls; odd devices.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.integration.hostd.driver import Client, Hostd, Refused, running
from tests.integration.hostd.test_containers import output, run

from casemate.hostd import protocol
from casemate.spec.workload import (
    BindMount,
    Device,
    NetworkSpec,
    Resources,
    Security,
    Sysctl,
    TmpfsMount,
)

pytestmark = pytest.mark.root
PERSON = 12345


def refusal(client: Client, operation: object, fds: list[int] | None = None) -> str:
    with pytest.raises(Refused) as caught:
        client.call(operation, fds)
    assert caught.value.problem["remedy"]
    return str(caught.value.code)


# --- peers ------------------------------------------------------------------------------------------------------


def test_another_uid_is_refused(hostd: Hostd) -> None:
    path = hostd.run / "hostd.sock"
    path.chmod(0o666)  # the mode alone must not be what protects
    script = f"""
import os, socket
os.setgid({PERSON}); os.setuid({PERSON})
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect({str(path)!r})
data = s.recv(4096); assert b"hostd.peer_refused" in data, data
assert s.recv(4096) == b""
"""
    try:
        subprocess.run([sys.executable, "-c", script], check=True, timeout=20)
    finally:
        path.chmod(0o600)


def test_a_second_connection_is_refused_while_one_lives(hostd: Hostd, client: Client) -> None:
    # The answer may be overtaken by the close, since our hello was never read.
    with pytest.raises((Refused, ConnectionError)) as caught:
        Client(hostd.run / "hostd.sock").close()
    assert getattr(caught.value, "code", "hostd.peer_refused") == "hostd.peer_refused"
    assert "another connection lives" in hostd.log.read_text()
    assert client.call(protocol.Observe()).pods == ()


# --- messages ---------------------------------------------------------------------------------------------------


def raw(client: Client, data: bytes) -> str:
    client.send_raw(data)
    message = client.receive()
    assert message is not None
    assert isinstance(message.answer, protocol.Failed)
    return str(message.answer.problem["code"])


def encoded(**values: object) -> bytes:
    return msgspec.msgpack.encode({"number": 7, "operation": {"op": "observe"}} | values)


GARBAGE = {
    "noise": b"\xc1\xff\x00garbage",
    "half a message": encoded()[:-3],
    "two messages": encoded() + encoded(),
    "unknown operation": encoded(operation={"op": "root.shell"}),
    "unknown field": encoded(operation={"op": "observe", "extra": 1}),
    "unknown member": encoded(extra=1),
    "number zero": encoded(number=0),
    "number too large": encoded(number=1 << 63),
    "limit out of range": encoded(operation={"op": "observe", "limit": 101}),
    "id with a path": encoded(operation={"op": "pod.remove", "pod": "../" * 20 + "etc"}),
    "id with a line break": encoded(operation={"op": "pod.remove", "pod": "a" * 64 + "\n"}),
    "id in capitals": encoded(operation={"op": "container.top", "container": "A" * 64}),
    "layer that is a path": encoded(operation={"op": "layer.adopt", "layer": "../../../../etc/shadow"}),
    "volume that is a path": encoded(operation={"op": "volume.create", "project": "default", "name": ".."}),
    "project that is a path": encoded(operation={"op": "volume.create", "project": "../x", "name": "v"}),
    "signal 0": encoded(operation={"op": "container.kill", "container": "a" * 64, "signal": 0}),
    "deep nesting": b"\x91" * 100_000,
    "a million entries promised": b"\xdd\x00\x0f\x42\x40",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_messages_that_are_no_requests(client: Client, name: str) -> None:
    assert raw(client, GARBAGE[name]) == "hostd.protocol_violated"
    assert client.call(protocol.Observe())


def test_a_message_that_is_too_large(client: Client) -> None:
    assert raw(client, b"x" * (protocol.MAX_MESSAGE_BYTES + 1)) == "limit.exceeded"
    assert client.call(protocol.Observe())


def test_too_many_descriptors(client: Client) -> None:
    numbers = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    try:
        client.send_raw(encoded(), numbers)
        message = client.receive()
        assert message is not None
        assert isinstance(message.answer, protocol.Failed)
    finally:
        for number in numbers:
            os.close(number)
    assert client.call(protocol.Observe())


def test_the_first_operation_is_hello_of_this_version(hostd: Hostd) -> None:
    for operation in (protocol.Observe(), protocol.Hello(version=2)):
        deadline = time.monotonic() + 5
        while True:
            one = Client(hostd.run / "hostd.sock", hello=False)
            try:
                assert refusal(one, operation) == "hostd.protocol_violated"
                break
            except (ConnectionError, OSError):
                assert time.monotonic() < deadline
            finally:
                one.close()
            time.sleep(0.01)


def test_a_peer_that_only_sends_garbage_is_hung_up_on(client: Client) -> None:
    try:
        for _ in range(40):
            client.send_raw(b"\xc1")
            if client.receive() is None:
                return
    except OSError:
        return
    pytest.fail("40 messages of garbage were answered")


def test_more_requests_than_the_bound_are_refused_and_the_others_served(hostd: Hostd, client: Client) -> None:
    pod = hostd.pod()
    client.call(protocol.PodCreate(pod))
    numbers = [client.send(protocol.Doctor()) for _ in range(90)]
    served = busy = 0
    for number in numbers:
        try:
            client.answer(number)
            served += 1
        except Refused as refused:
            busy += refused.code == "hostd.busy" and refused.problem["retryable"]
    assert served >= 30
    assert busy >= 1
    assert served + busy == len(numbers)
    client.call(protocol.PodRemove(pod.id))


def test_a_peer_that_never_reads_is_dropped_and_the_next_is_served() -> None:
    with running() as hostd:
        client = Client(hostd.run / "hostd.sock")
        client.socket.settimeout(10)
        try:
            for _ in range(20_000):
                client.send(protocol.Observe())
        except (BrokenPipeError, ConnectionError, TimeoutError):
            pass
        client.close()
        again = hostd.wait_ready()
        assert again.call(protocol.Observe()).pods == ()
        again.close()


# --- invariants -------------------------------------------------------------------------------------------------


def test_addresses_layers_and_owners(hostd: Hostd, client: Client) -> None:
    taken = hostd.pod()
    client.call(protocol.PodCreate(taken))
    for address, code in (
        ("", "argument.invalid"),
        ("8.8.8.8", "argument.invalid"),
        ("nonsense", "argument.invalid"),
        (hostd.scope.pool.replace("0/24", "0"), "argument.invalid"),
        (hostd.scope.pool.replace("0/24", "255"), "argument.invalid"),
        (taken.network.address, "hostd.address_taken"),
    ):
        assert refusal(client, protocol.PodCreate(hostd.pod(network=NetworkSpec(address=address)))) == code
    assert refusal(client, protocol.PodCreate(taken)) == "object.conflict"
    assert (
        refusal(client, protocol.ContainerCreate(hostd.container(taken, "true", layers=("0" * 64,))))
        == "argument.invalid"
    )
    assert (
        refusal(client, protocol.ContainerCreate(hostd.container(taken, "true", project="other"))) == "argument.invalid"
    )
    assert refusal(client, protocol.ContainerCreate(hostd.container(hostd.pod(), "true"))) == "hostd.pod_missing"
    for operation in (
        protocol.ContainerStart("0" * 64),
        protocol.ContainerKill("0" * 64, 9),
        protocol.ContainerTop("0" * 64),
    ):
        assert refusal(client, operation) == "hostd.container_missing"
    assert refusal(client, protocol.PodUpdate("0" * 64, Resources())) == "hostd.pod_missing"
    assert refusal(client, protocol.LayerAdopt("0" * 64)) == "storage.layer_missing"
    # No guest kernel is in this hostd's folders; gVisor may be on the host.
    assert refusal(client, protocol.PodCreate(hostd.pod(level="microvm"))) == "isolation.level_unavailable"
    client.call(protocol.PodRemove(taken.id))


@pytest.mark.parametrize("target", ["/", "/proc", "/proc/sys/kernel", "/sys/x", "/dev", "/a/../proc", "/./", "//"])
def test_mount_targets(hostd: Hostd, client: Client, target: str) -> None:
    pod = hostd.pod()
    spec = hostd.container(pod, "true", mounts=(TmpfsMount(target),))
    assert refusal(client, protocol.ContainerRun(pod, spec)) == "isolation.mount_target_refused"


def test_other_refusals_of_containers(hostd: Hostd, client: Client) -> None:
    pod = hostd.pod()
    for values, code in (
        ({"mounts": (TmpfsMount("/a"), TmpfsMount("/a/"))}, "argument.invalid"),
        ({"sysctls": (Sysctl("kernel.core_pattern", "x"),)}, "isolation.sysctl_refused"),
        ({"sysctls": (Sysctl("net.core.somaxconn", "1\n2"),)}, "isolation.sysctl_refused"),
        ({"resources": Resources(memory_bytes=1 << 20)}, "argument.invalid"),
        ({"resources": Resources(memory_bytes=64 << 20, memory_swap_bytes=32 << 20)}, "argument.invalid"),
        ({"resources": Resources(cpuset="3-1")}, "argument.invalid"),
        ({"resources": Resources(cpu_millis=1)}, "argument.invalid"),
        ({"env": ("A=\0",)}, "argument.invalid"),
        ({"layers": ("1" * 64,)}, "argument.invalid"),
        ({"writable_bytes": 1000}, "argument.invalid"),
    ):
        spec = hostd.container(pod, "true", **values)
        assert refusal(client, protocol.ContainerRun(pod, spec)) == code, values
    assert client.call(protocol.Observe()).pods == ()


# --- the caller -------------------------------------------------------------------------------------------------


class Api:
    """A stand-in for the API's socket, at its name."""

    def __init__(self, hostd: Hostd) -> None:
        self.path = hostd.api / "api.sock"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.path.chmod(0o666)
        self.listener.listen()
        self.client: subprocess.Popen[bytes] | None = None

    def accepted(self, uid: int = 0, gid: int = 0, groups: tuple[int, ...] = ()) -> socket.socket:
        """The API's end of a connection that a process of *uid* has open."""
        script = f"""
import os, socket, sys
os.setgroups({list(groups)!r}); os.setgid({gid}); os.setuid({uid})
s = socket.socket(socket.AF_UNIX); s.connect({str(self.path)!r}); s.recv(1)
"""
        if self.client is not None:
            self.client.wait(10)
        self.client = subprocess.Popen([sys.executable, "-c", script])
        connection, _ = self.listener.accept()
        return connection

    def close(self) -> None:
        self.listener.close()
        self.path.unlink()
        if self.client is not None:
            self.client.wait(10)


@pytest.fixture
def api(hostd: Hostd) -> Iterator[Api]:
    one = Api(hostd)
    yield one
    one.close()


def needs_grant(hostd: Hostd) -> dict[str, tuple[dict[str, object], dict[str, object]]]:
    """What -> (values of the container, values of the pod)."""
    return {
        "host_paths": ({"mounts": (BindMount("/usr", "/host"),)}, {}),
        "devices": ({"devices": (Device("/dev/null", "/dev/null2"),)}, {}),
        "capabilities": ({"security": Security(capabilities=("CAP_NET_ADMIN",))}, {}),
        "privileged": ({"security": Security(privileged=True)}, {}),
        "seccomp": ({"security": Security(seccomp="unconfined")}, {}),
        "host_pid": ({}, {"host_pid": True}),
        "host_ipc": ({}, {"host_ipc": True}),
        "host_network": ({}, {"network": NetworkSpec(mode="host")}),
    }


@pytest.mark.parametrize("what", list(needs_grant(None)))  # type: ignore[arg-type]
def test_nothing_that_needs_a_grant_without_a_caller_or_for_a_person_or_refused_to_root(
    hostd: Hostd, client: Client, api: Api, what: str
) -> None:
    values, pod_values = needs_grant(hostd)[what]
    pod = hostd.pod(**pod_values)
    spec = hostd.container(pod, "true", **values)
    assert refusal(client, protocol.ContainerRun(pod, spec)) == "access.grant_missing"
    with api.accepted(PERSON, PERSON) as person:
        assert refusal(client, protocol.ContainerRun(pod, spec), [person.fileno()]) == "access.grant_missing"
    with api.accepted() as root:
        client.call(protocol.ContainerRun(pod, spec), [root.fileno()])
    assert client.event(protocol.ContainerExited, container=spec.id).exit_code == 0
    client.call(protocol.ContainerRemove(spec.id))


def test_descriptors_that_prove_nothing(hostd: Hostd, client: Client, api: Api, tmp_path: Path) -> None:
    pod = hostd.pod()
    spec = hostd.container(pod, "true", mounts=(BindMount("/usr", "/host"),))
    operation = protocol.ContainerRun(pod, spec)
    ours, theirs = socket.socketpair()
    datagram, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    # A server of root's, and a socket that bears the API's name connected to it: SO_PEERCRED says root.
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s"))
    server.listen()
    forged = socket.socket(socket.AF_UNIX)
    forged.bind(str(hostd.api / ".api.sock.1"))
    forged.connect(str(tmp_path / "s"))
    internet = socket.create_server(("127.0.0.1", 0))
    number = os.open("/etc/passwd", os.O_RDONLY)
    unconnected = socket.socket(socket.AF_UNIX)
    accepted = api.accepted()
    try:
        for what in (ours, datagram, server, forged, internet, number, unconnected, api.listener):
            given = what if isinstance(what, int) else what.fileno()
            assert refusal(client, operation, [given]) == "hostd.caller_forged", what
        assert refusal(client, operation, [accepted.fileno(), accepted.fileno()]) == "hostd.protocol_violated"
    finally:
        os.close(number)
        for one in (ours, theirs, datagram, other, server, forged, internet, unconnected, accepted):
            one.close()
        (hostd.api / ".api.sock.1").unlink()
    assert client.call(protocol.Observe()).pods == ()


def test_a_person_with_the_grant_reaches_only_what_is_theirs(tmp_path: Path) -> None:
    folder = Path("/tmp") / f"cm-grant-{os.getpid()}"
    mine, locked = folder / "mine", folder / "locked"
    mine.mkdir(parents=True)
    locked.mkdir(mode=0o700)
    folder.chmod(0o755)
    os.chown(mine, PERSON, PERSON)
    (mine / "rootfile").write_text("of root")
    (mine / "rootfile").chmod(0o644)
    try:
        with running(CASEMATE_GRANTS_HOST_PATHS="@54321") as hostd:
            api = Api(hostd)
            client = Client(hostd.run / "hostd.sock")
            with api.accepted(PERSON, PERSON, (54321,)) as person:
                pod = hostd.pod()
                spec = hostd.container(
                    pod,
                    "sh",
                    "-c",
                    "touch /m/new && stat -c '%u %n' /m/new /m/rootfile;"
                    " (echo x >> /m/rootfile) 2>/dev/null || echo kept",
                    mounts=(BindMount(str(mine), "/m"),),
                    security=Security(capabilities=("CAP_DAC_OVERRIDE",)),
                )
                client.call(protocol.ContainerRun(pod, spec), [person.fileno()])
                client.event(protocol.ContainerExited, container=spec.id)
                client.call(protocol.ContainerLog(spec.id))
                with os.fdopen(client.take()) as file:
                    lines = [line.split(" ", 3)[3].strip() for line in file]
                assert lines == ["0 /m/new", "65534 /m/rootfile", "kept"]
                # On the disk the file is the person's own; it can be started again without them.
                assert (mine / "new").stat().st_uid == PERSON
                client.call(protocol.ContainerStart(spec.id))
                client.event(protocol.ContainerExited, container=spec.id)
                for path, code in (
                    (str(locked / "x"), "access.denied"),
                    ("/nothere", "object.not_found"),
                    ("/tmp/../etc", "argument.invalid"),
                ):
                    other = hostd.pod()
                    bad = hostd.container(other, "true", mounts=(BindMount(path, "/m", create=True),))
                    assert refusal(client, protocol.ContainerRun(other, bad), [person.fileno()]) == code
            client.close()
            api.close()
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_root_binds_pass_owners_through_and_devices_work(hostd: Hostd, client: Client, api: Api) -> None:
    folder = Path("/tmp") / f"cm-root-{os.getpid()}"
    folder.mkdir()
    try:
        os.chown(folder, 1000, 1000)
        pod = hostd.pod()
        spec = hostd.container(
            pod,
            "sh",
            "-c",
            "stat -c %u /m; touch /m/x; head -c 4 /dev/zero2 | wc -c",
            mounts=(BindMount(str(folder / "made"), "/made", create=True), BindMount(str(folder), "/m")),
            devices=(Device("/dev/zero", "/dev/zero2", "r"),),
            security=Security(capabilities=("CAP_DAC_OVERRIDE",)),
        )
        with api.accepted() as root:
            client.call(protocol.ContainerRun(pod, spec), [root.fileno()])
        client.event(protocol.ContainerExited, container=spec.id)
        client.call(protocol.ContainerLog(spec.id))
        with os.fdopen(client.take()) as file:
            assert [line.split(" ", 3)[3].strip() for line in file] == ["1000", "4"]
        assert (folder / "x").stat().st_uid == 0
        assert (folder / "made").is_dir()
        client.call(protocol.ContainerRemove(spec.id))
        odd = hostd.container(pod := hostd.pod(), "true", devices=(Device("/dev/../etc/passwd", "/dev/x"),))
        with api.accepted() as root:
            assert refusal(client, protocol.ContainerRun(pod, odd), [root.fileno()]) == "argument.invalid"
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_the_daemon_itself(hostd: Hostd) -> None:
    assert hostd.process is not None
    place = Path(f"/proc/{hostd.process.pid}")
    opened = [os.readlink(one) for one in (place / "fd").iterdir()]
    assert not [one for one in opened if "pytest" in one]
    limits = (place / "limits").read_text()
    assert "Max core file size        0" in limits
    assert hostd.run.stat().st_mode & 0o777 == 0o711
    assert hostd.state.stat().st_mode & 0o777 == 0o700
    assert (hostd.run / "hostd.sock").stat().st_mode & 0o777 == 0o600


def test_a_container_cannot_be_entered_by_others_of_the_host(hostd: Hostd, client: Client) -> None:
    spec = run(hostd, client, "sleep", "60")
    folder = hostd.run / "c" / spec.id
    script = f"import os; os.setgid({PERSON}); os.setuid({PERSON}); os.stat({str(folder / 'rootfs' / 'bin')!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert b"PermissionError" in done.stderr
    client.call(protocol.ContainerRemove(spec.id, force=True))
    assert output(hostd, client, "echo", "still") == ["still"]
