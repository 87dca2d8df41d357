"""Volumes: records here, contents at hostd."""

from __future__ import annotations

import sqlite3

import msgspec

from casemate.hostd.client import ask
from casemate.hostd.protocol import Done, VolumeCreate, VolumeRemove, Volumes
from casemate.hostd.protocol import VolumeList as ListVolumes
from casemate.node import audit, events, journal, projects
from casemate.node.clock import rfc3339
from casemate.node.core import Caller, Core
from casemate.node.errors import NameTaken, VolumeInUse, VolumeNotFound
from casemate.node.rows import VolumeRow, encode, insert, select
from casemate.spec.api import Removed, VolumeList, VolumeRequest, VolumeSummary

MAX_LISTED = 10_000


async def create(core: Core, request: VolumeRequest, caller: Caller) -> VolumeSummary:
    """Make a volume; without a name it is anonymous and goes with the containers that use it."""
    name = request.name or core.random_bytes(32).hex()
    row = VolumeRow(request.project, name, core.clock(), int(request.name is None), encode(request.labels))

    def begin(db: sqlite3.Connection) -> None:
        projects.check(db, request.project)
        if _find(db, request.project, name) is not None:
            raise NameTaken(f"volume {name!r} is there already", name=name)
        insert(db, row)
        audit.append(db, core.clock(), caller.who, "volume.create", name)
        events.add(db, core.clock(), "volume", name, "create", project=request.project, name=name)

    await core.db.write(begin)
    await ask(core.hostd, VolumeCreate(request.project, name), Done)
    await core.db.write(lambda db: mark_made(db, request.project, name))
    core.events.wake()
    return _summary(row, (), -1)


def mark_made(db: sqlite3.Connection, project: str, name: str) -> None:
    """hostd has the volume now."""
    db.execute("UPDATE volumes SET made=1 WHERE project=? AND name=?", (project, name))


def _find(db: sqlite3.Connection, project: str, name: str) -> VolumeRow | None:
    found = select(db, VolumeRow, "WHERE project=? AND name=?", project, name)
    return found[0] if found else None


def _users(db: sqlite3.Connection, project: str, name: str) -> tuple[str, ...]:
    rows = db.execute("SELECT container FROM container_volumes WHERE project=? AND volume=?", (project, name))
    return tuple(container for (container,) in rows)


def _summary(row: VolumeRow, used_by: tuple[str, ...], size: int) -> VolumeSummary:
    labels = msgspec.json.decode(row.labels, type=dict[str, str])
    return VolumeSummary(row.name, row.project, rfc3339(row.created_at), size, bool(row.anonymous), used_by, labels)


async def listing(core: Core, project: str) -> VolumeList:
    """Every volume of the project with who uses it."""

    def work(db: sqlite3.Connection) -> VolumeList:
        rows = select(db, VolumeRow, "WHERE project=? ORDER BY name LIMIT ?", project, MAX_LISTED)
        return VolumeList(tuple(_summary(row, _users(db, project, row.name), -1) for row in rows))

    return await core.db.read(work)


async def inspect(core: Core, project: str, name: str) -> VolumeSummary:
    def work(db: sqlite3.Connection) -> tuple[VolumeRow, tuple[str, ...]]:
        row = _find(db, project, name)
        if row is None:
            raise VolumeNotFound(f"volume {name[:140]!r} is not there", name=name[:140])
        return row, _users(db, project, name)

    row, users = await core.db.read(work)
    size = -1
    if core.hostd.welcome is not None:
        answer = await ask(core.hostd, ListVolumes(project), Volumes)
        size = dict(answer.volumes).get(name, -1)
    return _summary(row, users, size)


async def remove(core: Core, project: str, name: str, caller: Caller, *, force: bool) -> None:
    """Remove a volume that no container uses; with *force* one that is not there is fine."""

    def begin(db: sqlite3.Connection) -> VolumeRow | None:
        row = _find(db, project, name)
        if row is None:
            if force:
                return None
            raise VolumeNotFound(f"volume {name[:140]!r} is not there", name=name[:140])
        users = _users(db, project, name)
        if users:
            raise VolumeInUse(f"volume {name} is used by {', '.join(user[:12] for user in users[:5])}", name=name)
        journal.begin(db, "volume.remove", f"{project}/{name}", core.clock())
        return row

    row = await core.db.write(begin)
    if row is not None:
        await ask(core.hostd, VolumeRemove(project, name), Done)
        await core.db.write(lambda db: _finish(db, core, row, caller))
        core.events.wake()


def _finish(db: sqlite3.Connection, core: Core, row: VolumeRow, caller: Caller) -> None:
    db.execute("DELETE FROM volumes WHERE project=? AND name=?", (row.project, row.name))
    journal.end_all(db, f"{row.project}/{row.name}")
    audit.append(db, core.clock(), caller.who, "volume.remove", row.name)
    events.add(db, core.clock(), "volume", row.name, "remove", project=row.project, name=row.name)


async def recover(core: Core) -> None:
    """Finish removals that a crash interrupted."""
    pending = await core.db.read(journal.pending)
    for entry in pending:
        if entry.kind == "volume.remove":
            project, _, name = entry.subject.partition("/")
            await ask(core.hostd, VolumeRemove(project, name), Done)
            row = VolumeRow(project, name, 0.0, 0, b"{}")
            await core.db.write(lambda db, r=row: _finish(db, core, r, Caller("casemated")))  # type: ignore[misc]


async def prune(core: Core, project: str, caller: Caller, *, everything: bool, dry_run: bool = False) -> Removed:
    """Remove anonymous volumes (with *everything* named ones too) that no container uses."""
    query = (
        "WHERE project=? AND (anonymous=1 OR ?) AND NOT EXISTS "
        "(SELECT 1 FROM container_volumes v WHERE v.project=volumes.project AND v.volume=volumes.name)"
    )
    rows = await core.db.read(lambda db: select(db, VolumeRow, query, project, int(everything)))
    sizes: dict[str, int] = {}
    if rows:
        sizes = dict((await ask(core.hostd, ListVolumes(project), Volumes)).volumes)
    if not dry_run:
        for row in rows:
            await remove(core, project, row.name, caller, force=True)
    freed = sum(max(0, sizes.get(row.name, 0)) for row in rows)
    return Removed(tuple(row.name for row in rows), freed_bytes=freed)
