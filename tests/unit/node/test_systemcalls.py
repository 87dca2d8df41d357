"""The allow-list that inspect shows: the filter's own, for what the container may do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from casemate.hostd import calls
from casemate.isolation import seccomp
from casemate.isolation.microvm.calls import ALLOWED
from casemate.node import systemcalls
from casemate.spec.workload import ContainerSpec, Process, Security

OFFERED = calls.offered("x86_64")
FILTER = Path(__file__).parents[3] / "shim/seccomp.c"


def spec(security: Security) -> ContainerSpec:
    return ContainerSpec("0" * 64, "1" * 64, "c", (), Process(("true",)), security=security)


def applied(*capabilities: str) -> set[str]:
    rules = seccomp.profile(frozenset(capabilities), "x86_64")["syscalls"]
    return {name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}


def test_the_list_of_the_micro_vm_is_the_filters() -> None:
    text = FILTER.read_text()
    assert set(re.findall(r"SYS_(\w+)", text[text.index("allowed[]") : text.index("enum { COUNT")])) == ALLOWED
    found = systemcalls.of("microvm", spec(Security()), OFFERED)
    assert found is not None
    assert (found.allowed, set(found.names)) == (len(ALLOWED), ALLOWED)


@pytest.mark.parametrize(
    "capabilities",
    [(), ("CAP_CHOWN",), ("CAP_SYS_ADMIN",), ("CAP_SYS_PTRACE", "CAP_SYS_TIME"), ("CAP_BPF", "CAP_SYS_MODULE")],
)
def test_a_containers_list_is_that_of_its_profile(capabilities: tuple[str, ...]) -> None:
    found = systemcalls.of("namespace", spec(Security(capabilities=capabilities)), OFFERED)
    assert found is not None
    assert set(found.names) == applied(*capabilities)
    assert found.allowed == len(found.names)
    assert list(found.names) == sorted(found.names)


@pytest.mark.parametrize("security", [Security(privileged=True), Security(seccomp="unconfined")])
def test_no_filter_is_said_as_such(security: Security) -> None:
    found = systemcalls.of("namespace", spec(security), OFFERED)
    assert found is not None
    assert (found.allowed, found.names) == (None, ())
    assert "no filter" in found.of


def test_what_is_not_known_is_not_claimed() -> None:
    assert systemcalls.of("namespace", spec(Security()), {}) is None
    assert systemcalls.of("microvm", spec(Security()), {}) is None
    found = systemcalls.of("gvisor", spec(Security()), OFFERED)
    assert found is not None
    assert found.allowed is None
