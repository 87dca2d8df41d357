"""Containers as records: create, list, inspect, rename. Nothing is made on the host here."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from casemate.node import (
    audit,
    entering,
    events,
    freshness,
    images,
    imagestore,
    lookup,
    platforms,
    pods,
    ports,
    projects,
    resolve,
    systemcalls,
)
from casemate.node.clock import rfc3339
from casemate.node.core import Caller, Core
from casemate.node.errors import NameTaken, TooManyContainers
from casemate.node.names import another_name, random_name
from casemate.node.policy import renaming
from casemate.node.rows import ContainerRow, ExecRow, PodRow, encode, insert, select, update
from casemate.node.trust import admission as trust
from casemate.spec.api import (
    Admission,
    ContainerCreated,
    ContainerDetail,
    ContainerRequest,
    ContainerSummary,
    PodRequest,
)
from casemate.spec.errors import InvalidArgument
from casemate.spec.workload import Level, VolumeMount
from casemate.trust.admission import Candidate

NAME_TRIES = 24


async def create(core: Core, request: ContainerRequest, caller: Caller) -> ContainerCreated:
    """Write the record of a new container (and of its pod); the host is not touched."""
    found = await core.db.read(lambda db: imagestore.find(db, request.image))
    published = await freshness.check(core, request.image, found)
    platform = found.the_record().platform
    platforms.check_asked(platform, request.platform, request.image)
    await platforms.check_runs(platform, request.image)
    image = await images.ready(core, found, request.image)
    wanted, by_name = await _level(core, request)
    candidate = Candidate(found.manifest_digest, request.image, request.project, wanted)
    admission, level = await trust.decide(core, found, candidate, asked_by_name=by_name)
    admission = msgspec.structs.replace(admission, steps=(*published, *admission.steps))
    if level != wanted or request.pod is not None:
        # Otherwise it was looked at before, and hostd may have been asked for it.
        await pods.check_level(core, level)
    id_ = core.new_id()
    fresh = _Fresh(core, request, image, admission, level, caller, id_)
    row = await core.db.write(fresh.write)
    core.events.wake()
    return ContainerCreated(row.id, row.name, row.the_warnings())


async def _level(core: Core, request: ContainerRequest) -> tuple[Level, bool]:
    """The level that is asked for, and whether somebody chose it: by name, or as that of the pod that it joins."""
    if request.pod is None:
        return await pods.check_level(core, request.level) or "namespace", request.level is not None
    pod = await core.db.read(lambda db: lookup.pod(db, request.pod or "", request.project))
    return pod.the_spec().level, True


@dataclass(frozen=True, slots=True)
class _Fresh:
    """A container that is about to be written."""

    core: Core
    request: ContainerRequest
    image: resolve.Image
    admission: Admission
    level: Level
    caller: Caller
    id: str

    def write(self, db: sqlite3.Connection) -> ContainerRow:
        core, request, at = self.core, self.request, self.core.clock()
        projects.check(db, request.project)
        maximum = core.settings.number("limits.containers")
        count = db.execute("SELECT count(*) FROM containers").fetchone()[0]
        if count >= maximum:
            raise TooManyContainers(f"{count} containers are in the store, {maximum} are allowed")
        name = choose_name(db, core, request.project, request.name)
        pod = self._pod(db)
        hostname = pod.the_spec().hostname
        volume_names = tuple(core.random_bytes(32).hex() for _ in self.image.config.volumes)
        resolved = resolve.resolve_container(
            request, self.image, _defaults(core), id_=self.id, pod=pod.id, name=name, hostname=hostname,
            volume_names=volume_names,
        )  # fmt: skip
        self._volumes(db, resolved, at)
        row = self._row(resolved, pod, name, at)
        insert(db, row)
        for mount in resolved.spec.mounts:
            if isinstance(mount, VolumeMount):
                db.execute(
                    "INSERT OR IGNORE INTO container_volumes VALUES (?, ?, ?)", (self.id, row.project, mount.volume)
                )
        self._tell(db, row)
        return row

    def _row(self, resolved: resolve.Resolved, pod: PodRow, name: str, at: float) -> ContainerRow:
        request = self.request
        return ContainerRow(
            id=self.id,
            project=request.project,
            name=name,
            pod=pod.id,
            created_at=at,
            request=encode(request),
            spec=encode(resolved.spec),
            image=request.image,
            image_digest=self.image.digest,
            command=resolved.command[:4096],
            labels=encode(trust.own_labels({**self.image.config.labels, **request.labels}, self.admission)),
            restart_name=request.restart.name,
            restart_maximum=request.restart.maximum,
            auto_remove=int(request.auto_remove),
            stop_signal=resolved.stop_signal,
            stop_timeout=resolved.stop_timeout_s,
            admission=encode(self.admission),
            warnings=encode(self._warnings(pod)),
            desired="created",
            status="created",
        )

    def _tell(self, db: sqlite3.Connection, row: ContainerRow) -> None:
        """The event, and the line in the audit log."""
        events.add(
            db, row.created_at, "container", row.id, "create", project=row.project, name=row.name, image=row.image,
            digest=self.image.digest, admission=self.admission.answer,
        )  # fmt: skip
        audit.append(
            db, row.created_at, self.caller.who, "container.create", row.id, name=row.name, image=row.image,
            digest=self.image.digest, admission=f"{self.admission.answer}: {self.admission.reason}", level=self.level,
            grants=list(resolve.grants_needed(self.request)),
        )  # fmt: skip

    def _pod(self, db: sqlite3.Connection) -> PodRow:
        request = self.request
        if request.pod is None:
            asked = PodRequest(
                project=request.project, level=self.level, hostname=request.hostname, network=request.network,
                host_pid=request.host_pid, host_ipc=request.host_ipc, template=request.template,
            )  # fmt: skip
            return pods.write(db, self.core, asked, container=self.id, exposed=self.image.config.exposed_ports)
        if request.network != type(request.network)() or request.hostname is not None:
            raise InvalidArgument(
                "a container that joins a pod has the pod's network and host name",
                remedy="Give -p, --network and --hostname to `casemate pod create` instead.",
            )
        pod = lookup.pod(db, request.pod, request.project)
        entering.check_pod(pod, self.caller)
        if request.level is not None and request.level != pod.the_spec().level:
            raise InvalidArgument(f"pod {pod.name} has level {pod.the_spec().level}, not {request.level}")
        if request.template is not None:
            raise InvalidArgument("a template is the pod's", remedy="Give --template to `casemate pod create`.")
        if request.host_pid or request.host_ipc:
            raise InvalidArgument("host namespaces belong to the pod", remedy="Give them to `casemate pod create`.")
        return pod

    def _volumes(self, db: sqlite3.Connection, resolved: resolve.Resolved, at: float) -> None:
        query = (
            "INSERT OR IGNORE INTO volumes (project, name, created_at, anonymous, labels) VALUES (?, ?, ?, ?, x'7b7d')"
        )
        for mount in resolved.spec.mounts:
            if isinstance(mount, VolumeMount):
                is_anonymous = int(mount.volume in resolved.anonymous)
                db.execute(query, (self.request.project, mount.volume, at, is_anonymous))

    def _warnings(self, pod: PodRow) -> tuple[str, ...]:
        network = pod.the_spec().network
        if network.mode == "pod" and not network.dns:
            return ("no name server of the host can be reached from a pod: set network.dns, or use --dns",)
        return ()


def choose_name(db: sqlite3.Connection, core: Core, project: str, wanted: str | None) -> str:
    """*wanted*, when it is free, or a random name; raises :class:`NameTaken`."""
    query = "SELECT id FROM containers WHERE project=? AND name=?"
    if wanted is not None:
        holder = db.execute(query, (project, wanted)).fetchone()
        if holder is not None:
            raise NameTaken(
                f"the name {wanted!r} is that of container {holder[0][:12]}",
                remedy=f"Choose another name, or `casemate rm {wanted}` (`casemate rename` keeps the container).",
                name=wanted, holder=holder[0],
            )  # fmt: skip
        return wanted
    for attempt in range(NAME_TRIES):
        number = int.from_bytes(core.random_bytes(8), "big")
        name = random_name(number) if attempt < 3 else another_name(number)
        if db.execute(query, (project, name)).fetchone() is None:
            return name
    return core.random_bytes(16).hex()


async def rename(core: Core, reference: str, project: str, name: str, caller: Caller) -> None:
    """Give the container another name."""

    def work(db: sqlite3.Connection) -> str:
        row = lookup.container(db, reference, project)
        if row.name == name:
            raise InvalidArgument(f"the container has the name {name!r} already")
        choose_name(db, core, project, name)
        update(db, ContainerRow, row.id, name=name)
        at = core.clock()
        renaming.work(db, core, row, name, caller.who)
        events.add(db, at, "container", row.id, "rename", project=project, name=name, old=row.name)
        audit.append(db, at, caller.who, "container.rename", row.id, name=name, old=row.name)

        return row.pod

    # What is reached meanwhile would be written under the name that it had.
    async with core.walls.lock:
        pod = await core.db.write(work)
        await renaming.done(core, pod)
    core.events.wake()


async def get(core: Core, reference: str, project: str) -> ContainerRow:
    """The container's row."""
    return await core.db.read(lambda db: lookup.container(db, reference, project))


def summary(row: ContainerRow, pod: PodRow) -> ContainerSummary:
    """The row of ``ps`` for a container."""
    spec = pod.the_spec()
    return ContainerSummary(
        id=row.id, name=row.name, project=row.project, pod=row.pod, pod_name=pod.name, image=row.image,
        image_digest=row.image_digest, command=row.command, level=spec.level,
        status=row.status,  # type: ignore[arg-type]  # the store holds nothing else
        created_at=rfc3339(row.created_at), started_at=rfc3339(row.started_at), finished_at=rfc3339(row.finished_at),
        exit_code=row.exit_code, ports=ports.chosen(spec), labels=row.the_labels(), address=pods.address_of(pod),
        restarts=row.restarts,
    )  # fmt: skip


async def inspect(core: Core, reference: str, project: str) -> ContainerDetail:
    """Everything about one container."""
    welcome = core.hostd.welcome
    offered = {} if welcome is None else welcome.levels
    calls = {} if welcome is None else welcome.calls

    def work(db: sqlite3.Connection) -> ContainerDetail:
        row = lookup.container(db, reference, project)
        pod = pods.of(db, row)
        execs = select(db, ExecRow, "WHERE container=? ORDER BY created_at", row.id)
        request = row.the_request()
        return ContainerDetail(
            summary=msgspec.structs.replace(summary(row, pod), identity=core.policy.number(pod.id)),
            request=request,
            resolved=msgspec.to_builtins(row.the_spec()),
            admission=msgspec.json.decode(row.admission, type=Admission),
            pid=row.pid, conmon_pid=row.conmon_pid, first_id=pod.first_id, oom_killed=bool(row.oom_killed),
            reason=row.reason, warnings=row.the_warnings(), execs=tuple(e.id for e in execs),
            level_detail=offered.get(pod.the_spec().level, ""),
            template=pods.template_of(core, pod.the_spec()),
            system_calls=systemcalls.of(pod.the_spec().level, row.the_spec(), calls),
        )  # fmt: skip

    return await core.db.read(work)


async def until(
    core: Core, id_: str, condition: Callable[[ContainerRow | None], bool], timeout_s: float | None = None
) -> ContainerRow | None:
    """Wait until *condition* holds of the container's row (None once it is removed); raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while True:
            change = core.changes.register(id_)
            try:
                rows = await core.db.read(lambda db: select(db, ContainerRow, "WHERE id=?", id_))
                row = rows[0] if rows else None
                if condition(row):
                    return row
                await change
            finally:
                change.cancel()


def _defaults(core: Core) -> resolve.Defaults:
    settings = core.settings
    return resolve.Defaults(
        pids=settings.number("limits.pids"),
        stop_timeout_s=settings.number("runtime.stop_timeout"),
        log_max_bytes=settings.number("logs.max_bytes"),
        writable_bytes=settings.number("limits.writable_bytes"),
    )
