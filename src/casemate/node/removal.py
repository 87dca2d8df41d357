"""Removing a container, with its pod and its anonymous volumes where they were made for it."""

from __future__ import annotations

import sqlite3

from casemate.hostd.client import ask
from casemate.hostd.protocol import ContainerRemove, Done, PodRemove, VolumeRemove
from casemate.node import audit, events, journal, lookup, pods
from casemate.node.core import SELF, Caller, Core, report
from casemate.node.errors import ContainerRunning
from casemate.node.reconcile import LOST_EXIT_CODE
from casemate.node.rows import ALIVE, ContainerRow, select, update
from casemate.spec.api import WaitAnswer
from casemate.spec.errors import CasemateError

REMOVE_TIMEOUT_S = 120.0


async def remove(core: Core, reference: str, project: str, caller: Caller, *, force: bool, volumes: bool) -> None:
    """Remove a container; one that runs only with *force* (KILL). *volumes*: its anonymous ones as well."""
    row = await core.db.read(lambda db: lookup.container(db, reference, project))
    if row.status in ALIVE and row.status != "starting" and not force:
        raise ContainerRunning(
            f"container {row.name} is {row.status}",
            remedy=f"Stop it first, or remove it with `casemate rm -f {row.name}`.", status=row.status,
        )  # fmt: skip
    async with core.lock(row.id):
        await remove_locked(core, row.id, caller, force=force, volumes=volumes)


async def remove_ended(core: Core, id_: str) -> None:
    """What ``--rm`` asked for, once the container has ended."""
    async with core.lock(id_):
        try:
            await remove_locked(core, id_, SELF, force=False, volumes=True)
        except CasemateError:
            report(f"container {id_[:12]} ended and could not be removed")


async def remove_locked(core: Core, id_: str, caller: Caller, *, force: bool, volumes: bool) -> None:
    """:func:`remove`, for who holds the container's lock. Goes on where an interrupted removal stopped."""

    def begin(db: sqlite3.Connection) -> ContainerRow | None:
        found = select(db, ContainerRow, "WHERE id=?", id_)
        if not found:
            return None
        row = found[0]
        if row.status in ALIVE and not force:
            raise ContainerRunning(f"container {row.name} is {row.status}", status=row.status)
        update(db, ContainerRow, id_, status="removing", desired="removed")
        journal.begin(db, "container.remove", id_, core.clock(), volumes=volumes)
        return row

    row = await core.db.write(begin)
    if row is None:
        return
    # A start that was interrupted may have left it at hostd without our knowing: removing what is not there is Done.
    if row.made or row.intent_at:
        pod_goes = await _pod_goes(core, row)
        operation = ContainerRemove(id_, force=True, pod=pod_goes)
        await ask(core.hostd, operation, Done, timeout_s=REMOVE_TIMEOUT_S)
        if pod_goes and (not row.made or row.exit_code == LOST_EXIT_CODE):
            # Interrupted between pod and container, or lost: hostd may have a pod that no container leads to.
            await _remove_pod(core, row)
    if await _pod_goes(core, row):
        # Before its address may be given to another.
        await core.policy.pod_gone(row.pod)
    gone = await core.db.write(lambda db: _finish(db, core, row, caller, volumes=volumes))
    core.hub.forget(id_)
    _, ending = core.endings.get(id_) or ("", WaitAnswer(137 if row.status in ALIVE else row.exit_code or 0))
    core.remember(id_, row.project, ending)
    core.changes.tell(id_)
    core.events.wake()
    for project, name in gone:
        await ask(core.hostd, VolumeRemove(project, name), Done)


async def _remove_pod(core: Core, row: ContainerRow) -> None:
    """Remove the pod at hostd, unless another container has joined it."""
    members = await core.db.read(lambda db: pods.members(db, row.pod))
    if [member.id for member in members] == [row.id]:
        await ask(core.hostd, PodRemove(row.pod, force=True), Done, timeout_s=REMOVE_TIMEOUT_S)


async def _pod_goes(core: Core, row: ContainerRow) -> bool:
    return await core.db.read(lambda db: bool(pods.of(db, row).implicit))


def _finish(
    db: sqlite3.Connection, core: Core, row: ContainerRow, caller: Caller, *, volumes: bool
) -> list[tuple[str, str]]:
    """Strike the container out; the volumes that are to go at hostd."""
    own = db.execute("SELECT project, volume FROM container_volumes WHERE container=?", (row.id,)).fetchall()
    pod = pods.of(db, row)
    db.execute("DELETE FROM containers WHERE id=?", (row.id,))
    if pod.implicit:
        db.execute("DELETE FROM pods WHERE id=?", (pod.id,))
    journal.end_all(db, row.id)
    at = core.clock()
    events.add(db, at, "container", row.id, "destroy", project=row.project, name=row.name)
    audit.append(db, at, caller.who, "container.remove", row.id, name=row.name)
    gone = []
    if volumes:
        query = (
            "DELETE FROM volumes WHERE project=? AND name=? AND anonymous=1 AND NOT EXISTS "
            "(SELECT 1 FROM container_volumes v WHERE v.project=volumes.project AND v.volume=volumes.name) "
            "RETURNING project, name, made"
        )
        for volume in own:
            gone += [(project, name) for project, name, made in db.execute(query, volume).fetchall() if made]
    return gone
