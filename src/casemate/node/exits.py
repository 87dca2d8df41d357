"""What follows the end of a container: the record, the restart policy, ``--rm``."""

from __future__ import annotations

import asyncio
import sqlite3

from casemate.hostd.protocol import AnyEvent, ContainerExited, ContainerOom, ExecEnded
from casemate.node import events, lifecycle, removal, restart
from casemate.node.core import SELF, Core, report
from casemate.node.rows import ALIVE, ContainerRow, ExecRow, select, update
from casemate.node.signals import exit_reason
from casemate.spec.api import WaitAnswer
from casemate.spec.errors import CasemateError

#: A file's time may lie this much before the clock that was read before it (granularity of the kernel's own).
CLOCK_SLACK_S = 0.02


def on_event(core: Core, event: AnyEvent) -> None:
    """Take an event of hostd; called on the loop, so the work goes into the background."""
    match event:
        case ContainerExited():
            work = exited(
                core, event.container, event.exit_code, oom_killed=event.oom_killed, finished_at=event.finished_at,
                reason=event.reason,
            )  # fmt: skip
            core.spawn(work, f"exit of {event.container[:12]}")
        case ContainerOom():
            core.spawn(_out_of_memory(core, event.container), f"oom of {event.container[:12]}")
        case ExecEnded():
            core.spawn(exec_ended(core, event.exec_id, event.exit_code), f"end of exec {event.exec_id[:12]}")
        case _:
            # The firewall's events are the policy desk's, which is asked first.
            pass


async def exited(
    core: Core, id_: str, exit_code: int, *, oom_killed: bool, finished_at: float, reason: str = ""
) -> None:
    """Record the end of the current run, once; then restart or remove as was asked. An older run's end is dropped."""
    while (starting := core.starting.get(id_)) is not None:
        await asyncio.shield(starting)
    event = ContainerExited(id_, exit_code, oom_killed, finished_at)
    done = await core.db.write(lambda db: _record(db, core, event, reason))
    if done is None:
        return
    row, decision = done
    core.remember(id_, row.project, WaitAnswer(exit_code, oom_killed, reason or exit_reason(exit_code)))
    core.changes.tell(id_)
    core.events.wake()
    if decision.again:
        core.spawn(start_later(core, id_, decision.delay_s), f"restart of {row.name}")
    elif row.auto_remove:
        await removal.remove_ended(core, id_)


def _record(
    db: sqlite3.Connection, core: Core, event: ContainerExited, reason: str
) -> tuple[ContainerRow, restart.Decision] | None:
    id_, exit_code, finished_at = event.container, event.exit_code, event.finished_at
    found = select(db, ContainerRow, "WHERE id=?", id_)
    if not found or found[0].status not in ALIVE or finished_at + CLOCK_SLACK_S < found[0].intent_at:
        return None
    row = found[0]
    began = row.started_at or row.intent_at
    decision = restart.decide(
        restart.Ended(
            policy=row.restart_name, maximum=row.restart_maximum, exit_code=exit_code, ran_s=finished_at - began,
            restarts=row.restarts, failures=row.failures, by_user=row.desired in ("stopped", "removed"),
        )
    )  # fmt: skip
    at = core.clock()
    update(
        db, ContainerRow, id_, status="restarting" if decision.again else "exited", exit_code=exit_code,
        oom_killed=int(event.oom_killed), finished_at=max(finished_at, row.intent_at), pid=0,
        reason=reason or ("out of memory" if event.oom_killed else ""), failures=decision.failures,
        restart_at=at + decision.delay_s if decision.again else 0.0,
        desired=row.desired if row.desired == "stopped" or decision.again else "stopped",
        restarts=row.restarts + int(decision.again),
    )  # fmt: skip
    db.execute("UPDATE execs SET status='ended' WHERE container=? AND status='running'", (id_,))
    events.add(
        db, at, "container", id_, "die", project=row.project, name=row.name, exit_code=exit_code,
        oom_killed=event.oom_killed, next=decision.reason,
    )  # fmt: skip
    return row, decision


async def start_later(core: Core, id_: str, delay_s: float) -> None:
    """Start a container that waits for its restart, unless somebody decides otherwise meanwhile."""
    await asyncio.sleep(delay_s)
    async with core.lock(id_):
        rows = await core.db.read(lambda db: select(db, ContainerRow, "WHERE id=?", id_))
        if not rows or rows[0].status != "restarting":
            return
        try:
            await lifecycle.start_locked(core, id_, SELF, attach=False)
        except CasemateError:
            report(f"container {rows[0].name} could not be started again")


async def _out_of_memory(core: Core, id_: str) -> None:
    def work(db: sqlite3.Connection) -> None:
        for row in select(db, ContainerRow, "WHERE id=?", id_):
            events.add(db, core.clock(), "container", id_, "oom", project=row.project, name=row.name)

    await core.db.write(work)
    core.events.wake()


async def exec_ended(core: Core, id_: str, exit_code: int) -> None:
    """Record the end of an exec, and tell who waits for it."""

    def work(db: sqlite3.Connection) -> None:
        update(db, ExecRow, id_, status="ended", exit_code=exit_code, pid=0)
        for row in select(db, ExecRow, "WHERE id=?", id_):
            for one in select(db, ContainerRow, "WHERE id=?", row.container):
                events.add(
                    db, core.clock(), "container", one.id, "exec_die", project=one.project, name=one.name, exec=id_,
                    exit_code=exit_code,
                )  # fmt: skip

    await core.db.write(work)
    future = core.exec_ends.pop(id_, None)
    if future is not None and not future.done():
        future.set_result(exit_code)
    core.events.wake()
