"""Every start of a container asks admission anew: policy, keys, feeds and days change while it is stopped."""

from __future__ import annotations

import sqlite3

import msgspec

from casemate.image.errors import ImageNotFound
from casemate.node import audit, events, freshness, imagestore, pods
from casemate.node.core import Caller, Core
from casemate.node.rows import ContainerRow, PodRow, encode, select, update
from casemate.node.trust.admission import consider, enforced, with_segment
from casemate.node.trust.vouching import said, with_word
from casemate.spec.api import Admission
from casemate.spec.errors import CasemateError
from casemate.spec.workload import Level
from casemate.trust.admission import AdmissionRefused, Candidate

#: On a container that a quarantine holds: the segment.
QUARANTINE_LABEL = "casemate/quarantine"
#: Who may change what images are judged by, and release what it froze.
GRANT = "trust"


async def recheck(core: Core, row: ContainerRow, pod: PodRow, caller: Caller) -> tuple[ContainerRow, PodRow]:
    """The container and its pod, when it may start now; the level of a pod that was never made may have been raised.

    Raises what admission does; the container is then left as it was, with the reason. Costs little without a
    policy and a publisher.
    """
    if core.trust.policy is None and not await freshness.follows(core, row.image):
        return row, pod
    try:
        admission, level = await _asked(core, row, pod)
    except CasemateError as error:
        refusal = error
        await core.db.write(lambda db: _refused(db, core, row, refusal, caller))
        core.changes.tell(row.id)
        core.events.wake()
        raise

    def write(db: sqlite3.Connection) -> tuple[ContainerRow, PodRow]:
        record(db, row, admission)
        spec = pod.the_spec()
        if level != spec.level:
            db.execute(
                "UPDATE pods SET spec=? WHERE id=?", (encode(msgspec.structs.replace(spec, level=level)), pod.id)
            )
        fresh = select(db, ContainerRow, "WHERE id=?", row.id)[0]
        return fresh, pods.of(db, fresh)

    return await core.db.write(write)


async def _asked(core: Core, row: ContainerRow, pod: PodRow) -> tuple[Admission, Level]:
    try:
        image = await core.db.read(lambda db: imagestore.find(db, row.image_digest))
    except ImageNotFound as error:
        raise AdmissionRefused(
            f"container {row.name}: its image {row.image_digest} was removed, so that it cannot be judged",
            remedy=f"Fetch it again: `casemate pull {row.image}`.", digest=row.image_digest,
        ) from error  # fmt: skip
    level = pod.the_spec().level
    # What was made stays at its level: only a new sandbox has another, and its files would be lost with the old one.
    fixed = bool(pod.made) or not pod.implicit or row.the_request().level is not None
    candidate = Candidate(row.image_digest, row.image, row.project, level)
    admission = await consider(core, image, candidate)
    admission = with_word(core, admission, await said(core, row.image, image), row.image)
    wanted = enforced(admission, candidate, asked_by_name=fixed)
    await pods.check_level(core, wanted)
    return admission, wanted


def refuse_release(row: ContainerRow, caller: Caller) -> None:
    """Raises :class:`AdmissionRefused` for a container that the trust policy froze, unless *caller* may release it."""
    if QUARANTINE_LABEL in row.the_labels() and GRANT not in caller.grants():
        raise AdmissionRefused(
            f"container {row.name} is in quarantine: {row.the_labels()[QUARANTINE_LABEL]}",
            remedy=f"`casemate trust why {row.name}` shows the rule; who holds the grant {GRANT} may release it.",
        )


def released(db: sqlite3.Connection, row: ContainerRow) -> None:
    """Somebody let the container go on."""
    if QUARANTINE_LABEL in row.the_labels():
        labels = {key: value for key, value in row.the_labels().items() if key != QUARANTINE_LABEL}
        update(db, ContainerRow, row.id, labels=encode(labels))


def record(db: sqlite3.Connection, row: ContainerRow, admission: Admission) -> None:
    """Keep the newest answer with the container."""
    labels = with_segment(row.the_labels(), admission)
    update(db, ContainerRow, row.id, admission=encode(admission), labels=encode(labels))


def _refused(db: sqlite3.Connection, core: Core, row: ContainerRow, error: CasemateError, caller: Caller) -> None:
    problem = error.to_problem()
    at = core.clock()
    update(
        db, ContainerRow, row.id, status="exited" if row.made else "created", desired="stopped", restart_at=0.0,
        reason=str(problem.get("detail", ""))[:2000],
    )  # fmt: skip
    events.add(
        db, at, "container", row.id, "refuse", project=row.project, name=row.name, image=row.image,
        digest=row.image_digest, code=problem.get("code"), reason=str(problem.get("detail", ""))[:500],
    )  # fmt: skip
    audit.append(
        db, at, caller.who, "container.start", row.id, answer="refused", name=row.name, code=problem.get("code"),
        digest=row.image_digest,
    )  # fmt: skip
