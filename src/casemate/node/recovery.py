"""Applying what the reconcile loop plans, each time that the connection to hostd is made."""

from __future__ import annotations

import sqlite3
from typing import assert_never

from casemate.hostd.client import ask
from casemate.hostd.protocol import Done, Observe, Observed, ObservedContainer, PodRemove
from casemate.node import exits, journal, lifecycle, pods, reconcile, removal
from casemate.node.core import SELF, Core, report
from casemate.node.rows import ContainerRow, PodRow, select, update
from casemate.spec.errors import CasemateError

_BOOT = "boot_id"
#: Pages of an observation: 10,000 pods of 50 a page, with room.
MAX_PAGES = 1000


async def reconcile_all(core: Core) -> list[reconcile.Operation]:
    """Observe, plan, apply; the operations that were done. One that fails is reported and does not stop the rest."""
    observed = await observe(core)
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
    await core.db.write(lambda db: _settle(db, boot_id))
    return operations


async def observe(core: Core) -> dict[str, ObservedContainer]:
    """Every container that hostd has, by id."""
    found: dict[str, ObservedContainer] = {}
    after = ""
    for _ in range(MAX_PAGES):
        page = await ask(core.hostd, Observe(after), Observed)
        for pod in page.pods:
            found.update((container.id, container) for container in pod.containers)
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
