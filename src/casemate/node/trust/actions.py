"""What is done with a container that runs and would not be admitted so any more.

*report*: nothing but the event. *restart*: at the stronger level, anew from its verified image (what it wrote into its
own layer is lost; volumes stay). *quarantine*: cut off in the network; frozen where it has no network of its own, or
the firewall cannot be reached. *stop*. What cannot be done as asked is done harder.
"""

from __future__ import annotations

import sqlite3

import msgspec

from casemate.hostd.client import ask
from casemate.hostd.protocol import ContainerPause, ContainerRemove, Done
from casemate.node import audit, events, journal, lifecycle, pods
from casemate.node.core import SELF, Core, report
from casemate.node.policy.quarantine import by_admission
from casemate.node.removal import REMOVE_TIMEOUT_S
from casemate.node.rows import ALIVE, ContainerRow, PodRow, encode, select, update
from casemate.node.trust.rechecks import QUARANTINE_LABEL
from casemate.spec.api import Admission, StopRequest
from casemate.spec.errors import CasemateError
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
    await lifecycle.stop_locked(core, row.id, StopRequest(), SELF)
    # The intent first: should we end now, `recover` removes what hostd has, and the next start makes it anew.
    await core.db.write(lambda db: _begin(db, core, row, pod, level))
    await _remove(core, row.id)
    try:
        await lifecycle.start_locked(core, row.id, SELF, attach=False)
    except CasemateError:
        report(f"container {row.name} could not be started at {level}; it stays stopped")
        return "stopped"
    return f"restarted at {level}"


def _begin(db: sqlite3.Connection, core: Core, row: ContainerRow, pod: PodRow, level: Level) -> None:
    journal.begin(db, _RELEVEL, row.id, core.clock())
    update(db, ContainerRow, row.id, made=0, status="created", desired="created", pid=0, conmon_pid=0)
    spec = msgspec.structs.replace(pod.the_spec(), level=level)
    db.execute("UPDATE pods SET made=0, first_id=0, spec=? WHERE id=?", (encode(spec), pod.id))


async def _remove(core: Core, id_: str) -> None:
    await ask(core.hostd, ContainerRemove(id_, force=True, pod=True), Done, timeout_s=REMOVE_TIMEOUT_S)
    await core.db.write(lambda db: journal.end_all(db, id_))


async def recover(core: Core) -> None:
    """Restarts at another level that a crash interrupted: what hostd still has of them goes."""
    for entry in await core.db.read(journal.pending):
        if entry.kind == _RELEVEL:
            async with core.lock(entry.subject):
                await _remove(core, entry.subject)


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
