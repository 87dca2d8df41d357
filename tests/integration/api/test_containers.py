"""The life of a container through the API, against both daemons."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator

import pytest
from tests.integration.daemons import Daemons
from tests.terminal import until

from casemate.sdk import ApiError
from casemate.spec.api import NetworkRequest, PortRequest, RestartPolicy
from casemate.spec.workload import Resources, VolumeMount

pytestmark = pytest.mark.root


@pytest.fixture
def name(daemons: Daemons) -> Iterator[str]:
    """A fresh name, whose container is removed at the end."""
    fresh = f"t-{uuid.uuid4().hex[:10]}"
    yield fresh
    if daemons.client.containers(f"name={fresh}", everything=True):
        daemons.client.remove(fresh, force=True, volumes=True)


def code_of(error: pytest.ExceptionInfo[ApiError]) -> str:
    assert error.value.problem["remedy"]
    assert error.value.problem["trace_id"]
    return error.value.problem_code


def sleeper(daemons: Daemons, image: str, name: str, **fields: object) -> str:
    script = "trap 'exit 7' TERM; echo listens; while :; do sleep 0.1; done"
    created = daemons.client.create(image, ["sh", "-c", script], name=name, **fields)
    daemons.client.start(created.id)
    next(daemons.client.logs(created.id, follow=True))  # from here on TERM has its trap
    return created.id


def test_run_gives_output_and_exit_code_and_leaves_nothing(daemons: Daemons, busybox: str, name: str) -> None:
    ran = daemons.client.run(busybox, ["sh", "-c", "echo out; echo err >&2; exit 3"], name=name)
    assert (ran.exit_code, ran.stdout, ran.stderr) == (3, b"out\n", b"err\n")
    # The name is free as soon as the exit code is known.
    again = daemons.client.run(busybox, ["true"], name=name)
    assert again.exit_code == 0
    assert not daemons.client.containers(f"name={name}", everything=True)


def test_all_output_arrives_when_the_process_ends_at_once(daemons: Daemons, busybox: str) -> None:
    ran = daemons.client.run(busybox, ["sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done"])
    lines = ran.stdout.split(b"\n")
    assert len(lines) == 20001
    assert lines[19999] == b"line 19999"


def test_standard_input_reaches_the_process_and_ends(daemons: Daemons, busybox: str) -> None:
    ran = daemons.client.run(busybox, ["wc", "-c"], stdin=b"x" * 100_000)
    assert ran.stdout.strip() == b"100000"


def test_the_image_s_users_are_resolved(daemons: Daemons, busybox: str) -> None:
    ran = daemons.client.run(busybox, ["sh", "-c", "id; echo $HOME; pwd"], user="app", cwd="/tmp")
    assert ran.stdout == b"uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)\n/home/app\n/tmp\n"
    with pytest.raises(ApiError) as error:
        daemons.client.create(busybox, ["id"], user="nobody-here")
    assert code_of(error) == "container.user_not_found"


def test_environment_and_hostname(daemons: Daemons, busybox: str) -> None:
    created = daemons.client.create(busybox, ["sh", "-c", "hostname; echo $A $HOSTNAME"], env=("A=b=c",))
    daemons.client.start(created.id)
    daemons.client.wait(created.id)
    text = b"".join(data for _, data in daemons.client.logs(created.id)).decode()
    daemons.client.remove(created.id)
    assert text.splitlines() == [created.id[:12], f"b=c {created.id[:12]}"]


@pytest.mark.parametrize(("command", "exit_code"), [("/nonesuch", 127), ("nonesuch", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_run(daemons: Daemons, busybox: str, command: str, exit_code: int, name: str) -> None:
    with pytest.raises(ApiError) as error:
        daemons.client.run(busybox, [command], name=name)
    assert error.value.problem["exit_code"] == exit_code
    assert not daemons.client.containers(f"name={name}", everything=True)


def test_unknown_things_are_named(daemons: Daemons, busybox: str) -> None:
    with pytest.raises(ApiError) as error:
        daemons.client.create("nonesuch/image:9", ["true"])
    assert code_of(error) == "image.not_found"
    with pytest.raises(ApiError) as error:
        daemons.client.start("nonesuch")
    assert code_of(error) == "container.not_found"
    assert error.value.http_status == 404


def test_a_name_is_given_once(daemons: Daemons, busybox: str, name: str) -> None:
    daemons.client.create(busybox, ["true"], name=name)
    with pytest.raises(ApiError) as error:
        daemons.client.create(busybox, ["true"], name=name)
    assert code_of(error) == "name.taken"


def test_stop_sends_the_signal_and_waits(daemons: Daemons, busybox: str, name: str) -> None:
    id_ = sleeper(daemons, busybox, name)
    assert daemons.client.inspect(name).summary.status == "running"
    daemons.client.stop(id_[:12], timeout_s=10)
    seen = daemons.client.inspect(name)
    assert (seen.summary.status, seen.summary.exit_code) == ("exited", 7)
    daemons.client.start(name)
    assert daemons.client.inspect(name).summary.status == "running"
    with pytest.raises(ApiError) as error:
        daemons.client.remove(name)
    assert code_of(error) == "container.running"
    daemons.client.remove(name, force=True)
    with pytest.raises(ApiError):
        daemons.client.inspect(name)


def test_stop_kills_what_does_not_listen(daemons: Daemons, busybox: str, name: str) -> None:
    created = daemons.client.create(busybox, ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"], name=name)
    daemons.client.start(created.id)
    time.sleep(0.2)
    daemons.client.stop(name, timeout_s=1)
    assert daemons.client.inspect(name).summary.exit_code == 137


def test_pause_and_unpause(daemons: Daemons, busybox: str, name: str) -> None:
    sleeper(daemons, busybox, name)
    daemons.client._post(f"/v1/containers/{name}/pause")
    assert daemons.client.inspect(name).summary.status == "paused"
    daemons.client._post(f"/v1/containers/{name}/unpause")
    assert daemons.client.inspect(name).summary.status == "running"


def test_exec_runs_beside_and_gives_its_exit_code(daemons: Daemons, busybox: str, name: str) -> None:
    sleeper(daemons, busybox, name, env=("A=1",))
    ran = daemons.client.exec(name, ["sh", "-c", "echo $A; echo no >&2; exit 9"])
    assert (ran.exit_code, ran.stdout, ran.stderr) == (9, b"1\n", b"no\n")
    ran = daemons.client.exec(name, ["cat"], stdin=b"hello")
    assert ran.stdout == b"hello"
    ran = daemons.client.exec(name, ["id", "-u"], user="app")
    assert ran.stdout == b"1000\n"
    with pytest.raises(ApiError) as error:
        daemons.client.exec(name, ["/nonesuch"])
    assert error.value.problem["exit_code"] == 127


def test_a_terminal_is_resized(daemons: Daemons, busybox: str, name: str) -> None:
    created = daemons.client.create(busybox, ["sh"], name=name, terminal=True, stdin=True)
    with daemons.client.attach(created.id, stdin=True, start=True) as attached:
        attached.resize(33, 77)
        time.sleep(0.3)
        attached.write(b"stty size; exit 4\n")
        code, out, _ = attached.communicate()
    assert b"33 77" in out
    assert code == 4


def test_two_clients_see_the_same_output_and_leaving_stops_nothing(daemons: Daemons, busybox: str, name: str) -> None:
    created = daemons.client.create(busybox, ["sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"],
                                    name=name)  # fmt: skip
    with daemons.client.attach(created.id, start=True) as first:
        assert first.read() is not None
        with daemons.client.attach(created.id) as second:
            assert second.read() is not None
        assert first.read() is not None
    assert daemons.client.inspect(name).summary.status == "running"


def test_logs_tail_since_and_follow(daemons: Daemons, busybox: str, name: str) -> None:
    created = daemons.client.create(
        busybox, ["sh", "-c", "for i in 1 2 3 4 5; do echo $i; done; sleep 1; echo last; echo err >&2"], name=name
    )
    daemons.client.start(created.id)
    followed = list(daemons.client.logs(name, follow=True))
    assert b"".join(data for stream, data in followed if stream == 1) == b"1\n2\n3\n4\n5\nlast\n"
    assert (2, b"err\n") in followed
    assert b"".join(d for _, d in daemons.client.logs(name, tail=3, stderr=False)) == b"5\nlast\n"
    assert b"".join(d for _, d in daemons.client.logs(name, tail=0)) == b""
    assert b"".join(d for _, d in daemons.client.logs(name, since="1h", stdout=False)) == b"err\n"
    assert not list(daemons.client.logs(name, until="1h"))
    stamped = b"".join(d for _, d in daemons.client.logs(name, tail=2, stderr=False, timestamps=True))
    assert stamped.startswith(b"20")
    assert stamped.endswith(b" last\n")


def test_restart_policy_starts_again(daemons: Daemons, busybox: str, name: str) -> None:
    daemons.client.create(busybox, ["sh", "-c", "exit 5"], name=name, restart=RestartPolicy("on-failure", 2))
    daemons.client.start(name)
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        seen = daemons.client.inspect(name).summary
        if seen.restarts == 2 and seen.status == "exited":
            break
        time.sleep(0.05)
    assert (seen.restarts, seen.status, seen.exit_code) == (2, "exited", 5)


def test_wait_answers_a_later_end(daemons: Daemons, busybox: str, name: str) -> None:
    created = daemons.client.create(busybox, ["sh", "-c", "sleep 0.5; exit 6"], name=name)
    answers: list[int] = []
    daemons.client.start(created.id)
    thread = threading.Thread(target=lambda: answers.append(daemons.client.wait(name, "next-exit").exit_code))
    thread.start()
    thread.join(10)
    assert answers == [6]


def test_a_port_is_held_by_one_pod(daemons: Daemons, busybox: str, name: str) -> None:
    ports = NetworkRequest(ports=(PortRequest(80),))
    sleeper(daemons, busybox, name, network=ports)
    (port,) = daemons.client.inspect(name).summary.ports
    assert port.host_port >= 49152
    other = daemons.client.create(busybox, ["true"], network=NetworkRequest(ports=(PortRequest(80, port.host_port),)))
    with pytest.raises(ApiError) as error:
        daemons.client.start(other.id)
    assert code_of(error) == "port.taken"
    daemons.client.remove(name, force=True)
    daemons.client.start(other.id)
    daemons.client.wait(other.id)
    daemons.client.remove(other.id)


def test_update_rename_top_and_stats(daemons: Daemons, busybox: str, name: str) -> None:
    client = daemons.client
    id_ = sleeper(daemons, busybox, name, resources=Resources(memory_bytes=64 << 20))
    client.transport.ask("POST", f"/v1/containers/{name}/update", (), b'{"resources":{"memory_bytes":134217728}}')
    # Right after the start the runtime's own program may still stand there, about to become the container's.
    until(lambda: any(word in client.transport.ask("GET", f"/v1/containers/{name}/top")
                      for word in (b"sleep", b"trap")))  # fmt: skip
    stats = client.transport.ask("GET", "/v1/stats", [("container", name)])
    assert b'"memory_limit_bytes":134217728' in stats
    new = f"{name}-b"
    client.transport.ask("POST", f"/v1/containers/{name}/rename", (), f'{{"name":"{new}"}}'.encode())
    assert client.inspect(new).summary.id == id_
    client.transport.ask("POST", f"/v1/containers/{new}/rename", (), f'{{"name":"{name}"}}'.encode())


def test_named_and_anonymous_volumes(daemons: Daemons, busybox: str, name: str) -> None:
    client = daemons.client
    mounts = (VolumeMount(volume=f"v{name}", target="/data"),)
    client.run(busybox, ["sh", "-c", "echo kept > /data/file"], mounts=mounts)
    assert client.run(busybox, ["cat", "/data/file"], mounts=mounts).stdout == b"kept\n"
    sleeper(daemons, busybox, name, mounts=mounts)
    with pytest.raises(ApiError) as error:
        client.transport.ask("DELETE", f"/v1/volumes/v{name}")
    assert code_of(error) == "volume.in_use"
    client.remove(name, force=True)
    client.transport.ask("DELETE", f"/v1/volumes/v{name}")


def test_files_in_and_out(daemons: Daemons, busybox: str, name: str) -> None:
    import io  # noqa: PLC0415
    import tarfile  # noqa: PLC0415

    sleeper(daemons, busybox, name)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        info = tarfile.TarInfo("hello.txt")
        info.size = 300_000
        tar.addfile(info, io.BytesIO(b"h" * 300_000))
    daemons.client.copy_in(name, "/tmp", iter([packed.getvalue()]))
    assert daemons.client.exec(name, ["wc", "-c", "/tmp/hello.txt"]).stdout.split()[0] == b"300000"
    stat = daemons.client.stat_path(name, "/tmp/hello.txt")
    assert (stat.name, stat.size, stat.is_dir) == ("hello.txt", 300_000, False)
    data = b"".join(daemons.client.copy_out(name, "/tmp/hello.txt"))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [member.size for member in tar] == [300_000]
    changes = daemons.client.transport.ask("GET", f"/v1/containers/{name}/changes")
    assert b'{"kind":"A","path":"/tmp/hello.txt"}' in changes
    with pytest.raises(ApiError) as error:
        daemons.client.stat_path(name, "/nonesuch")
    assert error.value.http_status == 404
    with (
        daemons.client.transport.send("GET", f"/v1/containers/{name}/export") as response,
        tarfile.open(fileobj=response, mode="r|") as tar,
    ):
        assert any(member.name.lstrip("./") == "bin/busybox" for member in tar)


def test_events_tell_the_life(daemons: Daemons, busybox: str, name: str) -> None:
    daemons.client.run(busybox, ["true"], name=name)
    rows = [row for row in daemons.client.events(follow=False) if row.name == name]
    assert [row.action for row in rows] == ["create", "start", "die", "destroy"]
    numbers = [row.number for row in rows]
    assert numbers == sorted(numbers)


def test_the_audit_log_is_chained_and_names_who(daemons: Daemons, busybox: str, name: str) -> None:
    import json  # noqa: PLC0415

    daemons.client.run(busybox, ["true"], name=name)
    page = json.loads(daemons.client.transport.ask("GET", "/v1/audit", [("limit", "1000")]))
    assert page["intact"]
    assert {row["who"] for row in page["rows"] if row["action"] == "container.create"} == {"0:root"}


def test_pod_with_two_containers_shares_its_network(daemons: Daemons, busybox: str, name: str) -> None:
    client = daemons.client
    client.transport.ask("POST", "/v1/pods", (), f'{{"name":"{name}"}}'.encode())
    one = client.create(busybox, ["sh", "-c", "echo hello | nc -l -p 8000"], pod=name)
    client.start(one.id)
    time.sleep(0.3)
    two = client.run(busybox, ["nc", "127.0.0.1", "8000"], pod=name)
    assert two.stdout == b"hello\n"
    with pytest.raises(ApiError) as error:
        client.transport.ask("DELETE", f"/v1/pods/{name}")
    assert code_of(error) == "pod.in_use"
    client.transport.ask("DELETE", f"/v1/pods/{name}", [("force", "true")])


def test_doctor_finds_nothing_wrong_of_ours(daemons: Daemons) -> None:
    found = {row.check: row.severity for row in daemons.client.doctor().findings}
    assert found["database"] == found["audit"] == found["store"] == "ok"
