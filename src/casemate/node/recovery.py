"""Applying what the reconcile loop plans, each time that the connection to hostd is made."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import assert_never

from casemate.hostd.client import ask
from casemate.hostd.protocol import ContainerRemove, Done, Observe, Observed, ObservedPod, PodRemove
from casemate.node import exits, journal, lifecycle, pods, reconcile, removal
from casemate.node.core import SELF, Core, report
from casemate.node.rows import ContainerRow, PodRow, select, update
from casemate.spec.errors import CasemateError

_BOOT = "boot_id"
#: Pages of an observation: 10,000 pods of 50 a page, with room.
MAX_PAGES = 1000


async def reconcile_all(core: Core) -> list[reconcile.Operation]:
    """Observe, plan, apply; the operations that were done. One that fails is reported and does not stop the rest."""
    found = await observe(core)
    observed = {container.id: container for pod in found for container in pod.containers}
    welcome = core.hostd.welcome
    boot_id = welcome.boot_id if welcome is not None else ""
    wanted, pods_to_remove, last_boot = await core.db.read(_desired)
    rebooted = bool(last_boot) and last_boot != boot_id
    operations = reconcile.plan(wanted, observed, rebooted=rebooted, pods_to_remove=pods_to_remove)
    for operation in operations:
        try:
            await apply(core, operation)
        except CasemateError:
            report(f"could not {operation.describe()}")
    never_made = await core.db.read(_never_made)
    for pod in [one for one in found if one.id in never_made]:
        try:
            await _unmake(core, pod)
        except CasemateError:
            report(f"could not take away what an interrupted start left of pod {pod.id[:12]}")
    await core.db.write(lambda db: _settle(db, boot_id))
    return operations


def _never_made(db: sqlite3.Connection) -> set[str]:
    """Pods of which the store says that they, or a container in them, were never made at hostd."""
    return {
        id_ for (id_,) in db.execute("SELECT id FROM pods WHERE made=0 UNION SELECT pod FROM containers WHERE made=0")
    }


async def _unmake(core: Core, pod: ObservedPod) -> None:
    """Take away at hostd what it made for a start that was interrupted, and of which the store says that it was never
    made: the next start makes it, and hostd would refuse what it has already. What runs, or ran, is never that.
    """
    async with contextlib.AsyncExitStack() as locks:
        for id_ in await core.db.read(lambda db: sorted(one.id for one in pods.members(db, pod.id))):
            await locks.enter_async_context(core.lock(id_))
        rows = await core.db.read(lambda db: select(db, PodRow, "WHERE id=?", pod.id))
        inside = {one.id: one for one in await core.db.read(lambda db: pods.members(db, pod.id))}
        left = [one for one in pod.containers if one.state == "created" and one.id in inside]
        left = [one for one in left if not inside[one.id].made and inside[one.id].status == "created"]
        for one in left:
            await ask(core.hostd, ContainerRemove(one.id, force=True), Done)
        if rows and not rows[0].made and len(left) == len(pod.containers):
            await ask(core.hostd, PodRemove(pod.id), Done)


async def observe(core: Core) -> list[ObservedPod]:
    """Every pod that hostd has, with its containers."""
    found: list[ObservedPod] = []
    after = ""
    for _ in range(MAX_PAGES):
        page = await ask(core.hostd, Observe(after), Observed)
        found += page.pods
        after = page.next_after
        if not after:
            break
    return found


def _desired(db: sqlite3.Connection) -> tuple[list[reconcile.Wanted], list[str], str]:
    """What the store wants: containers, pods whose removal was interrupted, the boot that it last saw."""
    interrupted: dict[str, set[str]] = {}
    for entry in journal.pending(db):
        interrupted.setdefault(entry.subject, set()).add(entry.kind)
    query = "SELECT id, name, pod, status, desired, restart_name, auto_remove, exit_code, intent_at FROM containers"
    wanted = [
        reconcile.Wanted(
            id_, name, pod, status, desired, policy, bool(auto_remove), exit_code or 0, intent_at,
            frozenset(interrupted.get(id_, ())),
        )
        for id_, name, pod, status, desired, policy, auto_remove, exit_code, intent_at in db.execute(query)
    ]  # fmt: skip
    pods_to_remove = [subject for subject, kinds in interrupted.items() if "pod.remove" in kinds]
    boot = db.execute("SELECT value FROM facts WHERE name=?", (_BOOT,)).fetchone()
    return wanted, pods_to_remove, boot[0] if boot else ""


async def apply(core: Core, operation: reconcile.Operation) -> None:
    """Do one operation of the plan."""
    match operation:
        case reconcile.RecordRunning():
            await core.db.write(lambda db: _record_running(db, operation))
        case reconcile.RecordExit():
            finished_at = operation.finished_at or core.clock()
            if operation.finished_at:
                # hostd told: it has it.
                await core.db.write(lambda db: _record_made(db, operation.id))
            await exits.exited(
                core, operation.id, operation.exit_code, oom_killed=operation.oom_killed, finished_at=finished_at,
                reason="" if operation.reason == reconcile.ENDED else operation.reason,
            )  # fmt: skip
        case reconcile.RecordUnstarted():
            await core.db.write(lambda db: _record_unstarted(db, operation))
        case reconcile.FinishRemoval():
            async with core.lock(operation.id):
                await removal.remove_locked(core, operation.id, SELF, force=True, volumes=True)
        case reconcile.StartAgain():
            await core.db.write(lambda db: update(db, ContainerRow, operation.id, status="restarting"))
            core.spawn(exits.start_later(core, operation.id, 0.0), operation.describe())
        case reconcile.FinishPodRemoval():
            await _finish_pod(core, operation.pod)
        case _:
            assert_never(operation)
    core.changes.tell(operation.pod if isinstance(operation, reconcile.FinishPodRemoval) else operation.id)
    core.events.wake()


async def _finish_pod(core: Core, pod: str) -> None:
    rows = await core.db.read(lambda db: select(db, PodRow, "WHERE id=?", pod))
    if rows:
        await ask(core.hostd, PodRemove(pod), Done)
        await core.policy.pod_gone(pod)
        await core.db.write(lambda db: pods.finish_remove(db, core, rows[0], SELF))


def _record_running(db: sqlite3.Connection, operation: reconcile.RecordRunning) -> None:
    row, pod = lifecycle.row_and_pod(db, operation.id)
    update(
        db, ContainerRow, row.id, status="paused" if operation.paused else "running", made=1, pid=operation.pid,
        started_at=row.started_at if row.started_at >= row.intent_at else row.intent_at,
    )  # fmt: skip
    if row.status == "starting":
        update(db, ContainerRow, row.id, finished_at=0.0, exit_code=None)
    db.execute("UPDATE pods SET made=1 WHERE id=?", (pod.id,))


def _record_made(db: sqlite3.Connection, id_: str) -> None:
    db.execute("UPDATE containers SET made=1 WHERE id=?", (id_,))
    db.execute("UPDATE pods SET made=1 WHERE id=(SELECT pod FROM containers WHERE id=?)", (id_,))


def _record_unstarted(db: sqlite3.Connection, operation: reconcile.RecordUnstarted) -> None:
    row, _ = lifecycle.row_and_pod(db, operation.id)
    update(
        db, ContainerRow, row.id, status="exited" if row.made else "created", desired="stopped",
        reason=operation.reason,
    )  # fmt: skip


def _settle(db: sqlite3.Connection, boot_id: str) -> None:
    """The plan is done: starts are no longer under way, ports are held by who runs, and this boot was seen."""
    db.execute("DELETE FROM journal WHERE kind='container.start'")
    db.execute("DELETE FROM ports WHERE pod IN (SELECT id FROM pods WHERE made=0)")
    db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (_BOOT, boot_id))
