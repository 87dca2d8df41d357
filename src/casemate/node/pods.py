"""Pods: the record with its address, and removal. A lone container's pod is implicit and goes with it."""

from __future__ import annotations

import sqlite3

import msgspec

from casemate.hostd.client import ask
from casemate.hostd.protocol import Done, Hello, PodRemove, Welcome
from casemate.node import audit, events, journal, lookup, projects, resolve
from casemate.node.addresses import address_text, next_address
from casemate.node.clock import rfc3339
from casemate.node.core import Caller, Core
from casemate.node.errors import LevelUnavailable, NameTaken, PodInUse
from casemate.node.names import another_name
from casemate.node.resolvers import name_servers, search_list
from casemate.node.rows import ALIVE, ContainerRow, PodRow, encode, insert, select
from casemate.spec.api import PodDetail, PodList, PodRequest, PodSummary, PortRequest
from casemate.spec.errors import InvalidArgument
from casemate.spec.workload import TEMPLATES, Level, NetworkSpec, PodSpec, PublishedPort, furthest

_CURSOR = "network.last_address"
_UNKNOWN = "unavailable: hostd does not know it"


async def check_level(core: Core, level: Level | None) -> Level | None:
    """*level*, when this host offers it; raises :class:`LevelUnavailable`. While hostd is away nobody knows."""
    welcome = core.hostd.welcome
    if level is None or level == "namespace" or welcome is None:
        return level
    offered = welcome.levels.get(level, _UNKNOWN)
    if offered.startswith("unavailable"):
        # What was missing when the connection was made may be there now: a guest kernel, a package.
        offered = (await ask(core.hostd, Hello(), Welcome)).levels.get(level, _UNKNOWN)
    if offered.startswith("unavailable"):
        raise LevelUnavailable(f"isolation level {level}: {offered}", level=level)
    return level


def write(
    db: sqlite3.Connection, core: Core, request: PodRequest, *, container: str = "", exposed: tuple[str, ...] = ()
) -> PodRow:
    """Write a new pod; with *container* it is the implicit one of that container. Ports are taken at its start."""
    projects.check(db, request.project)
    at, id_ = core.clock(), core.new_id()
    address = _take_address(db, core) if request.network.mode == "pod" else None
    network = resolve.resolve_network(
        request.network, address=address_text(address), dns=name_servers(core.settings, request.network.mode),
        search=search_list(core.settings, request.project),
    )  # fmt: skip
    wanted = resolve.wanted_ports(request.network, exposed)
    name = f"pod-{container[:12]}" if container else _choose_name(db, core, request)
    spec = PodSpec(
        id=id_, name=name, hostname=resolve.pod_hostname(request.hostname, container or id_), project=request.project,
        level=request.level or "namespace", network=network, resources=request.resources, host_pid=request.host_pid,
        host_ipc=request.host_ipc, template=request.template,
    )  # fmt: skip
    check_template(spec)
    request = msgspec.structs.replace(
        request, network=msgspec.structs.replace(request.network, ports=wanted, publish_all=False)
    )
    row = PodRow(id_, request.project, name, at, encode(request), encode(spec), int(bool(container)), address)
    insert(db, row)
    return row


def check_template(spec: PodSpec) -> None:
    """Raises where a template is asked for at a level that clones nothing."""
    if spec.template is not None and spec.level != "microvm":
        raise InvalidArgument(
            f"--template says what a micro-VM begins as, and the level is {spec.level}",
            remedy="Leave --template away, or take --isolation microvm.",
        )


def template_of(core: Core, spec: PodSpec) -> str:
    """What a machine of this pod begins as; empty at the other levels."""
    if spec.level != "microvm":
        return ""
    setting = core.settings.text("microvm.template")
    return furthest(spec.template, next((one for one in TEMPLATES if one == setting), None))


async def create(core: Core, request: PodRequest, caller: Caller) -> PodSummary:
    """Write the record of a pod that containers can join."""
    await check_level(core, request.level)

    def work(db: sqlite3.Connection) -> PodSummary:
        row = write(db, core, request)
        at = core.clock()
        events.add(db, at, "pod", row.id, "create", project=row.project, name=row.name)
        audit.append(db, at, caller.who, "pod.create", row.id, name=row.name)
        return summary(db, row)

    answer = await core.db.write(work)
    core.events.wake()
    return answer


def of(db: sqlite3.Connection, container: ContainerRow) -> PodRow:
    """The container's pod."""
    return select(db, PodRow, "WHERE id=?", container.pod)[0]


def members(db: sqlite3.Connection, pod: str) -> list[ContainerRow]:
    return select(db, ContainerRow, "WHERE pod=? ORDER BY created_at, id", pod)


def alive(db: sqlite3.Connection, pod: str, but: str = "") -> bool:
    """Whether a container of the pod (other than *but*) runs."""
    return any(row.status in ALIVE and row.id != but for row in members(db, pod))


def address_of(row: PodRow) -> str:
    return address_text(row.address)


def summary(db: sqlite3.Connection, row: PodRow) -> PodSummary:
    spec, inside = row.the_spec(), members(db, row.id)
    running = sum(container.status in ALIVE for container in inside)
    status = "created" if not inside else "running" if running == len(inside) else "degraded" if running else "exited"
    if inside and all(container.status == "created" for container in inside):
        status = "created"
    ports = tuple(PortRequest(p.container_port, p.host_port, p.host_address, p.protocol) for p in spec.network.ports)
    return PodSummary(
        id=row.id, name=row.name, project=row.project, level=spec.level, status=status,
        created_at=rfc3339(row.created_at), address=address_of(row), containers=tuple(c.id for c in inside),
        labels=row.the_request().labels, ports=ports or row.the_request().network.ports, implicit=bool(row.implicit),
    )  # fmt: skip


async def listing(core: Core, project: str) -> PodList:
    """Every pod of the project, the newest first."""

    def work(db: sqlite3.Connection) -> PodList:
        rows = select(db, PodRow, "WHERE project=? ORDER BY created_at DESC, id LIMIT 10000", project)
        return PodList(tuple(summary(db, row) for row in rows))

    return await core.db.read(work)


async def inspect(core: Core, reference: str, project: str) -> PodDetail:
    def work(db: sqlite3.Connection) -> PodDetail:
        row = lookup.pod(db, reference, project)
        return PodDetail(summary(db, row), row.the_request(), row.first_id)

    return await core.db.read(work)


async def remove_empty(core: Core, pod: str, caller: Caller) -> None:
    """Remove a pod without containers, at hostd and in the store."""

    def begin(db: sqlite3.Connection) -> int:
        if members(db, pod):
            raise PodInUse(f"pod {pod[:12]} has containers", pod=pod)
        return journal.begin(db, "pod.remove", pod, core.clock())

    await core.db.write(begin)
    row = (await core.db.read(lambda db: select(db, PodRow, "WHERE id=?", pod)))[0]
    # An interrupted start may have left it at hostd without our knowing: removing what is not there is Done.
    await ask(core.hostd, PodRemove(pod), Done)
    await core.policy.pod_gone(pod)
    await core.db.write(lambda db: finish_remove(db, core, row, caller))
    core.events.wake()


def finish_remove(db: sqlite3.Connection, core: Core, row: PodRow, caller: Caller) -> None:
    """Strike the pod out, after hostd has removed it."""
    db.execute("DELETE FROM pods WHERE id=?", (row.id,))
    journal.end_all(db, row.id)
    at = core.clock()
    events.add(db, at, "pod", row.id, "remove", project=row.project, name=row.name)
    audit.append(db, at, caller.who, "pod.remove", row.id, name=row.name)


def with_ports(spec: PodSpec, ports: tuple[PublishedPort, ...]) -> PodSpec:
    """*spec* with the ports that were chosen."""
    network: NetworkSpec = msgspec.structs.replace(spec.network, ports=ports)
    return msgspec.structs.replace(spec, network=network)


def _take_address(db: sqlite3.Connection, core: Core) -> int:
    found = db.execute("SELECT value FROM facts WHERE name=?", (_CURSOR,)).fetchone()

    def is_used(number: int) -> bool:
        return db.execute("SELECT 1 FROM pods WHERE address=?", (number,)).fetchone() is not None

    number = next_address(core.pool, int(found[0]) if found else 0, is_used)
    db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (_CURSOR, str(number)))
    return number


def _choose_name(db: sqlite3.Connection, core: Core, request: PodRequest) -> str:
    name = request.name or another_name(int.from_bytes(core.random_bytes(8), "big"))
    holder = db.execute("SELECT id FROM pods WHERE project=? AND name=?", (request.project, name)).fetchone()
    if holder is not None:
        raise NameTaken(f"the name {name!r} is that of pod {holder[0][:12]}", name=name, holder=holder[0])
    return name
