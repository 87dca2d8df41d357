"""The gVisor driver: what it gives runsc, what it refuses, and how it reads runsc's words."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.host.cgroups import Cgroups
from casemate.isolation.bundle import BundleInput, HostFacts, Sandbox
from casemate.isolation.gvisor import driver
from casemate.isolation.gvisor.driver import GvisorLevel, Program
from casemate.isolation.gvisor.inside import AnswerBroken, GvisorInside, named, read_command_lines, read_processes
from casemate.isolation.level import LevelLacks, Runtime, SandboxPaused
from casemate.spec.workload import ContainerSpec, Device, NetworkSpec, PodSpec, Process, Security, Sysctl

ID = "a" * 64
#: As a version of 2022 prints it.
OLD = """  -oci-seccomp
    \tEnables loading OCI seccomp filters inside the sandbox.
  -platform string
    \tspecifies which platform to use: ptrace (default), kvm. (default "ptrace")
  -network value
    \tspecifies which network to use
"""
#: As one of 2024 prints it.
NEW = """  -directfs
    \tdirectly access the container filesystems from the sentry. (default true)
  -overlay2 value
    \twrap mounts with overlayfs
  -platform string
    \tspecifies which platform to use: systrap (default), ptrace, kvm. (default "systrap")
"""


def wanted(change: Callable[[BundleInput], BundleInput] = lambda one: one) -> BundleInput:
    pins = {kind: f"/pins/{kind}" for kind in ("user", "network", "ipc", "uts")}
    return change(
        BundleInput(
            pod=PodSpec(id=ID, name="p", hostname="p", level="gvisor"),
            container=ContainerSpec(id=ID, pod=ID, name="c", layers=(), process=Process(args=("true",), cwd="/")),
            sandbox=Sandbox(pins, 1_000_000, "casemate/p"),
            rootfs="/root",
            facts=HostFacts(machine="x86_64", bounding=(1 << 41) - 1),
        )
    )


def test_flags_and_platforms_are_read_from_the_programs_own_words() -> None:
    assert driver.read_flags(OLD) == (frozenset({"oci-seccomp", "platform", "network"}), ("ptrace", "kvm"))
    assert driver.read_flags(NEW)[1] == ("systrap", "ptrace", "kvm")
    assert driver.read_flags("") == (frozenset(), ())


def test_kvm_is_taken_by_name_alone() -> None:
    old, new = (Program("/runsc", "1", *driver.read_flags(text)) for text in (OLD, NEW))
    assert driver.candidates(old, "auto") == ("ptrace",)
    assert driver.candidates(new, "auto") == ("systrap", "ptrace")
    assert driver.candidates(old, "kvm") == ("kvm",)


def test_only_flags_that_exist_are_given() -> None:
    old, new = (Program("/runsc", "1", *driver.read_flags(text)) for text in (OLD, NEW))
    assert driver.runtime(old, "ptrace", "/r", cover=True).global_arguments == (
        *("--root", "/r", "--platform=ptrace"),
        *("--network=sandbox", "--oci-seccomp=true"),
    )
    assert "--directfs=false" in driver.runtime(new, "systrap", "/r", cover=False).arguments
    assert driver.runtime(old, "ptrace", "/r", cover=True).cover_at_start == ("/proc/sys/net",)


def test_started_by_casemate_vm_its_command_line_stands_behind_its_own() -> None:
    runtime = driver.wrapped(Runtime("/usr/bin/runsc", "/r", ("--platform=ptrace",)), "/x/casemate-vm")
    words = ("/x/casemate-vm", "runsc", "/usr/bin/runsc", "--root", "/r", "--platform=ptrace", "start", "c")
    assert runtime.start("c") == words


def test_the_user_namespace_is_new_and_the_network_is_the_pods() -> None:
    plan = GvisorLevel(Runtime("/runsc", "/r"), "").bundle(wanted())
    linux = plan.config["linux"]
    assert {"type": "user"} in linux["namespaces"]
    assert {"type": "network", "path": "/pins/network"} in linux["namespaces"]
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": 1_000_000, "size": 65_536}]
    assert linux["seccomp"], "the container's own filter holds in the sandbox too"
    assert not {"mqueue", "cgroup"} & {one["type"] for one in plan.config["mounts"]}


@pytest.mark.parametrize(
    ("pod", "container"),
    [
        ({"network": NetworkSpec(mode="host")}, {}),
        ({"host_pid": True}, {}),
        ({"host_ipc": True}, {}),
        ({}, {"devices": (Device("/dev/null", "/dev/x"),)}),
        ({}, {"security": Security(privileged=True)}),
        ({}, {"sysctls": (Sysctl("net.core.somaxconn", "99"),)}),
    ],
)
def test_what_gvisor_has_no_part_for_is_refused(pod: dict[str, object], container: dict[str, object]) -> None:

    one = wanted()
    one = dataclasses.replace(
        one,
        pod=msgspec.structs.replace(one.pod, **pod),
        container=msgspec.structs.replace(one.container, **container),
    )
    with pytest.raises(LevelLacks):
        GvisorLevel(Runtime("/runsc", "/r"), "").bundle(one)


HEAD = b"UID       PID       PPID      C         TTY       STIME     TIME      CMD\n"


def test_processes_are_read() -> None:
    now = 1_800_000_000.0
    rows = b"5         1         0         13        ?         13:27     1m2s      sleep\n"
    rows += b"0         2         1         16        ?         13:27     20ms      a b c\n"
    one, other = read_processes(HEAD + rows, now)
    assert (one.uid, one.pid, one.cpu_ns, one.command) == (5, 1, 62_000_000_000, "sleep")
    assert now - 86_400 < one.started_at <= now
    assert (other.ppid, other.cpu_ns, other.command) == (1, 20_000_000, "a b c")


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b"UID PID\n1 2\n", b"\xff" * 100_000])
def test_other_answers_are_refused(text: bytes) -> None:
    with pytest.raises(AnswerBroken):
        read_processes(text, 0.0)


class Frozen:
    """A hierarchy in which everything is stopped."""

    def exists(self, _path: str) -> bool:
        return True

    def is_frozen(self, _path: str) -> bool:
        return True


def test_what_was_paused_by_an_earlier_hostd_is_not_waited_for(tmp_path: Path) -> None:
    spec = {"linux": {"cgroupsPath": f"/casemate/{ID}/{ID}"}}
    (tmp_path / f"{ID}_sandbox:{ID}.state").write_text(json.dumps({"spec": spec}))
    inside = GvisorInside(Runtime("/nonexistent/runsc", str(tmp_path)), cast("Cgroups", Frozen()), "casemate")
    with pytest.raises(SandboxPaused):
        asyncio.run(inside.processes(ID))


def test_command_lines_are_found_by_process() -> None:
    dump = b'PROCFS DUMP\n\n{"args":["sleep","5 4"],"status":{"comm":"sleep","pid":7}}\n\n'
    assert read_command_lines(dump) == {7: "sleep 5 4"}
    assert read_command_lines(b'{"args":["\\ud800"],"status":{"pid":7}}') == {7: "?"}
    rows = read_processes(HEAD + b"0         7         0         13        ?         13:27     0s      sleep\n", 0.0)
    assert [one.command for one in named(rows, {7: "sleep 5 4"})] == ["sleep 5 4"]
    assert [one.command for one in named(rows, {7: "", 8: "x"})] == ["sleep"], "a process may have no arguments"


@given(st.one_of(st.binary(max_size=300), st.recursive(st.none() | st.integers() | st.text(), st.lists).map(repr)))
def test_a_dump_of_anything_makes_no_error(dump: bytes | str) -> None:
    data = dump.encode("utf-8", "replace") if isinstance(dump, str) else dump
    for line in (data, b'{"args":' + data + b',"status":{"pid":1}}', b'{"args":["x"],"status":' + data + b"}"):
        assert all(isinstance(text, str) for text in read_command_lines(line).values())


@given(st.binary(max_size=400))
def test_a_name_of_any_bytes_makes_no_error(name: bytes) -> None:
    row = b"5         1         0         13        ?         13:27     0s        " + name + b"\n"
    found = read_processes(HEAD + row, 0.0)
    assert all(0 <= one.pid <= 0xFFFF_FFFF for one in found)
