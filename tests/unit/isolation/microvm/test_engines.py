"""What engines ask beside the container: namespaces, cgroups, hooks, limits; and what netlink says of a network."""

from __future__ import annotations

import errno
import json
import socket
import struct

import msgspec
import pytest

from casemate.host.cgroups import CgroupFailed
from casemate.host.netlink import attribute
from casemate.host.rtnetlink import Link, RouteSocket
from casemate.isolation.level import InnerUsage
from casemate.isolation.microvm import answers, bundles, engines, frames, mountflags, reports, takeover
from casemate.isolation.microvm.errors import AgentFailed, BundleUnsupported, NetworkFailed
from casemate.isolation.microvm.frames import Tag
from casemate.isolation.microvm.oci import (
    BlockIo,
    Config,
    Hook,
    Hooks,
    Linux,
    MemoryLimit,
    Namespace,
    NetworkClass,
    Process,
    Resources,
    User,
)
from casemate.isolation.microvm.records import ContainerRecord
from casemate.spec.errors import Conflict
from casemate.spec.workload import Resources as Wanted

PLAIN = Process(args=("x",))


def config(*namespaces: Namespace, cgroup: str = "", hooks: Hooks | None = None, **annotations: str) -> Config:
    linux = Linux(namespaces=namespaces, cgroups_path=cgroup)
    return Config(process=PLAIN, linux=linux, hooks=hooks, annotations=annotations)


def test_a_process_that_joins_what_has_ended() -> None:
    broken = AgentFailed(
        "the child ended in its set-up: Broken pipe", errno=errno.EPIPE, step="the child ended in its set-up"
    )
    late = AgentFailed("", errno=errno.ENOENT, step="no such container, or it does not run")
    ended = msgspec.structs.replace(RECORD, status="stopped")
    running = msgspec.structs.replace(RECORD, status="running")
    for error, one in ((broken, ended), (late, ended), (late, running)):
        assert "cannot exec in a stopped container" in answers.exec_error(error, one).detail
    assert "set-up" in answers.exec_error(broken, running).detail


def test_network_namespaces() -> None:
    assert engines.netns(config(Namespace("network", "/run/netns/x"))) == "/run/netns/x"
    assert engines.netns(config(Namespace("network"))) == engines.NEW
    assert engines.netns(config(**{bundles.POD: "p"})) == engines.NONE
    with pytest.raises(BundleUnsupported) as caught:
        engines.netns(config(Namespace("pid")))
    assert "cannot share the host's network" in caught.value.detail


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", ""),
        ("/docker/abc", "docker/abc"),
        ("system.slice:docker:abc", "system.slice/docker-abc.scope"),
        ("machine-deep.slice:libpod:abc", "machine.slice/machine-deep.slice/libpod-abc.scope"),
        (":cri-containerd:abc", "system.slice/cri-containerd-abc.scope"),
    ],
)
def test_cgroups_of_engines(text: str, path: str) -> None:
    assert engines.cgroup_path(config(cgroup=text)) == path
    assert engines.cgroup_path(config(cgroup=text, **{bundles.POD: "p"})) == ""


def test_a_bundle_without_a_cgroup_gets_one_of_its_name() -> None:
    assert engines.cgroup_path(config(Namespace("network")), "vm/one") == "vm/one"
    assert engines.cgroup_path(config(Namespace("network"), cgroup="/named"), "vm/one") == "named"
    # Our own pods name folders.
    assert engines.cgroup_path(config(**{bundles.POD: "p"}), "vm/one") == ""
    assert engines.cgroup_path(config(**{bundles.NETWORK: "{}"}), "vm/one") == ""


@pytest.mark.parametrize("text", ["/../../etc", "a//b", "a\nb", "/".join("x" * 9)])
def test_cgroups_that_are_refused(text: str) -> None:
    with pytest.raises(CgroupFailed):
        engines.cgroup_path(config(cgroup=text))


def test_hooks_for_casemate_vm() -> None:
    hook = Hook("/bin/h", ("h", "a b"), ("A=1",), 7)
    fields = engines.prepared("c", "/b", config(Namespace("network"), hooks=Hooks(prestart=(hook, Hook("/bin/i")))))
    head = json.loads(fields[0].value.decode() + '"pid": 1, "status": "creating"}')
    assert head == {
        "ociVersion": "1.1.0",
        "id": "c",
        "bundle": "/b",
        "annotations": {},
        "pid": 1,
        "status": "creating",
    }
    found = [one.value for one in fields if one.tag == Tag.HOOK]
    assert found[0] == struct.pack("<III", 7, 2, 1) + b"/bin/h\0h\0a b\0A=1\0"
    assert found[1] == struct.pack("<III", 120, 0, engines.INHERITED) + b"/bin/i\0"


@pytest.mark.parametrize(
    "hooks",
    [
        Hooks(start_container=(Hook("/x"),) * 17),
        Hooks(prestart=(Hook("x"),)),
        Hooks(poststop=(Hook("/x", ("a\0b",)),)),
        Hooks(poststart=(Hook("/x"),) * 65),
    ],
)
def test_hooks_that_are_refused(hooks: Hooks) -> None:
    with pytest.raises(BundleUnsupported):
        engines.check_hooks(hooks)


@pytest.mark.parametrize(
    ("limit", "size"),
    [(None, 128), (-1, 128), (0, 128), (32 << 20, 128), (128 << 20, 256), (512 << 20, 1024), (1 << 62, 65_536)],
)
def test_a_machine_has_room_for_its_containers_limit(limit: int | None, size: int) -> None:
    linux = Linux(resources=Resources(memory=MemoryLimit(limit)))
    assert bundles.memory(Config(process=PLAIN, linux=linux), 128 << 20) == size << 20
    assert bundles.memory(config(**{bundles.MEMORY: "5"}), 1) == 5


def wanted(document: str | bytes, words: list[str]) -> Wanted:
    return reports.in_guest(reports.resources(document, words))


def test_update_by_document_and_by_flag() -> None:
    document = '{"memory": {"limit": 100}, "cpu": {"quota": 50000, "period": 100000}, "pids": {"limit": 9}, "x": 1}'
    assert wanted(document, []) == Wanted(memory_bytes=100, cpu_millis=500, pids=9)
    assert wanted(document, ["memory=7", "pids-limit=-1"]) == Wanted(memory_bytes=7, cpu_millis=500, pids=-1)
    assert wanted("", ["cpu-quota=20000"]) == Wanted(cpu_millis=200)
    assert wanted("", ["cpu-share=2048", "memory-reservation=8"]) == Wanted(cpu_shares=2048, memory_reservation_bytes=8)
    found = reports.resources("", ["cpuset-cpus=0-1,3", "cpuset-mems=0"])
    assert found.cpu is not None
    assert (found.cpu.cpus, found.cpu.mems) == ("0-1,3", "0")
    # Docker ends the document with a line.
    assert wanted(b'{"pids": {"limit": 9}}\n', []) == Wanted(pids=9)
    for words in (["memory=x"], ["swap=1"], ["memory=" + "1" * 30], ["cpuset-cpus=a"], ["cpuset-cpus="]):
        with pytest.raises(BundleUnsupported):
            wanted("", words)
    for text in ("{", "[]", '{"memory": 1}'):
        with pytest.raises(BundleUnsupported):
            wanted(text, [])


def test_an_event_has_the_form_that_tools_read() -> None:
    usage = InnerUsage(1, 2, 3, 4, 5, 6, 7)
    found = json.loads(reports.event("c", usage))
    assert (found["type"], found["id"]) == ("stats", "c")
    assert found["data"]["cpu"]["usage"]["total"] == 1
    assert found["data"]["memory"]["usage"] == {"usage": 2, "limit": 3}
    assert found["data"]["pids"] == {"current": 4, "limit": 5}


def test_copy_up_is_a_flag_of_ours_and_no_option_of_the_file_system() -> None:
    assert mountflags.parse(["rw", "tmpcopyup", "size=1m"]) == (1 << 40, "size=1m")
    assert mountflags.parse(["notmpcopyup"]) == (0, "")


LINK = Link(2, "eth0", 1450, "02:11:22:33:44:55", True)
FOUR, SIX = socket.inet_pton(socket.AF_INET, "10.1.2.3"), socket.inet_pton(socket.AF_INET6, "fd00::3")
LOCAL = socket.inet_pton(socket.AF_INET6, "fe80::1")


def address(family: int, bits: int, scope: int, index: int, packed: bytes, kind: int = 2) -> bytes:
    return struct.pack("=BBBBi", family, bits, 0, scope, index) + attribute(kind, packed)


def route(family: int, bits: int, index: int, *, protocol: int = 3, table: int = 254, **parts: bytes) -> bytes:
    body = struct.pack("=8BI", family, bits, 0, 0, table, protocol, 0, 1, 0)
    body += attribute(4, struct.pack("=i", index))
    for name, kind in (("to", 1), ("by", 5)):
        body += attribute(kind, parts[name]) if name in parts else b""
    return body


def test_addresses_of_the_one_interface() -> None:
    answers = [
        address(socket.AF_INET, 24, 0, 2, FOUR),
        address(socket.AF_INET6, 64, 0, 2, SIX, kind=1),
        address(socket.AF_INET6, 64, 253, 2, LOCAL, kind=1),
        address(socket.AF_INET, 8, 0, 1, b"\x7f\0\0\1"),
        address(socket.AF_INET, 8, 0, 2, b"\x7f\0"),
    ]
    assert takeover.read_addresses(answers, 2) == (takeover.Address(FOUR, 24), takeover.Address(SIX, 64))


def test_routes_but_for_the_kernels_own() -> None:
    by = bytes((10, 1, 2, 1))
    answers = [
        route(socket.AF_INET, 0, 2, by=by),
        route(socket.AF_INET, 24, 2, protocol=2, to=FOUR),
        route(socket.AF_INET, 24, 2, table=255, to=FOUR),
        route(socket.AF_INET, 24, 9, to=FOUR),
        route(socket.AF_INET, 32, 2, to=by),
    ]
    found = takeover.read_routes(answers, 2)
    assert found == (takeover.Route(bytes(4), 0, by), takeover.Route(by, 32, b""))
    fields = takeover.Found(LINK, (), found, ()).fields()
    told = [one.value for one in fields if one.tag == Tag.ROUTE]
    # The route on the link stands first: the other leads through it.
    assert told == [bytes([32, 0]) + by + bytes(4), bytes([0, 1]) + bytes(4) + by]


def test_neighbours_that_were_set_by_hand() -> None:
    def neighbour(state: int, index: int = 2, mac: bytes = b"\2" * 6) -> bytes:
        return (
            struct.pack("=BBHiHBB", socket.AF_INET, 0, 0, index, state, 0, 0) + attribute(1, FOUR) + attribute(2, mac)
        )

    answers = [neighbour(0x80), neighbour(0x02), neighbour(0x80, 3), neighbour(0x80, mac=b"\2")]
    assert takeover.read_neighbours(answers, 2) == (takeover.Neighbour(FOUR, b"\2" * 6),)


def test_more_than_a_guest_is_told() -> None:
    class Many(RouteSocket):
        def __init__(self) -> None:
            pass

        def request(self, kind: int, flags: int, body: bytes, what: str) -> list[bytes]:
            assert flags == 0x300
            return [address(socket.AF_INET, 24, 0, 2, FOUR)] * 129 if kind == 22 else []

    with pytest.raises(NetworkFailed):
        takeover.observe(Many(), LINK)


def test_namespaces_that_lead_to_the_machine_itself() -> None:
    waiters = {7: "first"}
    of = config(
        Namespace("pid", "/proc/7/ns/pid"),
        Namespace("ipc", "/proc/7/ns/ipc"),
        Namespace("uts", "/run/utsns/pod"),
        Namespace("network", "/run/netns/pod"),
        Namespace("mount"),
    )
    paths = engines.check_namespaces(of)
    assert set(paths) == {"pid", "ipc", "uts"}
    assert engines.shared_with(paths, waiters) == "first"
    assert engines.shared_with({"ipc": "/proc/7/ns/ipc"}, waiters) == ""


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("pid", "/proc/8/ns/pid"),
        ("pid", "/run/pidns/x"),
        ("ipc", "/proc/1/ns/ipc"),
        ("mount", "/proc/7/ns/mnt"),
        ("user", "/proc/7/ns/user"),
        ("cgroup", "/proc/7/ns/cgroup"),
    ],
)
def test_namespaces_of_the_host_are_refused(kind: str, path: str) -> None:
    with pytest.raises(BundleUnsupported):
        engines.shared_with({kind: path}, {7: "first"})
    with pytest.raises(BundleUnsupported):
        engines.shared_with({"uts": "/run/utsns/x"}, {})


def test_namespaces_that_are_none() -> None:
    with pytest.raises(BundleUnsupported):
        engines.check_namespaces(config(Namespace("time")))
    with pytest.raises(BundleUnsupported):
        engines.check_namespaces(config(Namespace("pid"), Namespace("pid", "/proc/7/ns/pid")))


def test_hooks_that_the_guest_runs() -> None:
    hook = Hook("/bin/h", ("h",), (), 3)
    fields = engines.start_hooks("c", "/b", config(hooks=Hooks(start_container=(hook,))), 5)
    assert json.loads(fields[0].value)["status"] == "created"
    assert fields[1].tag == Tag.START_HOOK
    assert fields[1].value == struct.pack("<III", 3, 1, 0) + b"/bin/h\0h\0"
    assert engines.start_hooks("c", "/b", config(), 5) == []


RECORD = ContainerRecord("c", "/b", 5, "running", 1, created="2026-11-22T00:00:00Z")


def exec_of(*fields: frames.Field) -> frames.Message:
    return frames.Message(frames.Kind.ASK_EXEC, 1, (frames.text(Tag.ARG, "id"), *fields))


def test_an_exec_is_as_the_container_but_for_its_flags() -> None:
    first = Process(args=("x",), env=("A=1",), cwd="/w", user=User(3, 4, 0o27), terminal=True, no_new_privileges=False)
    plain = answers.plain_process(exec_of(), first)
    assert (plain.args, plain.env, plain.cwd, plain.user, plain.terminal) == (
        ("id",),
        ("A=1",),
        "/w",
        first.user,
        False,
    )
    found = answers.plain_process(
        exec_of(
            frames.text(Tag.UID, "7:8"),
            frames.text(Tag.GROUP, "9"),
            frames.text(Tag.CAPABILITIES, "net_raw"),
            frames.text(Tag.ENV, "B=2"),
            frames.u32(Tag.FLAGS, answers.NO_NEW_PRIVS),
        ),
        first,
    )
    assert found.user == User(7, 8, 0o27, (9,))
    assert found.env == ("A=1", "B=2")
    assert answers.plain_process(exec_of(frames.text(Tag.ENV, "A=3")), first).env == ("A=3",)
    assert found.no_new_privileges
    assert found.capabilities is not None
    assert found.capabilities["effective"] == ("CAP_NET_RAW",)
    assert "ambient" not in found.capabilities


@pytest.mark.parametrize(
    "field",
    [
        frames.text(Tag.UID, "www"),
        frames.text(Tag.UID, "1:x"),
        frames.text(Tag.UID, "4294967295"),
        frames.text(Tag.GROUP, "wheel"),
        frames.text(Tag.CAPABILITIES, "CAP_NONE"),
    ],
)
def test_an_exec_that_is_refused(field: frames.Field) -> None:
    with pytest.raises(BundleUnsupported):
        answers.plain_process(exec_of(field), PLAIN)


def test_a_list_in_the_forms_that_tools_read() -> None:
    assert answers.listed([RECORD], "quiet") == "c"
    assert json.loads(answers.listed([RECORD], "json"))[0]["created"] == RECORD.created
    assert answers.listed([], "json") == "null"
    head, row = answers.listed([RECORD], "table").splitlines()
    assert head.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert row.split() == ["c", "5", "running", "/b", RECORD.created, "root"]
    with pytest.raises(BundleUnsupported):
        answers.listed([RECORD], "yaml")


def test_what_is_paused_or_stopped_takes_no_exec() -> None:
    answers.check_can_exec(RECORD, ignore_paused=False)
    paused = msgspec.structs.replace(RECORD, status="paused")
    answers.check_can_exec(paused, ignore_paused=True)
    for one in (paused, msgspec.structs.replace(RECORD, status="stopped")):
        with pytest.raises(Conflict):
            answers.check_can_exec(one, ignore_paused=False)


def test_limits_of_update_that_the_guest_need_not_hold() -> None:
    found = reports.resources("", ["memory=100", "memory-swap=-1", "blkio-weight=500"])
    assert (found.memory, found.block_io) == (MemoryLimit(100), BlockIo(500))
    with pytest.raises(BundleUnsupported, match="allowed are 0 to 1000"):
        reports.resources("", ["blkio-weight=1001"])


def test_namespaces_that_the_waiter_has_on_the_host() -> None:
    listed = config(Namespace("network"), Namespace("ipc"), Namespace("uts", "/proc/7/ns/uts"), Namespace("cgroup"))
    fields = engines.prepared("c", "/b", listed)
    assert [one.value for one in fields if one.tag == Tag.NAMESPACES] == [struct.pack("<I", 0x0A00_0000)]


@pytest.mark.parametrize(
    "linux",
    [
        Linux(net_devices={"eth7": {}}),
        Linux(memory_policy={"mode": "MPOL_BIND"}),
        Linux(intel_rdt={"closID": "one"}),
    ],
)
def test_what_a_machine_has_not_is_refused(linux: Linux) -> None:
    with pytest.raises(BundleUnsupported, match="a virtual machine has none"):
        engines.check_resources(Config(process=PLAIN, linux=linux))


def test_a_class_of_packets_is_refused() -> None:
    network = NetworkClass(class_id=1048577)
    wanted = Config(
        process=PLAIN, linux=Linux(namespaces=(Namespace("network"),), resources=Resources(network=network))
    )
    with pytest.raises(BundleUnsupported, match="no class"):
        engines.prepared("c", "/b", wanted)
    # What engines write that say nothing of it.
    engines.check_resources(Config(process=PLAIN, linux=Linux(resources=Resources(network=NetworkClass()))))
