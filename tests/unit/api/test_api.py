"""The API over a fake hostd: answers, problems, bounds, and the life of a container."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx
from tests.unit.api.fakes import MEMBER, ROOT, STRANGER, Api, FakeHostd, running_api

from casemate.hostd import protocol as p
from casemate.hostd.client import HostdAway
from casemate.node import recovery
from casemate.spec.errors import CommandNotFound, GrantMissing


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[Api], Awaitable[None]]], None]:
    def go(scenario: Callable[[Api], Awaitable[None]]) -> None:
        async def outer() -> None:
            async with running_api(tmp_path) as api:
                with blockbuster_ctx("casemate"):
                    await scenario(api)

        asyncio.run(outer())

    return go


def check_problem(answer: tuple[int, dict[str, str], dict[str, object]], status: int, code: str) -> None:
    got, headers, problem = answer
    assert (got, problem["code"]) == (status, code), problem
    assert headers["content-type"] == "application/problem+json"
    assert problem["trace_id"]
    assert problem["remedy"]


def test_a_container_from_its_record_to_its_removal(run) -> None:  # type: ignore[no-untyped-def]
    async def scenario(api: Api) -> None:
        id_ = await api.create(name="one")
        assert await api.status("one") == "created"
        assert not api.hostd.calls  # nothing is made on the host at creation
        assert (await api.send("POST", "/v1/containers/one/start"))[0] == 204
        assert await api.status(id_[:4]) == "running"
        (operation,) = [c for c in api.hostd.calls if isinstance(c, p.ContainerRun)]
        assert operation.start
        assert operation.container.process.args == ("cmd",)
        assert operation.container.layers == ("2" * 64,)
        api.hostd.end(id_, 3)
        await api.until(id_, "exited")
        assert (await api.send("POST", "/v1/containers/one/wait"))[2]["exit_code"] == 3
        assert (await api.send("DELETE", "/v1/containers/one"))[0] == 204
        check_problem(await api.send("GET", "/v1/containers/one"), 404, "container.not_found")
        # Who asks late for a removed one by its id still learns how it ended.
        assert (await api.send("POST", f"/v1/containers/{id_}/wait"))[2]["exit_code"] == 3

    run(scenario)


def test_an_auto_removed_container_goes_with_its_pod(run) -> None:  # type: ignore[no-untyped-def]
    async def scenario(api: Api) -> None:
        id_ = await api.create(auto_remove=True)
        await api.send("POST", f"/v1/containers/{id_}/start")
        api.hostd.end(id_, 0)
        answer = await api.send("POST", f"/v1/containers/{id_}/wait?condition=removed")
        assert answer[2]["exit_code"] == 0
        assert (await api.send("GET", "/v1/pods"))[2]["pods"] == []
        assert any(isinstance(c, p.ContainerRemove) and c.pod for c in api.hostd.calls)

    run(scenario)


def test_what_hostd_refuses_comes_through_and_leaves_a_clean_record(run) -> None:  # type: ignore[no-untyped-def]
    async def scenario(api: Api) -> None:
        id_ = await api.create()
        api.hostd.fail[p.ContainerRun] = CommandNotFound("cmd is not there")
        answer = await api.send("POST", f"/v1/containers/{id_}/start")
        check_problem(answer, 400, "container.command_not_found")
        assert answer[2]["exit_code"] == 127
        assert await api.status(id_) == "created"
        api.hostd.fail[p.ContainerRun] = GrantMissing("no")
        check_problem(await api.send("POST", f"/v1/containers/{id_}/start"), 403, "access.grant_missing")
        rows = (await api.send("GET", "/v1/audit"))[2]["rows"]
        assert [r["answer"] for r in rows if r["action"] == "container.start"] == ["failed", "refused"]
        assert (await api.send("POST", f"/v1/containers/{id_}/start"))[0] == 204

    run(scenario)


def test_stop_waits_then_kills(run) -> None:  # type: ignore[no-untyped-def]
    async def scenario(api: Api) -> None:
        id_ = await api.create()
        await api.send("POST", f"/v1/containers/{id_}/start")
        api.hostd.obeys = False
        assert (await api.send("POST", f"/v1/containers/{id_}/stop", {"timeout": 0}))[0] == 204
        signals = [c.signal for c in api.hostd.calls if isinstance(c, p.ContainerKill)]
        assert signals == [15, 9]
        assert (await api.send("GET", f"/v1/containers/{id_}"))[2]["summary"]["exit_code"] == 137

    run(scenario)


def test_restart_policy_and_its_end_by_the_user(run) -> None:  # type: ignore[no-untyped-def]
    async def scenario(api: Api) -> None:
        id_ = await api.create(restart={"name": "always"})
        await api.send("POST", f"/v1/containers/{id_}/start")
        for _ in range(2):
            api.hostd.end(id_, 1)
            await api.until(id_, "restarting")
            await api.until(id_, "running")
        await api.send("POST", f"/v1/containers/{id_}/stop")
        assert await api.status(id_) == "exited"
        await asyncio.sleep(0.2)
        assert await api.status(id_) == "exited"

    run(scenario)


def test_problems(run) -> None:  # type: ignore[no-untyped-def]
    async def scenario(api: Api) -> None:
        send = api.send
        check_problem(await send("GET", "/v1/nope"), 404, "api.route_not_found")
        check_problem(await send("PATCH", "/v1/version"), 405, "api.method_not_allowed")
        check_problem(await send("GET", "/v1/containers?nope=1"), 400, "api.request_invalid")
        check_problem(await send("GET", "/v1/containers?limit=-1"), 400, "api.request_invalid")
        check_problem(await send("GET", "/v1/containers?all=true&all=true"), 400, "api.request_invalid")
        check_problem(await send("GET", "/v1/containers?filter=x"), 400, "argument.invalid")
        check_problem(await send("GET", "/v1/containers?filter=status=x"), 400, "argument.invalid")
        check_problem(await send("POST", "/v1/containers", {"image": "box", "x": 1}), 400, "api.request_invalid")
        check_problem(await send("POST", "/v1/containers", raw=b"{"), 400, "api.request_invalid")
        check_problem(await send("POST", "/v1/containers", raw=b"\xff\xfe"), 400, "api.request_invalid")
        check_problem(await send("POST", "/v1/containers", raw=b"[" * 100_000), 400, "api.request_invalid")
        check_problem(await send("POST", "/v1/containers", raw=b" " * (1 << 20) + b"{}"), 413, "api.body_too_large")
        check_problem(await send("POST", "/v1/containers", {"image": "x/UPPER"}), 400, "image.reference_invalid")
        check_problem(await send("POST", "/v1/containers", {"image": "other"}), 404, "image.not_found")
        check_problem(await send("POST", "/v1/containers", {"image": "box", "level": "gvisor"}), 501,
                      "isolation.unavailable")  # fmt: skip
        check_problem(await send("POST", "/v1/containers", {"image": "box", "user": "x"}), 400,
                      "container.user_not_found")  # fmt: skip
        check_problem(await send("POST", "/v1/containers", {"image": "box", "cap_add": ["X"]}), 400,
                      "isolation.capability_unknown")  # fmt: skip
        check_problem(await send("POST", "/v1/containers", {"image": "box", "pod": "x"}), 404, "pod.not_found")
        check_problem(await send("POST", "/v1/containers", {"image": "box", "project": "x"}), 404,
                      "project.not_found")  # fmt: skip
        check_problem(await send("POST", "/v1/containers/x/wait"), 404, "container.not_found")
        check_problem(await send("GET", "/v1/exec/x"), 404, "exec.not_found")
        check_problem(await send("GET", "/v1/operations/x"), 404, "operation.not_found")
        check_problem(await send("GET", "/v1/volumes/x"), 404, "volume.not_found")
        check_problem(await send("GET", "/v1/containers/x/logs?tail=x"), 404, "container.not_found")
        await api.create(name="taken")
        check_problem(await send("POST", "/v1/containers", {"image": "box", "name": "taken"}), 409, "name.taken")
        check_problem(await send("POST", "/v1/containers/taken/kill"), 409, "container.not_running")
        check_problem(await send("POST", "/v1/containers/taken/kill", {"signal": "X"}), 400, "argument.invalid")
        check_problem(await send("POST", "/v1/containers/taken/exec", {"command": ["x"]}), 409, "container.not_running")
        check_problem(await send("GET", "/v1/containers/taken/archive?path=/x"), 409, "container.state")
        check_problem(await send("POST", "/v1/containers/taken/update", {"resources": {"pids": "x"}}), 400,
                      "api.request_invalid")  # fmt: skip

    run(scenario)


def test_who_may_ask(run) -> None:  # type: ignore[no-untyped-def]
    async def scenario(api: Api) -> None:
        check_problem(await api.send("GET", "/v1/version", peer=STRANGER), 403, "api.peer_refused")
        check_problem(await api.send("GET", "/v1/version", peer=None), 403, "api.peer_refused")
        assert (await api.send("GET", "/v1/version", peer=MEMBER))[0] == 200
        check_problem(await api.send("GET", "/v1/audit", peer=MEMBER), 403, "access.denied")
        assert (await api.send("GET", "/v1/audit", peer=ROOT))[0] == 200

    run(scenario)


def test_an_unknown_failure_tells_its_trace_id_alone(run, capfd: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    async def scenario(api: Api) -> None:
        id_ = await api.create()
        api.hostd.fail[p.ContainerRun] = ValueError("secret text")
        status, _, problem = await api.send("POST", f"/v1/containers/{id_}/start")
        assert status == 500
        assert "secret" not in str(problem)
        assert problem["trace_id"] in capfd.readouterr().err

    run(scenario)


def test_reads_work_while_hostd_is_away_and_changes_say_so(run) -> None:  # type: ignore[no-untyped-def]
    async def scenario(api: Api) -> None:
        id_ = await api.create()
        api.hostd.welcome = None
        check_problem(await api.send("POST", f"/v1/containers/{id_}/start"), 503, "hostd.unavailable")
        assert (await api.send("GET", "/v1/info"))[2]["warnings"]
        assert (await api.send("GET", "/v1/version"))[2]["hostd"] == "away"
        # The start may have happened for all that casemated knows; the reconcile loop finds out.
        assert await api.status(id_) == "starting"
        api.hostd.welcome = FakeHostd().welcome
        await recovery.reconcile_all(api.node.core)
        assert await api.status(id_) == "created"

    run(scenario)


def test_pages_filters_and_bounds(run) -> None:  # type: ignore[no-untyped-def]
    async def scenario(api: Api) -> None:
        ids = [await api.create(labels={"n": str(n)}) for n in range(5)]
        first = (await api.send("GET", "/v1/containers?all=true&limit=2"))[2]
        assert [row["id"] for row in first["containers"]] == ids[:2:-1]
        second = (await api.send("GET", f"/v1/containers?all=true&limit=2&after={first['next_after']}"))[2]
        assert [row["id"] for row in second["containers"]] == [ids[2], ids[1]]
        found = (await api.send("GET", "/v1/containers?all=true&filter=label=n=3"))[2]["containers"]
        assert [row["id"] for row in found] == [ids[3]]
        assert (await api.send("GET", "/v1/containers"))[2]["containers"] == []
        assert len((await api.send("GET", "/v1/containers?filter=ancestor=box&all=1"))[2]["containers"]) == 5
        for _ in range(45):
            await api.create()
        check_problem(await api.send("POST", "/v1/containers", {"image": "box"}), 409, "limit.containers")

    run(scenario)


def test_ports_with_publish_all(run) -> None:  # type: ignore[no-untyped-def]
    async def scenario(api: Api) -> None:
        id_ = await api.create(network={"publish_all": True})
        await api.send("POST", f"/v1/containers/{id_}/start")
        (port,) = (await api.send("GET", f"/v1/containers/{id_}"))[2]["summary"]["ports"]
        assert port["container_port"] == 80
        (operation,) = [c for c in api.hostd.calls if isinstance(c, p.ContainerRun)]
        assert operation.pod is not None
        assert operation.pod.network.ports[0].host_port == port["host_port"]
        other = await api.create(network={"ports": [{"container_port": 1, "host_port": port["host_port"]}]})
        check_problem(await api.send("POST", f"/v1/containers/{other}/start"), 409, "port.taken")
        assert await api.status(other) == "created"

    run(scenario)


def test_events_follow_the_changes(run) -> None:  # type: ignore[no-untyped-def]
    async def scenario(api: Api) -> None:
        id_ = await api.create()
        await api.send("POST", f"/v1/containers/{id_}/start")
        _, headers, body = await api.send("GET", "/v1/events?follow=false")
        assert headers["content-type"].startswith("text/event-stream")
        text = body.decode()
        assert '"action":"create"' in text
        assert '"action":"start"' in text

    run(scenario)


@pytest.mark.parametrize("step", ["before", "after"])
def test_a_crash_during_a_start_converges(tmp_path: Path, step: str) -> None:
    """casemated dies with the intent written: before hostd did anything, or after it started the container."""

    async def scenario() -> None:
        hostd = FakeHostd()
        async with running_api(tmp_path, hostd) as api:
            id_ = await api.create()
            if step == "before":
                hostd.fail[p.ContainerRun] = HostdAway("gone")
                await api.send("POST", f"/v1/containers/{id_}/start")
            else:
                await api.send("POST", f"/v1/containers/{id_}/start")
                await api.node.core.db.write(
                    lambda db: db.execute("UPDATE containers SET status='starting', made=0, pid=0, started_at=0")
                )
        async with running_api(tmp_path, hostd) as api:
            await recovery.reconcile_all(api.node.core)
            assert await api.status(id_) == ("created" if step == "before" else "running")
            if step == "before":
                assert (await api.send("POST", f"/v1/containers/{id_}/start"))[0] == 204
            assert (await api.send("DELETE", f"/v1/containers/{id_}?force=true"))[0] == 204
            assert hostd.states == {}

    asyncio.run(scenario())


@pytest.mark.parametrize("made", ["pod", "created", "exited"])
def test_what_an_interrupted_start_left_at_hostd_is_no_obstacle(tmp_path: Path, made: str) -> None:
    """Both daemons died: hostd has the pod, or the container too, or that has run and ended; we know of none."""

    async def scenario() -> None:
        hostd = FakeHostd()
        async with running_api(tmp_path, hostd) as api:
            id_ = await api.create()
            hostd.fail[p.ContainerRun] = HostdAway("gone")
            await api.send("POST", f"/v1/containers/{id_}/start")
            pod = (await api.send("GET", f"/v1/containers/{id_}"))[2]["summary"]["pod"]
        hostd.pods[pod] = set() if made == "pod" else {id_}
        if made != "pod":
            code, ended = (None, 0.0) if made == "created" else (0, 4e9)
            hostd.states[id_] = p.ObservedContainer(id_, made, 0, code, False, 0.0, ended)  # type: ignore[arg-type]
        async with running_api(tmp_path, hostd) as api:
            await recovery.reconcile_all(api.node.core)
            assert await api.status(id_) == ("exited" if made == "exited" else "created")
            assert (await api.send("POST", f"/v1/containers/{id_}/start"))[0] == 204
            assert (await api.send("DELETE", f"/v1/containers/{id_}?force=true"))[0] == 204
            assert (hostd.states, hostd.pods) == ({}, {})

    asyncio.run(scenario())


def test_a_pod_that_hostd_alone_has_goes_with_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        hostd = FakeHostd()
        async with running_api(tmp_path, hostd) as api:
            status, _, pod = await api.send("POST", "/v1/pods", {"name": "p"})
            assert status == 201
            hostd.pods[pod["id"]] = set()
            assert (await api.send("DELETE", "/v1/pods/p"))[0] == 204
            assert hostd.pods == {}

    asyncio.run(scenario())


def test_a_crash_during_a_removal_converges(tmp_path: Path) -> None:
    async def scenario() -> None:
        hostd = FakeHostd()
        async with running_api(tmp_path, hostd) as api:
            id_ = await api.create()
            await api.send("POST", f"/v1/containers/{id_}/start")
            hostd.fail[p.ContainerRemove] = HostdAway("gone")
            check_problem(await api.send("DELETE", f"/v1/containers/{id_}?force=true"), 503, "hostd.unavailable")
        async with running_api(tmp_path, hostd) as api:
            await recovery.reconcile_all(api.node.core)
            assert (await api.send("GET", "/v1/containers?all=true"))[2]["containers"] == []
            assert hostd.states == {}

    asyncio.run(scenario())


def test_a_reboot_follows_the_restart_policies(tmp_path: Path) -> None:
    async def scenario() -> None:
        hostd = FakeHostd()
        async with running_api(tmp_path, hostd) as api:
            await recovery.reconcile_all(api.node.core)
            ids = {}
            for policy in ("no", "on-failure", "always", "unless-stopped"):
                ids[policy] = await api.create(restart={"name": policy})
                await api.send("POST", f"/v1/containers/{ids[policy]}/start")
        for id_ in list(hostd.states):
            hostd.states[id_] = p.ObservedContainer(id_, "exited")
        hostd.welcome = p.Welcome(1, "boot-2", {}, {})
        async with running_api(tmp_path, hostd) as api:
            await recovery.reconcile_all(api.node.core)
            for policy in ("on-failure", "always", "unless-stopped"):
                await api.until(ids[policy], "running")
            seen = (await api.send("GET", f"/v1/containers/{ids['no']}"))[2]
            assert (seen["summary"]["status"], seen["summary"]["exit_code"]) == ("exited", 255)
            assert seen["reason"] == "the host rebooted"

    asyncio.run(scenario())


def test_an_archive_and_what_stands_at_its_path_cost_hostd_one_child(run) -> None:  # type: ignore[no-untyped-def]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in (("greeting", b"hello"), ("greeting/more", bytes(20_000))):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o640
            tar.addfile(member, io.BytesIO(data))

    async def scenario(api: Api) -> None:
        await api.create(name="one")
        await api.send("POST", "/v1/containers/one/start")
        api.hostd.archive = packed.getvalue()
        for method in ("GET", "HEAD"):
            api.hostd.calls.clear()
            status, headers, body = await api.send(method, "/v1/containers/one/archive?path=/greeting")
            assert status == 200
            stat = json.loads(base64.b64decode(headers["x-casemate-path-stat"]))
            assert (stat["name"], stat["size"], stat["mode"]) == ("greeting", 5, 0o100640)
            assert body == (packed.getvalue() if method == "GET" else b"")
            assert [type(call) for call in api.hostd.calls] == [p.ContainerArchive]
        api.hostd.archive = b""
        check_problem(await api.send("GET", "/v1/containers/one/archive?path=/x"), 500, "store.corrupt")
        api.hostd.fail[p.ContainerArchive] = CommandNotFound("gone")
        check_problem(await api.send("GET", "/v1/containers/one/archive?path=/x"), 400, "container.command_not_found")

    run(scenario)
