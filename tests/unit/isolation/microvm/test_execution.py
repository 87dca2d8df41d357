"""Scheduler, priority of input and output, personality, domain name, files of cgroup v2: a bundle's words as fields."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from casemate.isolation.microvm import config, execution
from casemate.isolation.microvm.errors import BundleUnsupported
from casemate.isolation.microvm.frames import Tag
from casemate.isolation.microvm.oci import Config, Personality, Process, read_config


def process(**change: Any) -> Process:
    return read_config(json.dumps({"process": {"args": ["x"], **change}}).encode()).process


def scheduler(policy: str, **change: Any) -> list[tuple[int, bytes]]:
    wanted = process(scheduler={"policy": policy, **change})
    return [(one.tag, one.value) for one in execution.fields(wanted)]


def test_what_every_process_has_is_not_said() -> None:
    assert execution.fields(process()) == []
    assert execution.personality(None) == execution.personality(Personality()) == []


def test_a_scheduler_as_the_kernel_has_it() -> None:
    assert scheduler("SCHED_FIFO", priority=10, flags=["SCHED_FLAG_RESET_ON_FORK"]) == [
        (Tag.SCHEDULER, struct.pack("<IiIQQQQ", 1, 0, 10, 1, 0, 0, 0))
    ]
    assert scheduler("SCHED_BATCH", nice=-5) == [(Tag.SCHEDULER, struct.pack("<IiIQQQQ", 3, -5, 0, 0, 0, 0, 0))]
    times = {"runtime": 10_000_000, "deadline": 20_000_000, "period": 30_000_000}
    assert scheduler("SCHED_DEADLINE", **times) == [
        (Tag.SCHEDULER, struct.pack("<IiIQQQQ", 6, 0, 0, 0, *times.values()))
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"policy": "SCHED_NONE"}, "allowed are SCHED_OTHER"),
        ({"policy": "SCHED_RR", "flags": ["SCHED_FLAG_NONE"]}, "allowed are SCHED_FLAG_RESET_ON_FORK"),
        ({"policy": "SCHED_RR", "runtime": 5}, "are of SCHED_DEADLINE"),
        ({"policy": "SCHED_DEADLINE", "deadline": 5000}, "requires `runtime`"),
        ({"policy": "SCHED_DEADLINE", "runtime": 5000}, "requires `deadline`"),
        ({"policy": "SCHED_DEADLINE", "runtime": 0, "deadline": 5000}, "runtime must be greater than 0"),
        ({"policy": "SCHED_DEADLINE", "runtime": 1023, "deadline": 5000}, "runtime 1023 must be between 1024 and"),
        ({"policy": "SCHED_DEADLINE", "runtime": 1 << 63, "deadline": 1 << 63}, "must be between 1024 and"),
        ({"policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 4000}, "runtime 5000 must be <= deadline 4000"),
        (
            {"policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 9000, "period": 8000},
            "deadline 9000 must be <= period 8000",
        ),
        ({"policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 9000, "period": 1 << 63}, "period .* must be <="),
    ],
)
def test_a_scheduler_that_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BundleUnsupported, match=words):
        execution.fields(process(scheduler=change))


def test_a_priority_of_input_and_output() -> None:
    (field,) = execution.fields(process(ioPriority={"class": "IOPRIO_CLASS_IDLE", "priority": 0}))
    assert (field.tag, field.value) == (Tag.IO_PRIORITY, struct.pack("<I", 3 << 13))
    with pytest.raises(BundleUnsupported, match="IOPRIO_CLASS_RT"):
        execution.fields(process(ioPriority={"class": "IOPRIO_CLASS_NONE"}))
    with pytest.raises(BundleUnsupported):
        process(ioPriority={"class": "IOPRIO_CLASS_RT", "priority": 8})


def test_a_personality() -> None:
    (field,) = execution.personality(Personality("LINUX32"))
    assert (field.tag, field.value) == (Tag.PERSONALITY, struct.pack("<I", 8))
    for wanted in (Personality("BSD"), Personality("LINUX32", ("ADDR_NO_RANDOMIZE",))):
        with pytest.raises(BundleUnsupported, match="LINUX32"):
            execution.personality(wanted)


def whole(**change: Any) -> Config:
    return read_config(json.dumps({"process": {"args": ["x"]}, **change}).encode())


def texts(found: Config, tag: Tag) -> list[bytes]:
    return [one.value for one in config.create_fields(found, "c", 1, contents=(), seccomp=b"") if one.tag == tag]


def test_a_domain_name_is_a_setting_of_the_kernel() -> None:
    assert texts(whole(domainname="example.org"), Tag.SYSCTL) == [b"kernel.domainname=example.org"]
    both = {"sysctl": {"kernel.domainname": "example.org"}}
    assert texts(whole(domainname="example.org", linux=both), Tag.SYSCTL) == [b"kernel.domainname=example.org"]
    for name in ("kernel.domainname", "kernel/domainname"):
        with pytest.raises(BundleUnsupported, match="do not agree"):
            texts(whole(domainname="example.org", linux={"sysctl": {name: "other"}}), Tag.SYSCTL)


def test_files_of_cgroup_v2_are_the_guests() -> None:
    wanted = whole(linux={"resources": {"unified": {"memory.high": "5", "hugetlb.2MB.max": "0"}}})
    assert texts(wanted, Tag.LIMIT) == [b"memory.high\x005", b"hugetlb.2MB.max\x000"]


@pytest.mark.parametrize(
    "name", ["cgroup.procs", "cgroup.kill", "memory", "../memory.max", "memory.max/x", "", "a\n.b"]
)
def test_files_of_no_controller_are_refused(name: str) -> None:
    with pytest.raises(BundleUnsupported, match="unified"):
        texts(whole(linux={"resources": {"unified": {name: "1"}}}), Tag.LIMIT)
