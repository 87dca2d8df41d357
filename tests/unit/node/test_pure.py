"""The pure parts of the node: users, resolution, addresses, restart policy, signals, times, names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.image.records import ImageConfig
from casemate.node import resolve
from casemate.node.addresses import Pool, address_text, next_address, parse_pool
from casemate.node.clock import parse_duration, parse_time, rfc3339
from casemate.node.errors import AddressesExhausted, CommandMissing, UserNotFound
from casemate.node.names import another_name, random_name
from casemate.node.restart import Decision, Ended, after_boot, decide
from casemate.node.signals import exit_reason, signal_number
from casemate.node.users import resolve_user
from casemate.spec.api import ContainerRequest, ExecRequest, NetworkRequest, PortRequest
from casemate.spec.errors import InvalidArgument
from casemate.spec.ids import check_name
from casemate.spec.settings import SettingInvalid
from casemate.spec.workload import BindMount, Process, TmpfsMount, User, VolumeMount

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1001::/home/app:/bin/sh\nbig:x:99999:0::/:\nno:x:::/:\n"
GROUP = b"root:x:0:\nstaff:x:50:app,other\nextra:x:2000:app\nbad:x:zz:app\n"
DEFAULTS = resolve.Defaults(pids=4096, stop_timeout_s=10, log_max_bytes=1 << 20, writable_bytes=0)


@pytest.mark.parametrize(
    ("text", "uid", "gid", "groups", "home"),
    [
        ("", 0, 0, (0,), "/root"),
        ("app", 1000, 1001, (1001, 50, 2000), "/home/app"),
        ("1000", 1000, 1001, (1001, 50, 2000), "/home/app"),
        ("app:staff", 1000, 50, (50,), "/home/app"),
        ("4242", 4242, 0, (0,), "/"),
        ("4242:77", 4242, 77, (77,), "/"),
        (":staff", 0, 50, (50,), "/root"),
    ],
)
def test_users(text: str, uid: int, gid: int, groups: tuple[int, ...], home: str) -> None:
    account = resolve_user(text, PASSWD, GROUP)
    assert account.user == User(uid, gid, groups)
    assert account.home == home


@pytest.mark.parametrize("text", ["nobody", "app:nogroup", "65536", "0:99999", "99999999999999", "big", "no"])
def test_users_that_are_not_there(text: str) -> None:
    with pytest.raises(UserNotFound):
        resolve_user(text, PASSWD, GROUP)


@given(st.binary(max_size=300), st.binary(max_size=300), st.text(max_size=20))
def test_hostile_passwd_files_give_a_user_or_an_error(passwd: bytes, group: bytes, text: str) -> None:
    try:
        account = resolve_user(text, passwd, group)
    except UserNotFound:
        return
    assert 0 <= account.user.uid <= 65_535
    assert 0 <= account.user.gid <= 65_535
    assert account.home.startswith("/")
    assert len(account.user.groups) <= 64


def test_a_huge_passwd_is_bounded() -> None:
    line = b"u%d:x:1:1::/:/bin/sh\n"
    content = b"".join(line % n for n in range(70_000)) + b"last:x:2:2::/:/bin/sh\n"
    with pytest.raises(UserNotFound):
        resolve_user("last", content, None)


def resolved(request: ContainerRequest, config: ImageConfig) -> resolve.Resolved:
    image = resolve.Image("image", "sha256:" + "0" * 64, config, ("1" * 64,), PASSWD, GROUP)
    return resolve.resolve_container(
        request, image, DEFAULTS, id_="a" * 64, pod="b" * 64, name="n", hostname="h",
        volume_names=tuple(f"{n:064x}" for n in range(len(config.volumes))),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("entrypoint", "command", "args"),
    [
        (None, None, ("ie", "ic")),
        (None, ("c",), ("ie", "c")),
        (None, (), ("ie",)),
        (("e",), None, ("e",)),
        (("e",), ("c",), ("e", "c")),
        ((), None, ("ic",)),
        ((), ("c",), ("c",)),
    ],
)
def test_entrypoint_and_command_merge_as_in_docker(entrypoint, command, args) -> None:  # type: ignore[no-untyped-def]
    config = ImageConfig(entrypoint=("ie",), cmd=("ic",))
    request = ContainerRequest(image="i", entrypoint=entrypoint, command=command)
    assert resolved(request, config).spec.process.args == args


def test_without_any_command() -> None:
    with pytest.raises(CommandMissing):
        resolved(ContainerRequest(image="i"), ImageConfig())


def test_environment_merges() -> None:
    config = ImageConfig(cmd=("c",), env=("A=1", "B=2", "broken"))
    request = ContainerRequest(image="i", env=("B=3", "A", "C=d=e"), user="app", terminal=True)
    env = dict(entry.split("=", 1) for entry in resolved(request, config).spec.process.env)
    assert env == {
        "B": "3", "C": "d=e", "PATH": resolve.DEFAULT_PATH, "HOSTNAME": "h", "HOME": "/home/app", "TERM": "xterm",
    }  # fmt: skip


@pytest.mark.parametrize("field", [{"env": ("=x",)}, {"env": ("A=\0",)}, {"command": ("a\0",)}])
def test_hostile_words_are_refused(field: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        resolved(ContainerRequest(image="i", **field), ImageConfig(cmd=("c",)))  # type: ignore[arg-type]


def test_volumes_of_the_image_and_mounts_of_the_request() -> None:
    config = ImageConfig(cmd=("c",), volumes=("/data", "/other/", "/"))
    request = ContainerRequest(image="i", mounts=(TmpfsMount("/data/"),))
    done = resolved(request, config)
    assert [type(mount) for mount in done.spec.mounts] == [TmpfsMount, VolumeMount]
    assert len(done.anonymous) == 1
    with pytest.raises(InvalidArgument):
        resolved(ContainerRequest(image="i", mounts=(TmpfsMount("/a"), TmpfsMount("/b/../a"))), config)
    with pytest.raises(InvalidArgument):
        resolved(ContainerRequest(image="i", mounts=(TmpfsMount("/a/.."),)), config)


def test_grants_are_named() -> None:
    plain = ContainerRequest(image="i", cap_drop=("ALL",))
    assert resolve.grants_needed(plain) == ()
    every = ContainerRequest(
        image="i", mounts=(BindMount("/etc", "/x"),), cap_add=("NET_ADMIN",), privileged=True, host_pid=True
    )
    assert resolve.grants_needed(every) == ("host_paths", "capabilities", "host_namespaces", "privileged")


def test_exec_takes_the_container_s_process() -> None:
    first = Process(args=("x",), env=("A=1", "HOME=/root"), cwd="/w", user=User(5, 5))
    done = resolve.resolve_exec(ExecRequest(command=("y",), env=("B=2",)), first, PASSWD, GROUP)
    assert (done.env, done.cwd, done.user) == (("A=1", "HOME=/root", "B=2"), "/w", User(5, 5))
    done = resolve.resolve_exec(ExecRequest(command=("y",), user="app", cwd="tmp"), first, PASSWD, GROUP)
    assert (done.env, done.cwd, done.user.uid) == (("A=1", "HOME=/home/app"), "/tmp", 1000)


def test_ports() -> None:
    request = NetworkRequest(ports=(PortRequest(80, 8080),), publish_all=True)
    ports = resolve.wanted_ports(request, ("80/tcp", "53/udp", "x/tcp", "99999", "22/sctp", "443"))
    assert [(p.container_port, p.protocol) for p in ports] == [(80, "tcp"), (53, "udp"), (443, "tcp")]
    with pytest.raises(InvalidArgument):
        resolve.resolve_network(NetworkRequest(mode="none", ports=(PortRequest(80),)), address="", dns=())


@given(st.sets(st.integers(1, 6)), st.integers(0, 8))
def test_addresses_are_unique_and_rest(used: set[int], last: int) -> None:
    pool = Pool(1, 6)
    if len(used) == 6:
        with pytest.raises(AddressesExhausted):
            next_address(pool, last, used.__contains__)
        return
    found = next_address(pool, last, used.__contains__)
    assert found not in used
    after = [n for n in [*range(last + 1, 7), *range(1, 7)] if 1 <= n <= 6 and n not in used] if last < 6 else []
    assert found == (after[0] if after else min(set(range(1, 7)) - used))


def test_pools() -> None:
    pool = parse_pool("10.209.0.0/16")
    assert (address_text(pool.first), address_text(pool.last), address_text(None)) == (
        "10.209.0.1",
        "10.209.255.254",
        "",
    )
    for text in ("10.0.0.1/16", "10.0.0.0/30", "x", "0.0.0.0/0", "fd00::/64"):
        with pytest.raises(SettingInvalid):
            parse_pool(text)


def test_the_back_off_doubles_to_a_minute_and_is_forgotten() -> None:
    delays, failures = [], 0
    for restarts in range(12):
        decision = decide(Ended("always", 0, 1, 0.5, restarts, failures, by_user=False))
        delays.append(decision.delay_s)
        failures = decision.failures
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == 60.0
    assert decide(Ended("always", 0, 1, 11.0, 20, failures, by_user=False)).delay_s == 0.1


@pytest.mark.parametrize(
    ("policy", "maximum", "code", "restarts", "by_user", "again"),
    [
        ("no", 0, 1, 0, False, False),
        ("on-failure", 0, 0, 0, False, False),
        ("on-failure", 0, 1, 99, False, True),
        ("on-failure", 3, 1, 2, False, True),
        ("on-failure", 3, 1, 3, False, False),
        ("always", 0, 0, 0, False, True),
        ("always", 0, 0, 0, True, False),
        ("unless-stopped", 0, 0, 0, True, False),
    ],
)
def test_restart_policies(policy: str, maximum: int, code: int, restarts: int, by_user: bool, again: bool) -> None:
    decision = decide(Ended(policy, maximum, code, 1.0, restarts, 0, by_user=by_user))
    assert isinstance(decision, Decision)
    assert decision.again is again
    assert decision.reason


def test_after_a_reboot() -> None:
    assert after_boot("always", "stopped", 0)
    assert not after_boot("unless-stopped", "stopped", 0)
    assert after_boot("unless-stopped", "running", 0)
    assert not after_boot("on-failure", "running", 0)
    assert not after_boot("no", "running", 1)


def test_signals() -> None:
    assert [signal_number(t) for t in ("TERM", "sigterm", "15", "KILL", "RTMIN+3", "SIGRTMAX-1")] == [
        15, 15, 15, 9, 37, 63,
    ]  # fmt: skip
    for text in ("", "0", "65", "NOPE", "RTMIN+99", "RTMAX-60", "-1", "9" * 50, "١٥"):
        with pytest.raises(InvalidArgument):
            signal_number(text)
    assert exit_reason(137) == "killed by SIGKILL"
    assert exit_reason(1) == ""


@given(st.floats(1, 4e9))
def test_times_go_and_come_back(seconds: float) -> None:
    assert abs(parse_time(rfc3339(seconds), 0.0) - seconds) < 2e-6


def test_times_as_people_write_them() -> None:
    at = 1_000_000.0
    assert parse_time("10m", at) == at - 600
    assert parse_time("1h30m", at) == at - 5400
    assert parse_time("1500.5", at) == 1500.5
    assert parse_time("1970-01-02", at) == 86_400
    assert parse_time("1970-01-01T01:00:00+01:00", at) == 0
    assert rfc3339(0) == ""
    assert parse_duration("5x") is None
    for text in ("", "yesterday", "2026-13-01", "1" * 80, "2026-01-01T25:00:00Z"):
        with pytest.raises(InvalidArgument):
            parse_time(text, at)


@given(st.integers(0, 2**64 - 1))
def test_names_are_names(number: int) -> None:
    check_name(random_name(number))
    check_name(another_name(number))
