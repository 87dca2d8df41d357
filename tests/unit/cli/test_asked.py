"""From flags to requests; each made request is what the API's own schema takes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peer import Reply

from casemate.cli.asked import environment, mounts, network, quantities, resources
from casemate.cli.asked.container import container_request
from casemate.cli.errors import FileUnusable, UsageError
from casemate.cli.index import load
from casemate.cli.parse import parse
from casemate.spec.api import ContainerRequest, NetworkRequest, PodRequest
from casemate.spec.workload import Mount, Resources, Rlimit


def requested(*argv: str) -> ContainerRequest:
    """The request of ``run ARGV``, as the daemon's decoder sees it: unknown fields and wrong forms raise."""
    made = container_request(parse("run", load("run"), list(argv)), "default")
    return msgspec.convert(msgspec.json.decode(msgspec.json.encode(made)), ContainerRequest)


def refused(*argv: str) -> str:
    with pytest.raises(UsageError) as caught:
        requested(*argv)
    return f"{caught.value.detail} | {caught.value.to_problem()['remedy']}"


def test_nothing_asked_is_nothing_sent() -> None:
    assert container_request(parse("run", load("run"), ["img"]), "default") == {"image": "img"}
    assert container_request(parse("run", load("run"), ["img", "a", "b"]), "shop") == {
        "image": "img",
        "project": "shop",
        "command": ["a", "b"],
    }


def test_everything_at_once_is_a_valid_request(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\nA=1\n\n  B=two words\n")
    made = requested(
        "-it",
        "--rm",
        "--name",
        "web",
        "-e",
        "C=3",
        "--env-file",
        str(file),
        "-w",
        "/srv",
        "-u",
        "1000:100",
        "-v",
        "/srv/data:/data:ro",
        "-v",
        "cache:/cache:nocopy",
        "-v",
        "/anon",
        "--mount",
        "type=bind,src=/a,dst=/b,readonly",
        "--tmpfs",
        "/run:size=64m,mode=0755,exec",
        "-m",
        "512m",
        "--memory-swap",
        "-1",
        "--memory-reservation",
        "256m",
        "--cpus",
        "1.5",
        "-c",
        "512",
        "--cpuset-cpus",
        "0-1",
        "--pids-limit",
        "-1",
        "--read-only",
        "--cap-add",
        "net_admin",
        "--cap-drop",
        "ALL",
        "-h",
        "host",
        "-l",
        "tier=web",
        "--restart",
        "no",
        "--entrypoint",
        "/bin/sh",
        "--isolation",
        "gvisor",
        "--platform",
        "linux/amd64",
        "--stop-signal",
        "term",
        "--stop-timeout",
        "3",
        "--ulimit",
        "nofile=1024:2048",
        "--init",
        "--network",
        "bridge",
        "--dns",
        "1.1.1.1",
        "--dns-search",
        "a.b",
        "--dns-option",
        "ndots:2",
        "--add-host",
        "db:10.0.0.7",
        "-p",
        "8080:80",
        "-P",
        "--expose",
        "81",
        "--device",
        "/dev/fuse",
        "--sysctl",
        "net.core.somaxconn=9",
        "--shm-size",
        "1g",
        "--privileged",
        "--security-opt",
        "no-new-privileges:false",
        "--security-opt",
        "seccomp=unconfined",
        "--group-add",
        "audio",
        "--pid",
        "host",
        "--ipc",
        "host",
        "--oom-score-adj",
        "100",
        "--log-opt",
        "max-size=1m",
        "--log-driver",
        "none",
        "--storage-size",
        "2g",
        "--pod",
        "p",
        "img",
        "-c",
        "true",
    )
    assert made.env == ("A=1", "B=two words", "C=3")
    assert (made.terminal, made.stdin, made.auto_remove, made.read_only, made.init, made.privileged) == (True,) * 6
    assert made.command == ("-c", "true")
    assert made.entrypoint == ("/bin/sh",)
    assert made.resources == Resources(512 << 20, 256 << 20, -1, 1500, 512, "0-1", -1, None, 100)
    assert made.rlimits == (Rlimit("nofile", 1024, 2048),)
    assert made.level == "gvisor"
    assert not made.no_new_privileges
    assert made.seccomp == "unconfined"
    assert not made.log_keep
    assert made.log_max_bytes == 1 << 20
    assert made.writable_bytes == 2 << 30
    assert made.cap_add == ("NET_ADMIN",)
    assert made.stop_signal == "TERM"
    assert [port.container_port for port in made.network.ports] == [80, 81]
    assert made.network.publish_all
    assert len(made.mounts) == 5


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-m", "lots", "img"], "--memory: 'lots' is not valid | Write --memory SIZE: a number and b, k, m, g"),
        (["-m", "-5m", "img"], "--memory: '-5m'"),
        (["-m", "", "img"], "--memory: ''"),
        (["--cpus", "two", "img"], "--cpus: 'two'"),
        (["--cpus", "nan", "img"], "--cpus: 'nan'"),
        (["--cpus", "1", "--cpu-quota", "5000", "img"], "--cpus and --cpu-quota"),
        (["--pids-limit", "1.5", "img"], "--pids-limit: '1.5'"),
        (["--cpu-shares", "1", "img"], "from 2 to 262144"),
        (["--cpuset-cpus", "a", "img"], "--cpuset-cpus: 'a'"),
        (["--ulimit", "nofile", "img"], "--ulimit: 'nofile'"),
        (["--ulimit", "nofile=9:3", "img"], "the soft limit is not above the hard one"),
        (["--ulimit", "nofile=x", "img"], "NAME=SOFT[:HARD]"),
        (["--restart", "sometimes", "img"], "--restart: 'sometimes'"),
        (["--restart", "always:3", "img"], "on-failure[:N]"),
        (["--restart", "always", "--rm", "img"], "--restart and --rm"),
        (["-v", "relative:path", "img"], "the target is an absolute path"),
        (["-v", "/a:/", "img"], "the target cannot be /"),
        (["-v", "/a:/b:c:d", "img"], "--volume: '/a:/b:c:d'"),
        (["-v", "a b:/x", "img"], "a volume's name"),
        (["-v", "/a:/b:purple", "img"], "not 'purple'"),
        (["-v", "a:/x", "-v", "b:/x/", "img"], "two mounts have the target '/x'"),
        (["--mount", "type=bind,target=/x", "img"], "a bind mount wants a source"),
        (["--mount", "type=magic,target=/x", "img"], "'magic' is not known"),
        (["--mount", "type=volume,target=/x,colour=red", "img"], "takes no 'colour'"),
        (["--mount", 'type=bind,"source=/a,target=/x', "img"], "a quote is not closed"),
        (["--tmpfs", "x", "img"], "--tmpfs: 'x'"),
        (["--tmpfs", "/x:size=big", "img"], "--tmpfs size: 'big'"),
        (["--tmpfs", "/x:mode=999", "img"], "an octal mode"),
        (["--keep", "0", "img"], "--keep: '0'"),
        (["--keep", "80,once", "img"], "--keep: '80,once'"),
        (["--keep", "80,", "img"], "--keep: '80,'"),
        (["-p", "80:x", "img"], "--publish: '80:x'"),
        (["-p", "0", "img"], "--publish: '0'"),
        (["-p", "70000:80", "img"], "from 1 to 65535"),
        (["-p", "80:80/sctp", "img"], "[/tcp|udp]"),
        (["-p", "1-3:1-2", "img"], "the same length"),
        (["-p", "1.2.3.400:80:80", "img"], "an IPv4 address"),
        (["-p", "[::1]:80:80", "img"], "addresses are IPv4"),
        (["--expose", "1:2", "img"], "--expose: '1:2'"),
        (["--network", "mynet", "img"], "--network: 'mynet'"),
        (["--network", "container:x", "img"], "--pod"),
        (["--dns", "resolver", "img"], "--dns: 'resolver'"),
        (["--add-host", "db", "img"], "NAME:ADDRESS"),
        (["--add-host", "db:not-an-address", "img"], "--add-host"),
        (["--isolation", "strong", "img"], "one of namespace, gvisor, microvm"),
        (["--security-opt", "selinux=on", "img"], "--security-opt: 'selinux=on'"),
        (["--cap-add", "NET ADMIN", "img"], "--cap-add"),
        (["--sysctl", "x", "img"], "--sysctl: 'x'"),
        (["--device", "fuse", "img"], "--device: 'fuse'"),
        (["--pid", "container:x", "img"], "--pid"),
        (["--stop-signal", "TERM!", "img"], "--stop-signal"),
        (["--stop-signal", "99", "img"], "--stop-signal"),
        (["--stop-timeout", "soon", "img"], "--stop-timeout"),
        (["--log-driver", "syslog", "img"], "--log-driver"),
        (["--log-opt", "max-size=big", "img"], "--log-opt max-size: 'big'"),
        (["--workdir", "here", "img"], "--workdir: 'here'"),
        (["--hostname", "-x-", "img"], "--hostname"),
        (["-e", "=x", "img"], "--env: '=x'"),
        (["-l", "=x", "img"], "--label: '=x'"),
        ([""], "the image's name is empty"),
    ],
)
def test_refusals_name_flag_value_and_form(argv: list[str], words: str) -> None:
    assert words in refused(*argv)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0", 0),
        ("1", 1),
        ("512m", 512 << 20),
        ("1.5g", 3 << 29),
        ("64kb", 64 << 10),
        ("1GiB", 1 << 30),
        ("2T", 2 << 40),
        ("7b", 7),
    ],
)
def test_sizes(text: str, wanted: int) -> None:
    assert quantities.size("-m", text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"), [("90", 90.0), ("1m30s", 90.0), ("1.5h", 5400.0), ("500ms", 0.5), ("2d", 172_800.0)]
)
def test_durations(text: str, wanted: float) -> None:
    assert quantities.seconds("-t", text) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-11-22T10:30:00Z", "2026-11-22T10:30:00.000000Z"),
        ("2026-11-22T10:30:00.25+02:00", "2026-11-22T08:30:00.250000Z"),
        ("2026-11-22", "2026-11-22T00:00:00.000000Z"),
        ("2026-11-22T10:30", "2026-11-22T10:30:00.000000Z"),
        ("1795343400", "2026-11-22T10:30:00.000000Z"),
        ("10m", "2026-11-22T10:20:00.000000Z"),
    ],
)
def test_moments(text: str, wanted: str) -> None:
    assert quantities.moment("--since", text, 1_795_343_400.0) == wanted


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-13-01", "2026-11-22T25:00:00Z", "10x", "-5m", "9" * 30, "2026-11-22T1:2"]
)
def test_no_moments(text: str) -> None:
    with pytest.raises(UsageError):
        quantities.moment("--since", text, 1_795_343_400.0)


def test_volume_forms() -> None:
    assert mounts.volume("./x:/y")["source"].endswith("/x")  # type: ignore[union-attr]
    assert mounts.volume("/a/../b/./c:/y")["source"] == "/b/c"
    assert mounts.volume("/a:/y:rslave,z") == {
        "type": "bind",
        "source": "/a",
        "target": "/y",
        "create": True,
        "propagation": "rslave",
    }
    first, second = mounts.volume("/data"), mounts.volume("/data")
    assert first["volume"] != second["volume"]
    assert len(str(first["volume"])) == 64


def test_mount_takes_quotes_and_docker_aliases() -> None:
    assert mounts.mount('type=bind,"source=/a,b",dst=/c,ro') == {
        "type": "bind",
        "source": "/a,b",
        "target": "/c",
        "read_only": True,
    }
    assert "create" not in mounts.mount("type=bind,source=/a,target=/b")


def test_port_ranges() -> None:
    assert [row["host_port"] for row in network.ports("8000-8002:80-82/udp")] == [8000, 8001, 8002]
    assert network.ports("127.0.0.1::80") == [{"container_port": 80, "host_address": "127.0.0.1"}]
    with pytest.raises(UsageError):
        network.ports("1-65535")


def test_env_takes_values_from_here(tmp_path: Path, cm, peer) -> None:
    peer.on("POST", "/v1/containers", Reply(201, {"id": "ab" * 32, "name": "x"}))
    file = tmp_path / "list"
    file.write_bytes(b"\xef\xbb\xbfFROM_FILE\r\nSET=1\r\nSET=2\n")
    done = cm(
        "create", "-e", "HERE", "-e", "ABSENT", "--env-file", str(file), "img", env={"HERE": "v=1", "FROM_FILE": "f"}
    )
    assert done.returncode == 0, done.stderr
    assert peer.requests[0].json["env"] == ["FROM_FILE=f", "SET=2", "HERE=v=1"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"A B=1\n", "line 1"),
        (b"ok=1\n=x\n", "line 2"),
        (b"\xff\xfe=1\n", "not UTF-8 at byte 0"),
        (b"a=1\0\n", "zero byte"),
    ],
)
def test_bad_env_files(tmp_path: Path, data: bytes, words: str) -> None:
    file = tmp_path / "env"
    file.write_bytes(data)
    with pytest.raises((UsageError, FileUnusable)) as caught:
        environment.variables([], [str(file)])
    assert words in caught.value.detail
    assert "--env-file" in caught.value.detail


def test_env_file_that_is_not_there_or_endless(tmp_path: Path) -> None:
    for path in (str(tmp_path / "none"), str(tmp_path), "/dev/zero", "a\0b"):
        with pytest.raises(FileUnusable) as caught:
            environment.variables([], [path])
        assert "--env-file" in caught.value.detail


junk = st.one_of(st.text(max_size=30), st.text(alphabet="0123456789abkmg:,./=-_ \"'", max_size=30))


@settings(max_examples=300, deadline=None)
@given(junk)
def test_forms_raise_only_usage_errors_and_make_only_valid_values(text: str) -> None:
    """Whatever passes our check also passes the daemon's; whatever does not is a usage error."""

    def tried(make, kind) -> None:
        try:
            made = make(text)
        except UsageError:
            return
        msgspec.convert(made, kind)

    tried(mounts.volume, Mount)
    tried(mounts.mount, Mount)
    tried(mounts.tmpfs, Mount)
    tried(lambda value: {"ports": network.ports(value)}, NetworkRequest)
    tried(lambda value: {"hosts": [network.host_entry(value)]}, NetworkRequest)
    tried(resources.rlimit, Rlimit)
    tried(lambda value: {"memory_bytes": quantities.size("-m", value)}, Resources)
    tried(lambda value: {"cpu_millis": quantities.cpu_millis("--cpus", value)}, Resources)
    tried(lambda value: quantities.moment("--since", value, 1e9), str)
    tried(lambda value: quantities.signal("-s", value), str)


def test_pod_request_is_valid(cm, peer) -> None:
    peer.on("POST", "/v1/pods", Reply(201, {"id": "cd" * 32, "name": "shop"}))
    done = cm("pod", "create", "-p", "8080:80", "-m", "1g", "-l", "a=b", "--isolation", "microvm", "shop")
    assert done.stdout == b"cd" * 32 + b"\n"
    made = msgspec.convert(peer.requests[0].json, PodRequest)
    assert made.name == "shop"
    assert made.network.ports[0].host_port == 8080
    assert made.level == "microvm"
