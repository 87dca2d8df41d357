"""Ranges, addresses, grants, records and limits: hostd's own logic without a kernel."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import msgspec
import pytest

from casemate.host.granted import GRANTS, granted
from casemate.hostd import checks, grants, pods
from casemate.hostd.errors import CallerForged, ContainerMissing, PodMissing, RangesExhausted, RecordCorrupt
from casemate.hostd.folders import Folders
from casemate.hostd.grants import NOBODY, Caller
from casemate.hostd.records import CallerRecord, ContainerRecord, PodRecord, Records
from casemate.hostd.state import State
from casemate.hostd.watching import UNKNOWN_EXIT_CODE, read_exit
from casemate.isolation.level import Features
from casemate.spec.errors import GrantMissing, InvalidArgument
from casemate.spec.settings import Settings
from casemate.spec.workload import ContainerSpec, NetworkSpec, PodSpec, Process, Resources, VolumeMount

POD = PodSpec(id="a" * 64, name="p", hostname="h", network=NetworkSpec(address="10.209.0.2"))
CONTAINER = ContainerSpec(
    id="b" * 64, pod="a" * 64, name="c", layers=(), process=Process(args=("x",)), mounts=(VolumeMount("v", "/v"),)
)


def record(first: int = 1000, **values: object) -> PodRecord:
    return PodRecord(msgspec.structs.replace(POD, **values), "ready", first, "boot")


def test_ranges_never_overlap_and_are_not_given_again_at_once() -> None:
    state = State()
    given = []
    for index in range(3):
        first = state.free_range(1000, 4)
        given.append(first)
        state.add_pod(record(first, id=f"{index}" * 64, network=NetworkSpec(mode="none")))
    assert given == [1000, 1000 + 65536, 1000 + 2 * 65536]
    state.remove_pod(state.pod("0" * 64))
    assert state.free_range(1000, 4) == 1000 + 3 * 65536
    assert state.free_range(1000, 4) == 1000
    for first in (1000, 1000 + 3 * 65536):
        state.add_pod(record(first, id=f"{first:064x}", network=NetworkSpec(mode="none")))
    with pytest.raises(RangesExhausted) as caught:
        state.free_range(1000, 4)
    assert caught.value.code == "hostd.ranges_exhausted"


def test_volumes_are_held_by_containers_and_addresses_by_pods() -> None:
    state = State()
    pod = state.add_pod(record())
    container = state.add_container(pod, ContainerRecord(CONTAINER, "created", "boot"))
    assert state.volume_users == {("default", "v"): {CONTAINER.id}}
    assert state.addresses == {"10.209.0.2": POD.id}
    state.remove_container(pod, container)
    state.remove_pod(pod)
    assert (state.volume_users, state.addresses, state.ranges, state.containers) == ({}, {}, {}, {})
    with pytest.raises(PodMissing):
        state.pod(POD.id)
    with pytest.raises(ContainerMissing):
        state.container(CONTAINER.id)


def test_grants_by_user_and_group() -> None:
    settings = Settings({"grants.devices": ("4242",), "grants.host_paths": ("@777", "nosuchuser")})
    assert granted(0, 0, (), settings) == frozenset(GRANTS)
    assert granted(4242, 1, (), settings) == {"devices"}
    assert granted(1, 777, (), settings) == granted(1, 1, (5, 777), settings) == {"host_paths"}
    assert granted(777, 1, (), settings) == frozenset()
    with pytest.raises(GrantMissing) as caught:
        NOBODY.need("devices", "x")
    assert "grants.devices" in (caught.value.instance_remedy or "")
    caller = Caller(5, 6, (7,), frozenset({"devices"}))
    assert grants.from_record(caller.record()) == caller
    assert grants.from_record(None) == NOBODY


def test_a_descriptor_that_is_no_connection_to_the_api(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(CallerForged) as caught:
        grants.caller_of(ours.fileno(), tmp_path / "api.sock", Settings({}))
    assert caught.value.code == "hostd.caller_forged"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "api.sock"))
    listener.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(tmp_path / "api.sock"))
    accepted, _ = listener.accept()
    with listener, client, accepted:
        caller = grants.caller_of(accepted.fileno(), tmp_path / "api.sock", Settings({}))
        assert caller.uid == os.geteuid()
        with pytest.raises(CallerForged):
            grants.caller_of(client.fileno(), tmp_path / "api.sock", Settings({}))
        with pytest.raises(CallerForged):
            grants.caller_of(accepted.fileno(), tmp_path / "other" / "api.sock", Settings({}))


def test_records_come_back_as_they_were_and_damaged_ones_are_named(tmp_path: Path) -> None:
    async def body() -> None:
        folders = Folders(tmp_path, tmp_path / "run")
        folders.pods.mkdir()
        records = Records(folders)
        caller = CallerRecord(1, 2, (3,), ("devices",))
        pod = msgspec.structs.replace(record(), caller=caller)
        container = ContainerRecord(CONTAINER, "exited", "boot", exit_code=3)
        records.write_pod(pod)
        records.write_container(container)
        assert list(records.pods()) == [POD.id]
        assert list(records.containers(POD.id)) == [CONTAINER.id]
        assert records.read_pod(POD.id) == pod
        assert records.read_container(POD.id, CONTAINER.id) == container
        assert records.due() == []
        for damaged in (
            b"",
            b"{",
            b"[]",
            b'{"schema": 2}',
            folders.pod_record(POD.id).read_bytes().replace(b"a" * 64, b"c" * 64),
        ):
            folders.pod_record(POD.id).write_bytes(damaged)
            with pytest.raises(RecordCorrupt) as caught:
                records.read_pod(POD.id)
            assert caught.value.code == "hostd.record_corrupt"

    asyncio.run(body())


def test_limits_as_the_kernel_counts_them() -> None:
    limits = pods.limits(Resources(memory_swap_bytes=-1, pids=-1, cpu_shares=1024, cpu_millis=1500))
    assert (limits.memory_swap_bytes, limits.pids, limits.cpu_millis) == (0, 0, 1500)
    assert limits.cpu_weight == 39  # the OCI runtimes' formula for 1024 shares
    assert pods.limits(Resources()).pids is None
    several = Features(processes="runtime", state_is_files=True, process_tasks=12, own_tasks=256)
    assert [pods.limits(Resources(pids=one), several).pids for one in (10, -1, None)] == [376, 0, None]
    both = pods.merged(Resources(pids=5, memory_bytes=9), Resources(pids=6))
    assert (both.pids, both.memory_bytes) == (6, 9)


@pytest.mark.parametrize("text", ["", ",", "1-", "-1", "3-1", "0,,1", "9999", "1-2-3", "0-8000"])
def test_cpusets_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument):
        checks.check_cpuset(text)


def test_exit_files(tmp_path: Path) -> None:
    path = tmp_path / "x"
    code, _, reason = read_exit(path)
    assert (code, bool(reason)) == (UNKNOWN_EXIT_CODE, True)
    for text, expected in ((b"7", 7), (b"nonsense", UNKNOWN_EXIT_CODE), (b"9" * 1000, UNKNOWN_EXIT_CODE)):
        path.write_bytes(text)
        assert read_exit(path)[0] == expected


def test_five_thousand_pods_are_looked_through_in_one_pass() -> None:
    """What Observe does for a page must not grow with the square of the pods."""
    state = State()
    for index in range(5000):
        state.add_pod(record(state.free_range(0, 20_000), id=f"{index:064x}", network=NetworkSpec(mode="none")))
    assert len({one.record.first_id for one in state.pods.values()}) == 5000
