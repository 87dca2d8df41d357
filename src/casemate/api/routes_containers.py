"""Routes of containers and execs."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from casemate.api.routing import Call, Project, Row
from casemate.api.scopes import EXEC, IN_BODY, IN_QUERY
from casemate.api.streams import log_stream, stats_stream
from casemate.node import containers, execs, lifecycle, listing, logs, removal, stats, updating
from casemate.node.clock import parse_time
from casemate.node.policy import holding
from casemate.spec import api as schema
from casemate.spec.errors import InvalidArgument


class ListQuery(Project, frozen=True, forbid_unknown_fields=True):
    """*filter* is ``key=value`` and may be repeated; *last* is the number of newest ones, running or not."""

    all: bool = False
    filter: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    limit: Annotated[int, Meta(ge=0, le=100_000)] = 0
    after: str = ""
    last: Annotated[int, Meta(ge=0, le=100_000)] = 0


class RemoveQuery(Project, frozen=True, forbid_unknown_fields=True):
    force: bool = False
    volumes: bool = False


class WaitQuery(Project, frozen=True, forbid_unknown_fields=True):
    condition: Literal["exited", "next-exit", "removed"] = "exited"


class LogsQuery(Project, frozen=True, forbid_unknown_fields=True):
    """*tail* is ``all`` or a number of lines; *since* and *until* RFC 3339, unix seconds or a duration before now."""

    follow: bool = False
    since: str = ""
    until: str = ""
    tail: str = "all"
    timestamps: bool = False
    stdout: bool = True
    stderr: bool = True


class StatsQuery(Project, frozen=True, forbid_unknown_fields=True):
    container: Annotated[tuple[str, ...], Meta(max_length=200)] = ()
    stream: bool = False


async def create(call: Call) -> object:
    return await containers.create(call.core, call.body, call.caller)


async def list_(call: Call) -> object:
    query: ListQuery = call.query
    wanted = listing.Filter.parse(query.filter, everything=query.all or query.last > 0)
    page = listing.Page(query.last or query.limit, query.after)
    return await listing.containers(call.core, query.project, wanted, page)


async def inspect(call: Call) -> object:
    return await containers.inspect(call.core, call.reference, call.project)


async def remove(call: Call) -> None:
    query: RemoveQuery = call.query
    await removal.remove(call.core, call.reference, call.project, call.caller, force=query.force, volumes=query.volumes)


async def start(call: Call) -> None:
    await lifecycle.start_or_remove(call.core, call.reference, call.project, call.caller)


async def stop(call: Call) -> None:
    await lifecycle.stop(call.core, call.reference, call.project, call.body, call.caller)


async def kill(call: Call) -> None:
    await lifecycle.kill(call.core, call.reference, call.project, call.body, call.caller)


async def restart(call: Call) -> None:
    await holding.restart(call.core, call.reference, call.project, call.body, call.caller)


async def pause(call: Call) -> None:
    await lifecycle.pause(call.core, call.reference, call.project, call.caller, frozen=True)


async def unpause(call: Call) -> None:
    await lifecycle.pause(call.core, call.reference, call.project, call.caller, frozen=False)


async def rename(call: Call) -> None:
    await containers.rename(call.core, call.reference, call.project, call.body.name, call.caller)


async def update(call: Call) -> object:
    return await updating.update_limits(call.core, call.reference, call.project, call.body, call.caller)


async def wait(call: Call) -> object:
    query: WaitQuery = call.query
    return await call.until_gone(lifecycle.wait(call.core, call.reference, query.project, query.condition))


async def read_logs(call: Call) -> object:
    query: LogsQuery = call.query
    row = await containers.get(call.core, call.reference, call.project)
    at = call.core.clock()
    if query.tail != "all" and not (query.tail.isascii() and query.tail.isdigit() and len(query.tail) < 10):
        raise InvalidArgument(f"tail {query.tail[:40]!r} is neither a number of lines nor all")
    wanted = logs.Wanted(
        tail=None if query.tail == "all" else int(query.tail),
        since=parse_time(query.since, at) if query.since else 0.0,
        until=parse_time(query.until, at) if query.until else float("inf"),
        stdout=query.stdout,
        stderr=query.stderr,
        follow=query.follow,
    )
    return log_stream(call, row.id, wanted, stamps=query.timestamps)


async def read_stats(call: Call) -> object:
    query: StatsQuery = call.query
    rows = await stats.choose(call.core, query.project, query.container)
    if query.stream:
        return stats_stream(call, rows, everything=not query.container)
    return await stats.sample_twice(call.core, rows)


async def top(call: Call) -> object:
    return await stats.top(call.core, call.reference, call.project)


async def create_exec(call: Call) -> object:
    return await execs.create(call.core, call.reference, call.project, call.body, call.caller)


async def start_exec(call: Call) -> None:
    await execs.start_detached(call.core, call.path["id"], call.caller)


async def inspect_exec(call: Call) -> object:
    return await execs.inspect(call.core, call.path["id"])


_ONE = "/v1/containers/{ref}"
ROWS = (
    Row("POST", "/v1/containers", create, "Create a container", body=schema.ContainerRequest,
        answer=schema.ContainerCreated, status=201, errors=(403, 404, 409), scope=IN_BODY),
    Row("GET", "/v1/containers", list_, "List containers", ListQuery, answer=schema.ContainerList, scope=IN_QUERY),
    Row("GET", _ONE, inspect, "Inspect a container", answer=schema.ContainerDetail, errors=(404,), scope=IN_QUERY),
    Row("DELETE", _ONE, remove, "Remove a container", RemoveQuery, status=204, errors=(404, 409), scope=IN_QUERY),
    Row("POST", f"{_ONE}/start", start, "Start a container", status=204, errors=(403, 404, 409), scope=IN_QUERY),
    Row("POST", f"{_ONE}/stop", stop, "Stop a container", body=schema.StopRequest, optional_body=True, status=204,
        errors=(404, 504), scope=IN_QUERY),
    Row("POST", f"{_ONE}/kill", kill, "Send a signal", body=schema.KillRequest, optional_body=True, status=204,
        errors=(404, 409), scope=IN_QUERY),
    Row("POST", f"{_ONE}/restart", restart, "Stop and start", body=schema.RestartRequest, optional_body=True,
        status=204, errors=(404, 409, 504), scope=IN_QUERY),
    Row("POST", f"{_ONE}/pause", pause, "Freeze a container", status=204, errors=(404, 409), scope=IN_QUERY),
    Row("POST", f"{_ONE}/unpause", unpause, "Thaw a container", status=204, errors=(404, 409), scope=IN_QUERY),
    Row("POST", f"{_ONE}/rename", rename, "Rename a container", body=schema.RenameRequest, status=204,
        errors=(404, 409), scope=IN_QUERY),
    Row("POST", f"{_ONE}/update", update, "Change limits and restart policy", body=schema.UpdateRequest,
        answer=schema.UpdateAnswer, errors=(404, 409), scope=IN_QUERY),
    Row("POST", f"{_ONE}/wait", wait, "Wait for the end of a container", WaitQuery, answer=schema.WaitAnswer,
        errors=(404,), scope=IN_QUERY),
    Row("GET", f"{_ONE}/logs", read_logs, "Read the log", LogsQuery, answer="application/vnd.casemate.frames",
        errors=(404,), scope=IN_QUERY),
    Row("GET", f"{_ONE}/top", top, "List processes", answer=schema.TopAnswer, errors=(404, 409), scope=IN_QUERY),
    Row("GET", "/v1/stats", read_stats, "Resource usage", StatsQuery, answer=schema.StatsAnswer, errors=(404,),
        scope=IN_QUERY),
    Row("POST", f"{_ONE}/exec", create_exec, "Create an exec", body=schema.ExecRequest, answer=schema.ExecCreated,
        status=201, errors=(403, 404, 409), scope=IN_QUERY),
    Row("POST", "/v1/exec/{id}/start", start_exec, "Start an exec, detached", status=204, errors=(404, 409),
        scope=EXEC),
    Row("GET", "/v1/exec/{id}", inspect_exec, "Inspect an exec", answer=schema.ExecDetail, errors=(404,), scope=EXEC),
)  # fmt: skip
