"""The profile against a slow model of what the kernel does with it, and against the field's own profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.isolation import seccomp
from casemate.isolation import seccomp_groups as groups
from casemate.spec import capabilities

DEFAULT = frozenset(capabilities.DEFAULT_SET)
FIELD = Path("/usr/share/containers/seccomp.json")
#: What the field's profile of Debian 12 (Podman's) allows and ours does not, and why.
STRICTER = {
    "keyctl": "the kernel's keyrings know no container (Docker refuses it too)",
    "reboot": "takes CAP_SYS_BOOT",
    "socketcall": "libseccomp gives it the rules of the calls that it stands for",
    "syscall": "no call of its own on these architectures",
    "get_mempolicy mbind set_mempolicy": "take CAP_SYS_NICE, as with Docker",
    "fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree pivot_root setns umount umount2 unshare": (
        "take CAP_SYS_ADMIN, as with Docker"
    ),
    "syslog": "takes CAP_SYSLOG",
    "pidfd_getfd": "takes CAP_SYS_PTRACE, as with Docker",
    "clone clone3": "by their flags, as with Docker",
}


def verdict(profile: dict[str, Any], name: str, *arguments: int) -> int:
    """0 when allowed, else the errno: what libseccomp's rules mean, one after the other."""
    errno = profile["defaultErrnoRet"]
    padded = [*arguments, *(0 for _ in range(6))]
    for rule in profile["syscalls"]:
        if name in rule["names"] and all(_holds(one, padded) for one in rule.get("args", ())):
            if rule["action"] == "SCMP_ACT_ALLOW":
                return 0
            errno = rule["errnoRet"]
    return int(errno)


def _holds(one: dict[str, Any], arguments: list[int]) -> bool:
    value = arguments[one["index"]] & (1 << 64) - 1
    if one["op"] == "SCMP_CMP_MASKED_EQ":
        return bool(value & one["value"] == one["valueTwo"])
    assert one["op"] == "SCMP_CMP_EQ"
    return bool(value == one["value"])


@given(family=st.integers(0, 1 << 40), kind=st.integers(0, 10), protocol=st.integers(0, 40))
def test_sockets_by_the_family_that_the_kernel_will_read(family: int, kind: int, protocol: int) -> None:
    seen = family & 0xFFFF_FFFF  # socket(2) takes an int
    allowed = seen < 48 and seen not in (38, 40) and not (seen == 16 and (protocol == 9 or protocol >= 32))
    assert (verdict(seccomp.profile(DEFAULT, "x86_64"), "socket", family, kind, protocol) == 0) == allowed


def test_the_audit_socket_answers_as_if_there_were_no_audit() -> None:
    profile = seccomp.profile(DEFAULT, "x86_64")
    assert verdict(profile, "socket", 16, 3, 9) == seccomp.EINVAL
    assert verdict(profile, "socket", 16 + (1 << 32), 3, 9 + (1 << 32)) == seccomp.EINVAL
    assert verdict(profile, "socket", 16, 3, 0) == 0


@pytest.mark.parametrize("flag", [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000])
def test_no_new_namespace_without_the_capability(flag: int) -> None:
    profile = seccomp.profile(DEFAULT, "x86_64")
    assert verdict(profile, "clone", flag | 0x11) != 0
    assert verdict(profile, "clone", 0x1200011) == 0
    assert verdict(profile, "clone3") == seccomp.ENOSYS
    assert verdict(seccomp.profile(DEFAULT | {"CAP_SYS_ADMIN"}, "x86_64"), "clone3") == 0


def test_personality() -> None:
    profile = seccomp.profile(DEFAULT, "x86_64")
    assert verdict(profile, "personality", 0x20008) == 0
    assert verdict(profile, "personality", 0x0040000) != 0  # ADDR_NO_RANDOMIZE


@pytest.mark.parametrize(("capability", "row"), groups.BY_CAPABILITY.items())
def test_a_capability_opens_its_calls_and_nothing_else_does(capability: str, row: tuple[str, str]) -> None:
    for name in groups.names(row[1]):
        assert verdict(seccomp.profile(frozenset({capability}), "x86_64"), name) == 0
        others = {one for one, (_, text) in groups.BY_CAPABILITY.items() if name not in groups.names(text)}
        assert verdict(seccomp.profile(frozenset(others), "x86_64"), name) == seccomp.EPERM


def test_what_is_refused_says_so_and_what_is_unknown_looks_unknown() -> None:
    profile = seccomp.profile(frozenset(capabilities.ALL), "x86_64")
    for _, text in groups.NEVER.values():
        for name in groups.names(text):
            assert verdict(profile, name) == seccomp.EPERM, name
    assert verdict(profile, "a_call_of_2030") == seccomp.ENOSYS


def test_every_group_has_a_reason_and_no_name_stands_twice() -> None:
    seen: list[str] = []
    for reason, text in (*groups.ALWAYS.values(), *groups.NEVER.values()):
        assert len(reason) > 5
        seen.extend(groups.names(text))
    assert len(seen) == len(set(seen))


def test_x32_is_not_among_the_architectures() -> None:
    assert all("X32" not in name for names in seccomp.ARCHITECTURES.values() for name in names)


def test_equal_in_effect_to_the_fields_profile() -> None:
    if not FIELD.exists():
        pytest.skip("missing: /usr/share/containers/seccomp.json (Debian package golang-github-containers-common)")
    ours = seccomp.allowed_names(DEFAULT, "x86_64")
    theirs: set[str] = set()
    for rule in json.loads(FIELD.read_text())["syscalls"]:
        included = rule.get("includes") or {}
        if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args") and not included:
            theirs.update(rule["names"])
    explained = {name for names in STRICTER for name in names.split()}
    assert theirs - ours == explained | {"socket"} & (theirs - ours)
