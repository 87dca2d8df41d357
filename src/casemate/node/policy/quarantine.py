"""Quarantine: a workload's identity becomes one that may do nothing but what was named, in one transaction.

By a person, by admission, or by a rule over flow events. What it was connected to before is kept with it. It goes by
the workload's stable name: a restart, a new image and a rename change nothing; only a release or its end does.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from casemate.node import audit, events
from casemate.node.core import Caller, Core, report
from casemate.node.flows.query import PASSED
from casemate.node.owners import sees_end
from casemate.node.policy import ends, rights, store
from casemate.node.policy.endpoints import read_workload
from casemate.node.policy.errors import QuarantineHeld, QuarantineNotFound
from casemate.node.policy.passages import passages_of
from casemate.spec.api.policy import (
    QuarantineAllow,
    QuarantineList,
    QuarantineRequest,
    QuarantineRow,
    ReleaseRequest,
)
from casemate.spec.errors import CasemateError

MAX_HELD = 10_000
MAX_BEFORE = 200
#: What it was connected to is looked for in the flows of so long before.
BEFORE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Cause:
    """Why, and who says so: *who* as the audit log has it; *kind* ``person``, ``admission`` or ``rule NAME``."""

    who: str
    kind: str
    reason: str


async def by_person(core: Core, request: QuarantineRequest, caller: Caller) -> QuarantineRow:
    """What ``casemate quarantine`` asks. Raises :class:`QuarantineHeld`, :class:`GrantMissing`."""
    rights.demand(caller, "to put a workload in quarantine")
    workload = await ends.workload_name(core, request.workload, request.project)
    cause = Cause(caller.who, "person", request.reason)
    return await put(core, workload, cause, allow=request.allow, for_s=request.for_s, project=request.project)


async def put(
    core: Core, workload: str, cause: Cause, *, allow: tuple[QuarantineAllow, ...] = (), for_s: int = 0,
    project: str = "default",
) -> QuarantineRow:  # fmt: skip
    """Put *workload* (its stable name) in quarantine; in the kernel when this returns, if hostd is there.

    Raises :class:`QuarantineHeld`.
    """
    passages = await passages_of(core, allow, project)
    before = await _before(core, workload)
    policy, at = core.policy, core.clock()
    until = at + for_s if for_s else 0.0
    async with policy.lock:
        await policy.load_held()
        if workload in policy.quarantines:
            held = policy.quarantines[workload]
            raise QuarantineHeld(f"{workload} is in quarantine since {held.since}, by {held.by}", workload=workload)

        def work(db: sqlite3.Connection) -> QuarantineRow:
            row = QuarantineRow(0, workload, "", cause.who, cause.kind, cause.reason, "", allow, before)
            number = store.add_quarantine(db, row, at, until)
            events.add(db, at, "quarantine", workload, "begin", cause=cause.kind, reason=cause.reason, by=cause.who)
            audit.append(db, at, cause.who, "quarantine.begin", workload, cause=cause.kind, reason=cause.reason)
            return next(one for one in store.quarantines(db) if one.number == number)

        row = await core.db.write(work)
        policy.quarantines[workload] = row
        policy.passages[row.number] = passages
        core.events.wake()
        await _in_force(core, workload, "quarantine")
    return row


async def by_admission(core: Core, pod: str, reason: str) -> QuarantineRow | None:
    """Admission lets the pod (its id) run cut off; None where it is in quarantine already, or has no network."""
    await core.policy.load()
    known = core.policy.workloads.get(pod) or await core.db.read(lambda db: read_workload(db, pod))
    if known is None:
        return None
    core.policy.workloads.note(known)
    try:
        return await put(core, known.name, Cause("casemated", "admission", reason))
    except QuarantineHeld:
        return None


async def _in_force(core: Core, workload: str, reason: str, *, label_first: bool = False) -> None:
    """Rules, then the label that brings the workload under them (or the other way round at the end)."""
    policy, pod = core.policy, core.policy.workloads.names.get(workload, "")
    try:
        if label_first:
            await policy.put_again(pod)
        await policy.rules_again(reason)
        if not label_first:
            await policy.put_again(pod)
    except CasemateError as error:
        # The store has it: the firewall gets it when hostd is back, and nothing starts meanwhile.
        policy.why_not = error.detail
        report(f"{reason} of {workload} is not in the firewall yet")


async def release(core: Core, workload: str, caller_who: str, reason: str) -> None:
    """End a quarantine. Raises :class:`QuarantineNotFound`."""
    policy, at = core.policy, core.clock()
    async with policy.lock:
        held = policy.quarantines.get(workload)
        if held is None:
            raise QuarantineNotFound(f"{workload} is not in quarantine", workload=workload)

        def work(db: sqlite3.Connection) -> None:
            store.end_quarantine(db, held.number, at, caller_who, reason)
            events.add(db, at, "quarantine", workload, "release", reason=reason, by=caller_who)
            audit.append(db, at, caller_who, "quarantine.release", workload, reason=reason)

        await core.db.write(work)
        del policy.quarantines[workload]
        policy.passages.pop(held.number, None)
        core.events.wake()
        await _in_force(core, workload, "release", label_first=True)


async def by_officer(core: Core, request: ReleaseRequest, caller: Caller) -> None:
    """What ``casemate quarantine release`` asks."""
    rights.demand(caller, "to release a workload from quarantine")
    text, project = request.workload, request.project
    name = f"{project}/{text}"
    known = core.policy.quarantines
    workload = text if text in known else name if name in known else await ends.workload_name(core, text, project)
    await release(core, workload, caller.who, request.reason)


async def overdue(core: Core) -> None:
    """End those whose time is over."""
    at = core.clock()
    ending = await core.db.read(store.quarantine_ends)
    for workload, row in list(core.policy.quarantines.items()):
        if 0.0 < ending.get(row.number, 0.0) <= at:
            await release(core, workload, "casemated", "its time is over")


async def listing(core: Core, caller: Caller, *, everything: bool) -> QuarantineList:
    """Those that hold, and with *everything* those that ended, of workloads that *caller* sees."""
    rows = await core.db.read(lambda db: store.quarantines(db, everything=everything))
    return QuarantineList(tuple(row for row in rows if sees_end(caller, row.workload)))


async def _before(core: Core, workload: str) -> tuple[str, ...]:
    """Whom *workload* was connected to in the hour before, the most frequent first."""
    if core.flows_between is None:
        return ()
    counted: dict[str, int] = {}
    for flow, count in await core.flows_between(core.clock() - BEFORE_S, PASSED):
        if workload not in (flow.source.name, flow.destination.name):
            continue
        arrow = f"to {flow.destination.name}" if flow.source.name == workload else f"from {flow.source.name}"
        text = f"{arrow} {flow.protocol.name.lower()}/{flow.port}"
        counted[text] = counted.get(text, 0) + count
    ordered: Iterable[str] = sorted(counted, key=lambda text: (-counted[text], text))
    return tuple(f"{text} ({counted[text]} times)" for text in ordered)[:MAX_BEFORE]
