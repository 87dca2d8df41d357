"""What is done with a container that runs and would not be admitted so any more.

*report*: nothing but the event. *restart*: at the stronger level, anew from its verified image (what it wrote into its
own layer is lost; volumes stay). *quarantine*: cut off in the network; frozen where it has no network of its own, or
the firewall cannot be reached. *stop*. What cannot be done as asked is done harder.
"""

from __future__ import annotations

import sqlite3

import msgspec

from casemate.hostd.client import HostdAway, ask
from casemate.hostd.protocol import ContainerPause, ContainerRemove, Done
from casemate.node import audit, events, journal, lifecycle, pods
from casemate.node.core import SELF, Core, report
from casemate.node.policy.quarantine import by_admission
from casemate.node.removal import REMOVE_TIMEOUT_S
from casemate.node.rows import ALIVE, ContainerRow, PodRow, encode, select, update
from casemate.node.trust.rechecks import QUARANTINE_LABEL
from casemate.spec.api import Admission, StopRequest
from casemate.spec.errors import CasemateError, TimedOut
from casemate.spec.workload import LEVELS, Level

_RELEVEL: journal.Kind = "container.relevel"


def violates(admission: Admission, level: Level) -> bool:
    """Whether what runs at *level* would not be admitted so."""
    if admission.answer != "admit":
        return True
    return admission.level in LEVELS and LEVELS.index(level) < LEVELS.index(admission.level)


async def act(core: Core, id_: str, admission: Admission, reason: str) -> None:
    """Do what *admission* wants of the container, if it still runs and still violates."""
    async with core.lock(id_):
        row, pod = await core.db.read(lambda db: _now(db, id_))
        if row is None or pod is None or row.status not in ALIVE or not violates(admission, pod.the_spec().level):
            return
        wanted = admission.running
        if wanted == "restart" and (admission.answer != "admit" or not pod.implicit or row.auto_remove):
            wanted = "stop"  # refused, or its sandbox is shared, or it goes when it stops
        match wanted:
            case "restart":
                done = await _restart(core, row, pod, admission)
            case "quarantine":
                done = await _quarantine(core, row, admission)
            case "stop":
                done = await _stop(core, row)
            case _:
                return
        if done:
            done = f"{done}: {reason}"
            await core.db.write(lambda db: _told(db, core, row, admission, done))
    core.changes.tell(id_)
    core.events.wake()


def _now(db: sqlite3.Connection, id_: str) -> tuple[ContainerRow | None, PodRow | None]:
    rows = select(db, ContainerRow, "WHERE id=?", id_)
    return (rows[0], pods.of(db, rows[0])) if rows else (None, None)


async def _stop(core: Core, row: ContainerRow) -> str:
    await lifecycle.stop_locked(core, row.id, StopRequest(), SELF)
    return "stopped"


async def _restart(core: Core, row: ContainerRow, pod: PodRow, admission: Admission) -> str:
    """A new sandbox at the stronger level. Where the host does not offer it: stopped."""
    level: Level = next(level for level in LEVELS if level == admission.level)
    try:
        await pods.check_level(core, level)
    except CasemateError as error:
        report(f"container {row.name} cannot be restarted at {level}: {error.detail}")
        return await _stop(core, row)
    # The intent first: should we end on the way, `recover` goes on from where it was.
    number = await core.db.write(lambda db: journal.begin(db, _RELEVEL, row.id, core.clock(), level=level))
    try:
        await lifecycle.stop_locked(core, row.id, StopRequest(), SELF)
    except HostdAway:
        raise
    except CasemateError:
        await core.db.write(lambda db: journal.end(db, number))
        raise
    await core.db.write(lambda db: _clear(db, row.id, pod, level))
    await _remove(core, row.id)
    return await _start(core, row, level)


def _clear(db: sqlite3.Connection, id_: str, pod: PodRow, level: Level) -> None:
    """Nothing of it was made, as far as the store knows; its next start makes it at *level*."""
    update(db, ContainerRow, id_, made=0, status="created", desired="created", pid=0, conmon_pid=0)
    spec = msgspec.structs.replace(pod.the_spec(), level=level)
    db.execute("UPDATE pods SET made=0, first_id=0, spec=? WHERE id=?", (encode(spec), pod.id))


async def _remove(core: Core, id_: str) -> None:
    await ask(core.hostd, ContainerRemove(id_, force=True, pod=True), Done, timeout_s=REMOVE_TIMEOUT_S)


async def _start(core: Core, row: ContainerRow, level: Level) -> str:
    try:
        await lifecycle.start_locked(core, row.id, SELF, attach=False)
    except (HostdAway, TimedOut):
        raise  # nobody knows whether it started: `recover` finds out
    except CasemateError:
        report(f"container {row.name} could not be started at {level}; it stays stopped")
        await core.db.write(lambda db: journal.end_all(db, row.id))
        return "stopped"
    return f"restarted at {level}"


async def recover(core: Core) -> None:
    """Restarts at another level that a crash, or hostd's end, interrupted: done to their end."""
    by_name: dict[str, Level] = {level: level for level in LEVELS}
    for entry in await core.db.read(journal.pending):
        if entry.kind == _RELEVEL:
            level = by_name.get(str(entry.facts.get("level")), LEVELS[-1])
            async with core.lock(entry.subject):
                if await _has_to_start(core, entry.subject, level):
                    core.spawn(_resumed(core, entry.subject, level), f"the restart of {entry.subject[:12]} at {level}")


async def _has_to_start(core: Core, id_: str, level: Level) -> bool:
    """Whether the container is to be started at *level*. Of an old one that ended nothing is left at hostd then."""
    row, pod = await core.db.read(lambda db: _now(db, id_))
    if row is None or pod is None or (row.status in ALIVE and pod.the_spec().level == level):
        await core.db.write(lambda db: _strike(db, id_))
        return False
    if not await core.db.read(lambda db: _is_pending(db, id_)):
        return False
    if row.status not in ALIVE:
        await core.db.write(lambda db: _clear(db, id_, pod, level))
        await _remove(core, id_)
    return True


async def _resumed(core: Core, id_: str, level: Level) -> None:
    async with core.lock(id_):
        row, pod = await core.db.read(lambda db: _now(db, id_))
        if row is None or pod is None or not await core.db.read(lambda db: _is_pending(db, id_)):
            return  # somebody started it, or removed it
        if row.made:  # the old one, which ran when we looked; it may have heard the signal to stop before
            await lifecycle.stop_locked(core, id_, StopRequest(), SELF)
            await core.db.write(lambda db: _clear(db, id_, pod, level))
            await _remove(core, id_)
        done = await _start(core, row, level)
        admission = msgspec.json.decode(row.admission, type=Admission)
        await core.db.write(lambda db: _told(db, core, row, admission, f"{done}: an interrupted restart went on"))
    core.changes.tell(id_)
    core.events.wake()


def _is_pending(db: sqlite3.Connection, id_: str) -> bool:
    return db.execute("SELECT 1 FROM journal WHERE subject=? AND kind=?", (id_, _RELEVEL)).fetchone() is not None


def _strike(db: sqlite3.Connection, id_: str) -> None:
    db.execute("DELETE FROM journal WHERE subject=? AND kind=?", (id_, _RELEVEL))


async def _quarantine(core: Core, row: ContainerRow, admission: Admission) -> str:
    """Cut off in the network, its memory and its work kept; frozen where the network cannot do that."""
    if await _cut_off(core, row, admission):
        return "cut off in the network"
    workload = core.policy.workloads.get(row.pod)
    is_cut_off = workload is not None and core.policy.enforced and workload.name in core.policy.quarantines
    if is_cut_off or QUARANTINE_LABEL in row.the_labels():
        return ""
    labels = row.the_labels() | {QUARANTINE_LABEL: admission.segment or admission.quarantine or "quarantine"}
    if row.status != "paused":
        await ask(core.hostd, ContainerPause(row.id), Done)

    def frozen(db: sqlite3.Connection) -> None:
        update(db, ContainerRow, row.id, labels=encode(labels))
        db.execute("UPDATE containers SET status='paused' WHERE id=? AND status='running'", (row.id,))

    await core.db.write(frozen)
    return "frozen"


async def _cut_off(core: Core, row: ContainerRow, admission: Admission) -> bool:
    """Whether the workload was put in quarantine now, and the firewall has it."""
    try:
        held = await by_admission(core, row.pod, f"trust rule {admission.policy}: {admission.reason}"[:500])
    except CasemateError:
        report(f"container {row.name} cannot be cut off in the network")
        return False
    if held is None or not core.policy.enforced:
        report(f"container {row.name} is not cut off in the network: {core.policy.why_not or 'it has none'}")
        return False
    return True


def _told(db: sqlite3.Connection, core: Core, row: ContainerRow, admission: Admission, done: str) -> None:
    at = core.clock()
    events.add(
        db, at, "container", row.id, "policy", project=row.project, name=row.name, image=row.image,
        digest=row.image_digest, rule=admission.policy, done=done,
    )  # fmt: skip
    audit.append(db, at, SELF.who, "container.policy", row.id, name=row.name, rule=admission.policy, done=done)
