"""Command lines, block devices, archives, mount flags, seccomp profiles: pure, and compared with what they mean."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.image import cpio
from casemate.isolation.microvm import (
    argv,
    config,
    disks,
    frames,
    kernelsignals,
    mountflags,
    oci,
    seccomp_enosys,
    seccomp_oci,
)
from casemate.isolation.microvm.errors import BundleUnsupported
from casemate.isolation.microvm.frames import Tag
from casemate.isolation.seccomp_compile import Compiler


def test_a_clone_differs_from_its_template_in_memory_and_start_alone() -> None:
    accelerator = argv.Accelerator("tcg")
    common = (argv.Machine(), accelerator)
    template = argv.argv("q", (*common, argv.Memory(128 << 20, 10, True), argv.Plain()))
    clone = argv.argv("q", (*common, argv.Memory(128 << 20, 10, False), argv.Plain()))
    assert [(a, b) for a, b in zip(template, clone, strict=True) if a != b] == [
        (
            "memory-backend-file,id=ram,size=128M,mem-path=/proc/self/fd/10,share=on",
            "memory-backend-file,id=ram,size=128M,mem-path=/proc/self/fd/10,share=off",
        )
    ]


def test_the_network_card_is_the_same_with_and_without_a_tap() -> None:
    without, with_tap = argv.Network().words(), argv.Network(13).words()
    assert with_tap[-1] == without[-1] + ",netdev=net"
    assert "fd=13" in with_tap[1]


def test_qemu_is_shut_in_by_its_own_sandbox() -> None:
    words = argv.Plain().words()
    sandbox = words[words.index("-sandbox") + 1]
    assert sandbox == "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def test_kernel_command_line_with_and_without_a_known_counter() -> None:
    assert "tsc_early_khz=2596131" in argv.kernel_command_line(2_596_131)
    assert "tsc" not in argv.kernel_command_line(None)
    assert "isolcpus=1" in argv.kernel_command_line(None, 2)
    assert "isolcpus" not in argv.kernel_command_line(None)


@given(st.lists(st.integers(1, 1 << 30), min_size=1, max_size=127))
def test_layers_lie_one_behind_the_other(sizes: list[int]) -> None:
    found = disks.extents(list(enumerate(sizes)))
    at = 0
    for size, extent in zip(sizes, found, strict=True):
        assert extent.start == at
        assert size <= extent.sectors * 512 < size + 4096
        assert extent.start % 8 == 0
        at += extent.sectors


def test_no_empty_line_stands_before_an_extent() -> None:
    """QEMU would take the first extent twice, and every layer but the first would be the wrong one."""
    text = disks.descriptor(disks.extents([(14, 100), (15, 9000)]))
    assert '\nRW 8 FLAT "/proc/self/fd/14" 0\nRW 24 FLAT "/proc/self/fd/15" 0\n' in text
    assert "\n\nRW" not in text
    assert json.loads(disks.joined_node(12))["driver"] == "vmdk"


def test_an_archive_is_what_cpio_reads() -> None:
    data = cpio.archive([cpio.Entry("d", cpio.FOLDER | 0o755), cpio.Entry("d/f", cpio.FILE | 0o644, b"hello")])
    assert data == cpio.archive([cpio.Entry("d", cpio.FOLDER | 0o755), cpio.Entry("d/f", cpio.FILE | 0o644, b"hello")])
    assert len(data) % 4 == 0
    assert data.startswith(b"070701")
    assert b"d/f\0" in data
    assert b"TRAILER!!!" in data


@pytest.mark.parametrize(
    ("options", "flags", "data"),
    [
        (["nosuid", "noexec", "nodev"], 2 | 8 | 4, ""),
        (["ro", "rw"], 0, ""),
        (["rbind", "rprivate"], 4096 | 16384, ""),
        (["nosuid", "mode=755", "size=64k"], 2, "mode=755,size=64k"),
        (["rbind", "rro", "rnosuid", "nosymfollow"], 4096 | 16384 | 1 | 2 | 256, ""),
        (["bind", "rro", "rrw", "idmap"], 4096, ""),
    ],
)
def test_mount_options(options: list[str], flags: int, data: str) -> None:
    assert mountflags.parse(options) == (flags, data)


@pytest.mark.parametrize("word", ["9", "KILL", "SIGKILL", "sigkill"])
def test_signals(word: str) -> None:
    assert kernelsignals.number_of(word) == 9


@pytest.mark.parametrize("word", ["", "0", "65", "999", "FOO", "SIG", "-9", "٣"])
def test_signals_that_are_none(word: str) -> None:
    with pytest.raises(BundleUnsupported) as caught:
        kernelsignals.number_of(word)
    assert caught.value.code == "microvm.bundle_unsupported"


def minimal(**more: object) -> oci.Config:
    body = {"process": {"args": ["true"], "env": ["A=b"], "cwd": "/", **more}}
    return oci.read_config(json.dumps(body).encode())


def fields(wanted: oci.Config) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    for field in config.create_fields(wanted, "c", 3, contents=(), seccomp=b""):
        found.setdefault(field.tag, []).append(field.value)
    return found


def test_capabilities_as_masks() -> None:
    found = fields(minimal(capabilities={"bounding": ["CAP_CHOWN", "CAP_NEWER_THAN_US"], "effective": ["CAP_KILL"]}))
    assert struct.unpack("<5Q", found[Tag.CAPABILITIES][0]) == (1, 1 << 5, 0, 0, 0)


def test_rlimits_by_the_kernels_numbers() -> None:
    unlimited = (1 << 64) - 1
    found = fields(minimal(rlimits=[{"type": "RLIMIT_NOFILE", "soft": 5, "hard": unlimited}]))
    assert struct.unpack("<IQQ", found[Tag.RLIMIT][0]) == (7, 5, unlimited)


def test_limits_are_those_of_cgroup_v2() -> None:
    body = {
        "process": {"args": ["x"]},
        "linux": {"resources": {"pids": {"limit": 9}, "memory": {"limit": 1 << 20}, "cpu": {"quota": 50_000}}},
    }
    found = fields(oci.read_config(json.dumps(body).encode()))
    assert found[Tag.LIMIT] == [b"pids.max\x009", b"memory.max\x001048576", b"cpu.max\x0050000 100000"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"process": {"args": []}}',
        b'{"process": {"args": [1]}}',
        b'{"process": {"args": ["x"], "user": {"uid": -1}}}',
        b'{"process": {"args": ["x"], "rlimits": [{"type": "RLIMIT_FOO", "soft": 1, "hard": 1}]}}',
        b'{"process": {"args": ["x"]}, "mounts": [{"destination": "/x", "type": "nfs"}]}',
        b'{"process": {"args": ["x"]}, "mounts": [{"destination": "/x\\u0000y", "type": "tmpfs"}]}',
        b'{"process": {"args": ["x"]}, "linux": {"devices": [{"path": "/dev/x", "type": "q"}]}}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_hostile_bundles(body: bytes) -> None:
    with pytest.raises(BundleUnsupported):
        config.create_fields(oci.read_config(body), "c", 1, contents=(), seccomp=b"")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "a" * 65, "a\n"])
def test_ids_that_are_none(name: str) -> None:
    with pytest.raises(BundleUnsupported):
        config.check_id(name)


def test_a_request_fits_one_message() -> None:
    wanted = minimal(args=["x" * 1000] * 100)
    assert frames.encode(frames.Kind.CREATE, 1, config.create_fields(wanted, "c", 1, contents=(), seccomp=b""))


def test_an_engines_seccomp_profile() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}
        ],
    }
    found = seccomp_oci.normalised(profile)
    assert found["defaultErrnoRet"] == 1
    assert found["syscalls"][0]["args"][0]["valueTwo"] == 0
    assert seccomp_oci.flags({"flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}) == 6


@pytest.mark.parametrize(
    "broken",
    [
        {"defaultAction": "SCMP_ACT_NOTIFY"},
        {"defaultAction": None},
        {"defaultAction": ["SCMP_ACT_ALLOW"]},
        {"defaultErrnoRet": -1},
        {"defaultErrnoRet": True},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]},
        {"syscalls": "read"},
        {"syscalls": [{"names": "read", "action": "SCMP_ACT_ALLOW"}]},
        {"syscalls": [{"names": ["x"] * 9000, "action": "SCMP_ACT_ALLOW"}]},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]}]},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "op": "SCMP_CMP_OR"}]}]},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"value": 1 << 64, "op": "EQ"}]}]},
        {"architectures": [7]},
    ],
)
def test_seccomp_profiles_that_are_refused(broken: dict[str, object]) -> None:
    with pytest.raises(BundleUnsupported):
        seccomp_oci.normalised({"defaultAction": "SCMP_ACT_ALLOW", **broken})


def test_a_seccomp_flag_that_a_guest_cannot_have() -> None:
    with pytest.raises(BundleUnsupported):
        seccomp_oci.flags({"flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]})


def test_every_action_and_operator_compiles() -> None:
    compiler = Compiler()
    rule = {"names": ["dup"], "args": [{"index": 1, "value": 8, "valueTwo": 8, "op": "SCMP_CMP_EQ"}]}
    programs = set()
    for action in seccomp_oci.ACTIONS[1:]:
        wanted = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule | {"action": action}]}
        programs.add(compiler.compile(seccomp_oci.normalised(wanted)))
    # KILL is the older name of KILL_THREAD.
    assert len(programs) == len(seccomp_oci.ACTIONS) - 2
    for op in seccomp_oci.OPERATORS:
        one = {"index": 1, "value": 8, "valueTwo": 8, "op": f"SCMP_CMP_{op}"}
        wanted = {
            "defaultAction": "SCMP_ACT_KILL_PROCESS",
            "syscalls": [{**rule, "action": "SCMP_ACT_LOG", "args": [one]}],
        }
        programs.add(compiler.compile(seccomp_oci.normalised(wanted)))
    assert len(programs) == len(seccomp_oci.ACTIONS) - 2 + len(seccomp_oci.OPERATORS)
    both = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{**rule, "action": "SCMP_ACT_TRAP", "args": rule["args"] * 2}],
    }
    assert compiler.compile(seccomp_oci.normalised(both)) in programs


def test_propagation_is_a_flag_of_its_own() -> None:
    assert mountflags.parse(["rbind", "rshared"]) == (4096 | 16384 | 1 << 20 | 1 << 41, "")
    assert mountflags.parse(["bind", "unbindable"]) == (4096 | 1 << 17, "")
    assert mountflags.parse(["bind", "runbindable", "private"]) == (4096, "")
    assert config.create_fields(minimal(), "c", 1, contents=(), seccomp=b"")
    for word, flags in (("shared", 1 << 20), ("runbindable", 1 << 17 | 16384), ("rslave", None), ("", None)):
        wanted = oci.read_config(
            json.dumps({"process": {"args": ["x"]}, "linux": {"rootfsPropagation": word}}).encode()
        )
        assert fields(wanted).get(Tag.PROPAGATION) == (None if flags is None else [struct.pack("<I", flags)])
    wanted = oci.read_config(b'{"process": {"args": ["x"]}, "linux": {"rootfsPropagation": "sideways"}}')
    with pytest.raises(BundleUnsupported):
        fields(wanted)


def test_processes_are_shared_with_a_container_of_the_machine() -> None:
    body = {"process": {"args": ["x"]}, "linux": {"namespaces": [{"type": "pid", "path": "/proc/7/ns/pid"}]}}
    found = config.create_fields(
        oci.read_config(json.dumps(body).encode()), "c", 1, contents=(), seccomp=b"", join_pids="a"
    )
    assert [one.value for one in found if one.tag == Tag.JOIN_PIDS] == [b"a"]
    assert [one.value for one in found if one.tag == Tag.NAMESPACES] == [struct.pack("<I", 0x0002_0000)]


def judged(program: bytes, architecture: int, number: int) -> int:
    """What the kernel's filter machine answers; of its language only what libseccomp and we write."""
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    data, value, at = struct.pack("<IIQ6Q", number, architecture, *(0,) * 7), 0, 0
    while True:
        operation, yes, no, k = code[at]
        at += 1
        match operation:
            case 0x20:
                value = struct.unpack_from("<I", data, k)[0]
            case 0x05:
                at += k
            case 0x06:
                return int(k)
            case _:
                test = {0x15: value == k, 0x25: value > k, 0x35: value >= k, 0x45: bool(value & k)}[operation]
                at += yes if test else no


def test_system_calls_newer_than_a_profile_do_not_exist() -> None:
    compiler = Compiler()
    rule = {"names": ["read", "getcwd", "statx"], "action": "SCMP_ACT_ALLOW"}
    asked = {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"], "syscalls": [rule]}
    known = seccomp_oci.normalised(asked)
    assert seccomp_enosys.applies(known)
    largest = compiler.largest(known)
    assert largest == {0xC000_003E: 332, 0x4000_0003: 383}
    program = seccomp_enosys.before(compiler.compile(known), largest)
    allow, eperm, enosys = 0x7FFF_0000, 0x0005_0001, 0x0005_0026
    for architecture, number, answer in (
        (0xC000_003E, 0, allow),
        (0xC000_003E, 332, allow),
        (0xC000_003E, 1, eperm),
        (0xC000_003E, 333, enosys),
        (0xC000_003E, 100_000, enosys),
        (0x4000_0003, 3, allow),
        (0x4000_0003, 384, enosys),
        (0xC000_003E, 0x4000_0000 | 5, 0),  # x32, which the profile does not allow: the thread is ended
    ):
        assert judged(program, architecture, number) == answer, (hex(architecture), number)
    assert not seccomp_enosys.applies(known | {"defaultErrnoRet": 38})
    assert not seccomp_enosys.applies(known | {"defaultAction": "SCMP_ACT_LOG"})
    assert len(seccomp_enosys.before(program, dict.fromkeys(range(4000), 1))) == len(program)
