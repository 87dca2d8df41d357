"""Every route, asked by an operator of one project for what is another's: refused, or as if it were not there.

:data:`ASKED` has what is asked of each row of the table of routes. A route without a scope cannot be written, and one
that is not asked here fails :func:`test_every_route_is_asked`. Words in braces are names of the other project's.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.api.two_projects import ADMINISTRATOR, MINE, OPERATOR, OTHER, THEIRS, World, two_projects

from casemate.api import scopes
from casemate.api.routes import ROUTES, SOCKETS
from casemate.api.routing import Row, SocketRow
from casemate.hostd.protocol import ExecEnded
from casemate.node.errors import AdministratorNeeded, ProjectDenied

PROJECT, CHIEF = ProjectDenied.code, AdministratorNeeded.code
#: Nothing of the other project is in the answer, whatever it is.
SEEN = "nothing of theirs"
_C = "/v1/containers/{ref}"
_RULES = """
apiVersion: casemate/v1
kind: Policy
metadata: {name: secret-rules, project: secret-lab}
spec: {segments: {all: {select: {}, default: allow}}}
"""
_EXPLAIN = {"source": "my-web", "destination": "{project}/{name}", "port": "tcp/80", "project": MINE}

_OPERATORS = _RULES.replace(", project: secret-lab", "").replace("{segments", "{tier: operator, segments")
_READ = ("logs", "top", "archive", "export", "changes")

#: What is asked of a route (target, body), and the code of the refusal.
Asked = list[tuple[str, Any, str]]


def _of_container(method_target: str, body: Any = None) -> Asked:
    """By the other project's name; by id, its beginning and name within the own project."""
    _, target = method_target.split(" ", 1)
    joint = "&" if "?" in target else "?"
    at = [("{name}", "{project}", PROJECT), ("{container}", MINE, "container.not_found"),
          ("{short}", MINE, "container.not_found"), ("{name}", MINE, "container.not_found"),
          ("{name}", "", PROJECT)]  # fmt: skip
    return [(target.replace("{ref}", ref) + f"{joint}project={project}", body, code) for ref, project, code in at]


def _of_pod(target: str, body: Any = None) -> Asked:
    return [(f"{target.replace('{ref}', '{pod}')}?project={{project}}", body, PROJECT),
            (f"{target.replace('{ref}', '{pod}')}?project={MINE}", body, "pod.not_found")]  # fmt: skip


def _listed(path: str) -> Asked:
    return [(f"{path}?project={{project}}", None, PROJECT), (f"{path}?project={MINE}", None, SEEN)]


def _chief(target: str, body: Any = None) -> Asked:
    return [(target, body, CHIEF)]


def _shared(target: str, body: Any = None) -> Asked:
    return [(target, body, SEEN)]


_SIGNED = {"reference": "no.example/x", "digest": "sha256:" + "0" * 64, "blobs": []}
ASKED: dict[str, Asked] = {
    "GET /v1/version": _shared("/v1/version"),
    "GET /v1/info": _shared("/v1/info"),
    "GET /v1/doctor": _chief("/v1/doctor"),
    "GET /v1/df": _listed("/v1/df"),
    "POST /v1/prune": _chief("/v1/prune"),
    "GET /v1/events": [
        ("/v1/events?follow=false", None, SEEN),
        ("/v1/events?follow=false&project={project}", None, PROJECT),
        ("/v1/events?follow=false&filter=project={project}", None, SEEN),
        ("/v1/events?follow=false&filter=container={name}", None, SEEN),
    ],
    "GET /v1/audit": _chief("/v1/audit"),
    "POST /v1/containers": [
        ("/v1/containers", {"image": "box", "project": "{project}"}, PROJECT),
        ("/v1/containers", {"image": "box"}, PROJECT),
        ("/v1/containers", {"image": "box", "project": MINE, "pod": "{pod}"}, "pod.not_found"),
    ],
    "GET /v1/containers": [*_listed("/v1/containers"), ("/v1/containers?all=true", None, PROJECT),
                           (f"/v1/containers?project={MINE}&after={{container}}", None, "argument.invalid")],
    f"GET {_C}": _of_container(f"GET {_C}"),
    f"DELETE {_C}": _of_container(f"DELETE {_C}?force=true"),
    **{f"POST {_C}/{verb}": _of_container(f"POST {_C}/{verb}")
       for verb in ("start", "stop", "kill", "restart", "pause", "unpause", "wait")},
    f"POST {_C}/rename": _of_container(f"POST {_C}/rename", {"name": "other"}),
    f"POST {_C}/update": _of_container(f"POST {_C}/update", {}),
    f"POST {_C}/exec": _of_container(f"POST {_C}/exec", {"command": ["x"]}),
    **{f"GET {_C}/{what}": _of_container(f"GET {_C}/{what}") for what in _READ},
    f"HEAD {_C}/archive": _of_container(f"HEAD {_C}/archive"),
    f"PUT {_C}/archive": _of_container(f"PUT {_C}/archive"),
    "GET /v1/stats": [*_listed("/v1/stats"),
                      (f"/v1/stats?project={MINE}&container={{container}}", None, "container.not_found")],
    "POST /v1/exec/{id}/start": [("/v1/exec/{exec}/start", None, "exec.not_found")],
    "GET /v1/exec/{id}": [("/v1/exec/{exec}", None, "exec.not_found"),
                          (f"/v1/exec/{{exec}}?project={MINE}", None, "exec.not_found")],
    "GET /v1/pods": _listed("/v1/pods"),
    "POST /v1/pods": [("/v1/pods", {"name": "x", "project": "{project}"}, PROJECT)],
    "GET /v1/pods/{ref}": _of_pod("/v1/pods/{ref}"),
    "DELETE /v1/pods/{ref}": _of_pod("/v1/pods/{ref}"),
    "POST /v1/pods/{ref}/start": _of_pod("/v1/pods/{ref}/start"),
    "POST /v1/pods/{ref}/stop": _of_pod("/v1/pods/{ref}/stop"),
    "GET /v1/volumes": _listed("/v1/volumes"),
    "POST /v1/volumes": [("/v1/volumes", {"name": "x", "project": "{project}"}, PROJECT)],
    "POST /v1/volumes/prune": [("/v1/volumes/prune?all=true&project={project}", None, PROJECT)],
    "GET /v1/volumes/{name}": [("/v1/volumes/{volume}?project={project}", None, PROJECT),
                               (f"/v1/volumes/{{volume}}?project={MINE}", None, "volume.not_found")],
    "DELETE /v1/volumes/{name}": [("/v1/volumes/{volume}?project={project}", None, PROJECT),
                                  (f"/v1/volumes/{{volume}}?project={MINE}", None, "volume.not_found")],
    "GET /v1/images": _shared("/v1/images"),
    "GET /v1/images/inspect": _shared("/v1/images/inspect?ref=box"),
    "GET /v1/images/history": _shared("/v1/images/history?ref=box"),
    "DELETE /v1/images": _chief("/v1/images?ref=box&force=true"),
    "POST /v1/images/tag": _chief("/v1/images/tag", {"source": "box", "target": "secret-image"}),
    "POST /v1/images/prune": _chief("/v1/images/prune?all=true"),
    "POST /v1/images/pull": [],
    "POST /v1/images/push": _shared("/v1/images/push", {"reference": "not-here"}),
    "POST /v1/images/build-debian": _chief("/v1/images/build-debian", {"suite": "bookworm", "tag": "box"}),
    "POST /v1/images/import": _chief("/v1/images/import?tag=box"),
    "GET /v1/images/export": _shared("/v1/images/export?ref=not-here"),
    "GET /v1/operations": _shared("/v1/operations"),
    "GET /v1/operations/{id}": [("/v1/operations/{operation}", None, "operation.not_found")],
    "GET /v1/operations/{id}/events": [("/v1/operations/{operation}/events", None, "operation.not_found")],
    "DELETE /v1/operations/{id}": [("/v1/operations/{operation}", None, "operation.not_found")],
    "GET /v1/kernels": _shared("/v1/kernels"),
    "POST /v1/kernels": _chief("/v1/kernels"),
    "POST /v1/kernels/use": _chief("/v1/kernels/use", {"version": "6.1.0-1-amd64"}),
    "DELETE /v1/kernels/{id}": _chief("/v1/kernels/6.1.0-1-amd64"),
    "GET /v1/policy/documents": [("/v1/policy/documents", None, SEEN),
                                 ("/v1/policy/documents?project={project}", None, PROJECT)],
    "POST /v1/policy/documents": [
        ("/v1/policy/documents", _RULES, PROJECT),
        ("/v1/policy/documents?dry_run=true", _RULES, PROJECT),
        ("/v1/policy/documents", _OPERATORS, CHIEF),
        ("/v1/policy/documents?whole=true", _RULES.replace("secret-lab", MINE), CHIEF),
        ("/v1/policy/documents?path_reason=x", _RULES.replace("secret-lab", MINE), CHIEF),
    ],
    "DELETE /v1/policy/documents": [(f"/v1/policy/documents?key={key}", None, "policy.not_found")
                                    for key in ("Policy/{project}/{rules}", "{rules}")],
    "GET /v1/policy/document": [(f"/v1/policy/document?key={key}", None, "policy.not_found")
                                for key in ("Policy/{project}/{rules}", "{rules}")],
    "POST /v1/policy/explain": [
        ("/v1/policy/explain", _EXPLAIN, "policy.workload_unknown"),
        ("/v1/policy/explain", {**_EXPLAIN, "destination": "{address}"}, "policy.workload_unknown"),
        ("/v1/policy/explain", {**_EXPLAIN, "source": "{project}/{name}"}, "policy.workload_unknown"),
        ("/v1/policy/explain", {**_EXPLAIN, "project": "{project}"}, PROJECT),
    ],
    "POST /v1/policy/test": _chief("/v1/policy/test"),
    "POST /v1/policy/simulate": _chief("/v1/policy/simulate"),
    "GET /v1/policy/suggest": _chief("/v1/policy/suggest"),
    "GET /v1/policy/schema": _shared("/v1/policy/schema"),
    "GET /v1/policy/status": _shared("/v1/policy/status"),
    "GET /v1/identities": [("/v1/identities", None, SEEN), ("/v1/identities?project={project}", None, PROJECT)],
    "GET /v1/walls": _chief("/v1/walls"),
    "POST /v1/walls/check": _chief("/v1/walls/check"),
    "GET /v1/walls/report": _chief("/v1/walls/report"),
    "POST /v1/walls/release": _chief("/v1/walls/release", {"wall": "x", "workload": "my-web", "reason": "x"}),
    "GET /v1/projects": _shared("/v1/projects"),
    "POST /v1/projects": _chief("/v1/projects", {"name": "x"}),
    "GET /v1/projects/{name}": [("/v1/projects/{project}", None, "project.not_found")],
    "POST /v1/projects/{name}/labels": _chief("/v1/projects/{project}/labels", {}),
    "DELETE /v1/projects/{name}": _chief(f"/v1/projects/{MINE}"),
    "GET /v1/referrals": [("/v1/referrals", None, SEEN), ("/v1/referrals?project={project}", None, PROJECT)],
    "GET /v1/referrals/events": [("/v1/referrals/events?project={project}", None, PROJECT)],
    "POST /v1/referrals/{number}": [
        ("/v1/referrals/{referral}", {"allow": True}, "policy.referral_not_found"),
        ("/v1/referrals/{between}", {"allow": True}, PROJECT),
    ],
    "DELETE /v1/referrals/{number}": [("/v1/referrals/{referral}", None, "policy.referral_not_found")],
    "GET /v1/quarantines": [("/v1/quarantines", None, SEEN), ("/v1/quarantines?all=true", None, SEEN)],
    "POST /v1/quarantines": [
        ("/v1/quarantines", {"workload": "{name}", "project": "{project}"}, PROJECT),
        ("/v1/quarantines", {"workload": "{project}/{name}", "project": MINE}, "policy.workload_unknown"),
        ("/v1/quarantines", {"workload": "my-web", "project": MINE, "allow": [{"end": "{project}/{name}"}]},
         "policy.workload_unknown"),
    ],
    "POST /v1/quarantines/release": [
        ("/v1/quarantines/release", {"workload": "{project}/secret-cut-off", "reason": "x", "project": MINE},
         "policy.workload_unknown"),
        ("/v1/quarantines/release", {"workload": "secret-cut-off", "reason": "x", "project": "{project}"}, PROJECT),
    ],
    "GET /v1/flows": [("/v1/flows", None, SEEN), ("/v1/flows?project={project}", None, PROJECT),
                      ("/v1/flows?from={project}/{name}", None, SEEN), ("/v1/flows?end={project}/{name}", None, SEEN)],
    "GET /v1/flows/follow": [("/v1/flows/follow?project={project}", None, PROJECT)],
    "GET /v1/flows/map": [("/v1/flows/map", None, SEEN), ("/v1/flows/map?project={project}", None, PROJECT)],
    "GET /v1/holds": _listed("/v1/holds"),
    "POST /v1/trust/verify": _shared("/v1/trust/verify", {"reference": "not-here", "offline": True}),
    "POST /v1/trust/resolve": [],
    "POST /v1/trust/attach": _shared("/v1/trust/attach", _SIGNED),
    "GET /v1/trust/sources": _shared("/v1/trust/sources"),
    "POST /v1/trust/sources": _chief("/v1/trust/sources",
                                     {"name": "x", "location": "x", "root": "{}", "repositories": ["x.example/y"]}),
    "POST /v1/trust/sources/{name}/refresh": _chief("/v1/trust/sources/x/refresh"),
    "DELETE /v1/trust/sources/{name}": _chief("/v1/trust/sources/x"),
    "GET /v1/trust/tag": _shared("/v1/trust/tag?ref=box"),
    "GET /v1/images/scan": [],
    "GET /v1/feeds": [],
    "POST /v1/feeds/import": _chief("/v1/feeds/import?kind=osv&name=x"),
    "POST /v1/feeds/update": _chief("/v1/feeds/update"),
    "DELETE /v1/feeds": _chief("/v1/feeds?name=x"),
    "GET /v1/trust/policies": _chief("/v1/trust/policies"),
    "GET /v1/trust/policy": _chief("/v1/trust/policy?name=x"),
    "POST /v1/trust/policy": _chief("/v1/trust/policy", {"text": "x"}),
    "DELETE /v1/trust/policy": _chief("/v1/trust/policy?name=x"),
    "POST /v1/trust/policy/test": _chief("/v1/trust/policy/test", {"text": "x"}),
    "POST /v1/trust/policy/dry-run": _chief("/v1/trust/policy/dry-run", {"text": "x"}),
    "GET /v1/trust/why": [("/v1/trust/why?name={name}&project={project}", None, PROJECT)],
    "GET /metrics": [("/metrics", None, "access.grant_missing")],
    "GET /v1/openapi.json": _shared("/v1/openapi.json"),
}  # fmt: skip
#: Shared by all, and heavy to ask for real: a child process, or another host. Their scope says all there is to say.
NOT_ASKED = {"POST /v1/images/pull", "POST /v1/trust/resolve", "GET /v1/images/scan", "GET /v1/feeds"}


def _filled(value: Any, names: dict[str, str]) -> Any:
    """*value* with the other project's names put in."""
    text = value if isinstance(value, str) else json.dumps(value)
    for key, name in names.items():
        text = text.replace(f"{{{key}}}", name)
    return text if isinstance(value, str) else json.loads(text)


def _names(world: World) -> dict[str, str]:
    return {**world.theirs, "short": world.theirs["container"][:12], "between": world.mine["between"]}


def _key(row: Row) -> str:
    return f"{row.method} {row.path}"


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    def go(scenario: Callable[[World], Awaitable[None]]) -> None:
        async def outer() -> None:
            async with two_projects(tmp_path) as world:
                await scenario(world)

        asyncio.run(outer())

    return go


def test_every_route_is_asked() -> None:
    assert {_key(row) for row in ROUTES} == set(ASKED)
    assert {key for key, asked in ASKED.items() if not asked} == NOT_ASKED
    assert all(row.scope is scopes.SHARED for row in ROUTES if _key(row) in NOT_ASKED)


def test_a_route_without_a_scope_cannot_be_written() -> None:
    async def nothing(*_: object) -> None: ...

    with pytest.raises(TypeError, match="scope"):
        Row("GET", "/v1/new", nothing, "New")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="scope"):
        SocketRow("/v1/new", nothing, "New")  # type: ignore[call-arg]


def test_nothing_of_another_projects_is_shown_or_changed(run) -> None:  # type: ignore[no-untyped-def]
    """The walk over all routes."""

    async def scenario(world: World) -> None:
        names, wrong = _names(world), []
        before = await _state(world)
        for row in ROUTES:
            for target, body, code in ASKED[_key(row)]:
                asked = f"{row.method} {_filled(target, names)}"
                more = {"raw": _filled(body, names).encode()} if isinstance(body, str) else {}
                status, answer = await world.send(
                    row.method, _filled(target, names), None if more else _filled(body, names), **more
                )
                said = answer if isinstance(answer, dict) else {}
                told = answer.decode(errors="replace") if isinstance(answer, bytes) else json.dumps(answer)
                if code == SEEN:
                    hidden = ["secret-", *(names[key] for key in ("container", "exec", "operation", "address"))]
                    wrong += [f"{asked}: {word}" for word in hidden if word in told and status < 300]
                    wrong += [f"{asked}: {told[:300]}"] if status >= 300 and row.scope is scopes.NARROWED else []
                    wrong += [f"{asked}: {said.get('code')}"] if said.get("code") in (PROJECT, CHIEF) else []
                elif row.method == "HEAD":
                    wrong += [f"{asked}: {status}"] if status not in (403, 404) else []
                elif said.get("code") != code:
                    wrong.append(f"{asked}: {status} {told[:300]}, not {code}")
        assert not wrong, "\n".join(wrong)
        assert await _state(world) == before

    run(scenario)


async def _state(world: World) -> dict[str, Any]:
    """All that the administrator sees of the other project."""
    lists = ("containers?all=true&", "pods?", "volumes?", "policy/documents?", "referrals?")
    found = {one: (await world.rule("GET", f"/v1/{one}project={THEIRS}"))[1] for one in lists}
    found |= {one: (await world.rule("GET", f"/v1/{one}"))[1] for one in ("quarantines", "projects", "images")}
    for row in found["referrals?"]["waiting"]:
        del row["waited_ms"]
    return found


def test_what_is_hidden_is_there_for_the_administrator(run) -> None:  # type: ignore[no-untyped-def]
    """Otherwise the walk would prove nothing: each of its requests reaches something where all is open."""

    async def scenario(world: World) -> None:
        names, wrong = _names(world), []
        hidden = [row for row in ROUTES if row.scope in (scopes.EXEC, scopes.OPERATION, scopes.REFERRAL,
                                                         scopes.WORKLOAD, scopes.ENDS, scopes.IN_PATH)]  # fmt: skip
        for row in sorted(hidden, key=lambda row: row.method == "DELETE"):
            if row.path.endswith("/events") or (row.method, row.path) == ("DELETE", "/v1/referrals/{number}"):
                continue
            target, body, _ = ASKED[_key(row)][0]
            status, answer = await world.rule(row.method, _filled(target, names), _filled(body, names))
            code = answer.get("code", "") if isinstance(answer, dict) else ""
            if code.endswith("not_found") or code in (PROJECT, CHIEF, "policy.workload_unknown", "api.request_invalid"):
                wrong.append(f"{row.method} {target}: {status} {code}")
        assert not wrong, "\n".join(wrong)

    run(scenario)


def test_what_is_hidden_is_told_as_what_is_not_there(run) -> None:  # type: ignore[no-untyped-def]
    """Not by the code alone: word for word."""

    async def scenario(world: World) -> None:
        names, wrong = _names(world), []
        ids = dict.fromkeys(("container", "exec", "operation"), "e" * 64)
        words = {
            "name": "no-web",
            "short": "e" * 12,
            "pod": "no-pod",
            "volume": "no-volume",
            "rules": "none",
            "referral": "77777",
        }
        for row in ROUTES:
            for target, body, code in ASKED[_key(row)]:
                # An address that nobody has is one outside, and may be asked about.
                if not code.endswith(("not_found", "unknown")) or "{address}" in json.dumps(body):
                    continue
                told = []
                for given in (names, {**names, **ids, **words}):
                    _, answer = await world.send(row.method, _filled(target, given), _filled(body, given))
                    said = [answer[key] for key in ("code", "detail", "remedy")] if answer else []
                    told.append([re.sub(r"'[^']*'|[0-9]+", "...", text) for text in said])
                wrong += [f"{row.method} {target}: {told}"] if told[0] != told[1] else []
        assert not wrong, "\n".join(wrong)

    run(scenario)


def test_sockets(run) -> None:  # type: ignore[no-untyped-def]
    async def scenario(world: World) -> None:
        names = _names(world)
        asked = {
            "/v1/containers/{ref}/attach": [
                ("/v1/containers/{name}/attach?project={project}", PROJECT),
                (f"/v1/containers/{{container}}/attach?project={MINE}", "container.not_found"),
                ("/v1/containers/{name}/attach", PROJECT),
            ],
            "/v1/exec/{id}/attach": [("/v1/exec/{exec}/attach", "exec.not_found")],
        }
        assert {row.path for row in SOCKETS} == set(asked)
        for row in SOCKETS:
            for target, code in asked[row.path]:
                answer = await world.socket(_filled(target, names))
                assert answer["type"] == "websocket.http.response.start", answer
                assert json.loads(answer["body"])["code"] == code
        assert (await world.rule("GET", f"/v1/exec/{names['exec']}"))[1]["running"] is False
        # The administrator is not refused by these.
        reached = await world.socket(_filled("/v1/exec/{exec}/attach", names), ADMINISTRATOR)
        assert b"not_found" not in reached["body"]

    run(scenario)


def test_what_is_ones_own_is_seen_and_changed(run) -> None:  # type: ignore[no-untyped-def]
    async def scenario(world: World) -> None:
        mine = world.mine

        async def good(method: str, target: str, body: object = None, **more: Any) -> Any:
            status, answer = await world.send(method, target, body, **more)
            assert status < 300, (method, target, answer)
            return answer

        rows = (await good("GET", f"/v1/containers?all=true&project={MINE}"))["containers"]
        assert {row["name"] for row in rows} == {"my-web", "my-cut-off"}
        await good("GET", f"/v1/containers/{mine['container'][:10]}?project={MINE}")
        await good("GET", f"/v1/exec/{mine['exec']}")
        usage = (await good("GET", f"/v1/stats?project={MINE}"))["rows"]
        assert {row["name"] for row in usage} == {"my-web", "my-cut-off"}
        held = (await good("GET", "/v1/policy/status"))["holds"]
        assert {row["workload"] for row in held} == {f"{MINE}/my-web", f"{MINE}/my-cut-off"}
        told = await good("GET", "/v1/info")
        assert (told["containers"], told["settings"]) == (2, {})
        assert told["caller"] == {"who": "1000:ann", "administrator": False, "projects": [MINE],
                                  "grants": ["policy", "trust"]}  # fmt: skip
        sizes = {row["kind"]: row["count"] for row in (await good("GET", f"/v1/df?project={MINE}"))["rows"]}
        assert (sizes["containers"], sizes["volumes"]) == (2, 1)
        assert [one["id"] for one in (await good("GET", "/v1/operations"))["operations"]] == [mine["operation"]]
        assert [one["name"] for one in (await good("GET", "/v1/projects"))["projects"]] == [MINE]
        documents = (await good("GET", "/v1/policy/documents"))["documents"]
        assert [one["key"] for one in documents] == [f"Policy/{MINE}/my-rules"]
        shown = (await good("GET", "/v1/policy/document?key=my-rules"))["text"]
        changed = await good("POST", "/v1/policy/documents", raw=shown.replace("allow", "deny").encode())
        assert [one["action"] for one in changed["changes"]] == ["changed"]
        assert {one["workload"] for one in (await good("GET", "/v1/quarantines"))["quarantines"]} == {
            f"{MINE}/my-cut-off"
        }
        await good("POST", "/v1/quarantines/release", {"workload": "my-cut-off", "project": MINE, "reason": "seen to"})
        await good("POST", "/v1/quarantines", {"workload": "my-web", "project": MINE, "allow": [{"end": "10.0.0.0/8"}]})
        asked = {"source": "my-web", "destination": "192.0.2.9", "port": "tcp/80", "project": MINE}
        assert (await good("POST", "/v1/policy/explain", asked))["source"] == f"{MINE}/my-web"
        assert (await good("GET", "/v1/identities"))["identities"]
        waiting = (await good("GET", "/v1/referrals"))["waiting"]
        assert {str(row["number"]) for row in waiting} == {mine["referral"], mine["between"]}
        await good("POST", f"/v1/referrals/{mine['referral']}", {"allow": False})
        await good("DELETE", "/v1/policy/documents?key=my-rules")
        told = await good("GET", "/v1/events?follow=false")
        actions = [json.loads(line[6:])["action"] for line in told.decode().splitlines() if line.startswith("data: ")]
        assert {"create", "start", "begin", "added", "asked"} <= set(actions)
        await good("DELETE", f"/v1/containers/{mine['container']}?force=true&project={MINE}")
        # The exit of a removed one is remembered for its own project.
        await good("POST", f"/v1/containers/{mine['container']}/wait?project={MINE}")
        gone = f"/v1/containers/{mine['container']}/wait?project=default"
        assert (await world.rule("POST", gone))[1]["code"] == "container.not_found"

    run(scenario)


def test_streams_and_flows_show_the_own_and_only_names_of_the_far_end(run) -> None:  # type: ignore[no-untyped-def]
    async def scenario(world: World) -> None:
        followed = await world.stream("/v1/flows/follow?since=2000-01-01T00:00:00Z", '"number":4')
        referrals = await world.stream("/v1/referrals/events", f'"number":{world.mine["referral"]},')
        operation = await world.stream(f"/v1/operations/{world.mine['operation']}/events", "", OPERATOR)
        _, listed = await world.send("GET", "/v1/flows")
        _, seen = await world.send("GET", "/v1/flows/map?since=2000-01-01T00:00:00Z")
        assert [row["number"] for row in listed["flows"]] == [3, 4]
        far = listed["flows"][0]["source"]
        assert (far["project"], far["name"]) == (OTHER, "peer")
        assert not {"pod", "labels", "identity"} & set(far)
        assert {node["name"] for node in seen["nodes"]} == {"peer", "my-web", "192.0.2.1"}
        for text in (followed, referrals, operation, json.dumps(listed), json.dumps(seen)):
            assert "secret" not in text
            assert "peer-label" not in text
        assert "my-web-label" in followed
        for names in (world.theirs, world.mine):
            world.api.node.on_event(ExecEnded(names["container"], names["exec"], 0))
        told = await world.stream("/v1/events?since=2000-01-01T00:00:00Z", '"exec_die"')
        assert "secret-" not in told
        everything = await world.rule("GET", "/v1/flows")
        assert len(everything[1]["flows"]) == 4

    run(scenario)
