"""What runs is judged anew when the policy, a key, a feed or the day changes.

From the kept package lists: no layer is read, no registry asked. One child judges all images in use; what came out is
kept with each container, told as an event where it changed, and acted upon as the policy says.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Mapping, Sequence

import msgspec

from casemate.image.errors import ImageNotFound
from casemate.node import audit, events, freshness, imagestore
from casemate.node.core import SELF, Core, report
from casemate.node.rows import ALIVE, ContainerRow, select
from casemate.node.trust import actions
from casemate.node.trust.admission import ask, recorded, subject_of
from casemate.node.trust.jobs import TrustChildFailed
from casemate.node.trust.rechecks import record
from casemate.node.trust.scans import today
from casemate.node.trust.vouching import Said, said, with_word
from casemate.spec.api import Admission
from casemate.spec.errors import CasemateError
from casemate.spec.workload import LEVELS, Level
from casemate.trust.admission import Candidate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.node.trust.judge_jobs import Judged, Subject
    from casemate.trust.rules.model import TrustPolicy

#: Feeds, ignores and exceptions come of age with the day alone.
LOOK_S = 3600.0
#: What could not be judged is tried again so soon, then after twice as long, to an hour.
RETRY_S, MAX_RETRY_S = 5.0, 3600.0
#: So often in a row, what runs is left as it was; then what still cannot be judged is refused, and tried on.
PATIENT_TRIES = 8
#: 500 images of one message take some seconds.
BATCH_S = 600.0
#: Digest, name, project, level: what is the same for these is judged once.
Key = tuple[str, str, str, Level]
_ADMISSION = msgspec.json.Decoder(Admission)
NO_POLICY = Admission("admit", "no policy")


class Unjudged(msgspec.Struct, frozen=True):
    """What could not be judged, and may be judged later: a child that did not answer, a disk that was full."""

    keys: frozenset[Key]
    detail: str


class Used(msgspec.Struct, frozen=True):
    """A container as judging sees it."""

    id: str
    name: str
    project: str
    image: str
    digest: str
    status: str
    pod: str
    level: Level

    @property
    def key(self) -> Key:
        """Containers of one key are judged once."""
        return self.digest, self.image, self.project, self.level


async def keep_rematched(core: Core) -> None:
    """Judge anew whenever something changed, when the day did, and what could not be judged; never returns."""
    day, wait_s, tries = "", LOOK_S, 0
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await core.trust.changed.wait()
        if not core.trust.changed.is_set() and not tries and day == today(core):
            continue
        reason = core.trust.reason or "another day"
        core.trust.changed.clear()
        day = today(core)
        try:
            left = await rematch(core, reason, tries)
        except Exception:  # whatever it was: what runs must be judged, so it is tried again
            report(f"what is in use could not be judged anew ({reason})")
            left = True
        if tries and not left:
            report("what is in use could be judged again")
        tries = tries + 1 if left else 0
        wait_s = retry_s(tries) if left else LOOK_S
        if not left and not core.trust.changed.is_set():
            core.trust.reason = ""


def retry_s(tries: int) -> float:
    """How long to wait before the next try, after *tries* in a row that left something unjudged (s)."""
    return min(RETRY_S * 2.0 ** min(tries - 1, 16), MAX_RETRY_S)


async def rematch(core: Core, reason: str, tries: int = 0) -> bool:
    """Judge every image in use; whether some could not be judged, and are to be tried again.

    They are left as they were, until *tries* says that this has gone on for long.
    """
    used = await core.db.read(in_use)
    if not used:
        return False
    policy = core.trust.policy
    found: dict[Key, Admission] = {}
    left = Unjudged(frozenset(), "")
    if policy is not None:
        found, left = await judge_some(core, policy, used, tries)
    if left.keys:
        report(f"{len(left.keys)} images in use could not be judged ({left.detail[:300]}); tried again")
        await core.db.write(lambda db: _left(db, core, used, left, tries))
        if tries >= PATIENT_TRIES:
            found |= {key: _unjudgeable(key, left.detail) for key in left.keys}
        else:
            used = [row for row in used if row.key not in left.keys]
    found |= await _vouched(core, used, found)
    news = await core.db.read(lambda db: _news(db, used, found))
    for row in news:
        admission = found.get(row.key, NO_POLICY)
        before = await core.db.write(lambda db, r=row, a=admission: _keep(db, core, r, a, reason))  # type: ignore[misc]
        core.changes.tell(row.id)
        is_other = before is not None and (before.answer, before.segment) != (admission.answer, admission.segment)
        if row.status in ALIVE and is_other:
            await core.policy.pod_up(row.pod)  # what admission says of it are labels that rules may select by
    for row in used:
        if row.status in ALIVE and row.key in found and actions.violates(found[row.key], row.level):
            core.spawn(actions.act(core, row.id, found[row.key], reason), f"what the policy wants of {row.name}")
    core.events.wake()
    return bool(left.keys)


async def _vouched(core: Core, used: Sequence[Used], found: Mapping[Key, Admission]) -> dict[Key, Admission]:
    """The admissions in *found* to which a publisher has something to say."""
    words: dict[tuple[str, str], Said] = {}
    changed: dict[Key, Admission] = {}
    for row in used if await freshness.follows_any(core) else ():
        tag = (row.digest, row.image)
        if tag not in words:
            words[tag] = Said()
            if await freshness.follows(core, row.image):
                with contextlib.suppress(ImageNotFound):  # by what it was called, and judged, nothing can be told
                    image = await core.db.read(lambda db, d=row.digest: imagestore.find(db, d))  # type: ignore[misc]
                    words[tag] = await said(core, row.image, image)
        if words[tag] != Said():
            changed[row.key] = with_word(core, found.get(row.key, NO_POLICY), words[tag], row.image)
    return changed


def _unjudgeable(key: Key, detail: str) -> Admission:
    return Admission("refuse", f"cannot be judged: {detail}"[:4000], digest=key[0])


def _left(db: sqlite3.Connection, core: Core, used: Sequence[Used], left: Unjudged, tries: int) -> None:
    """Tell of each container that runs and could not be judged, once in a row of tries."""
    for row in used if not tries else ():
        if row.status in ALIVE and row.key in left.keys:
            events.add(
                db, core.clock(), "container", row.id, "unjudged", project=row.project, name=row.name, image=row.image,
                digest=row.digest, reason=left.detail[:500],
            )  # fmt: skip


def _news(db: sqlite3.Connection, used: Sequence[Used], found: Mapping[Key, Admission]) -> list[Used]:
    """Those of *used* of which something else is said now than what is kept with them."""
    kept = dict(db.execute("SELECT id, admission FROM containers").fetchall())
    return [
        row
        for row in used
        if row.id in kept and tells(_ADMISSION.decode(kept[row.id])) != tells(found.get(row.key, NO_POLICY))
    ]


def in_use(db: sqlite3.Connection) -> list[Used]:
    """Every container, with the level of its pod."""
    query = (
        "SELECT c.id, c.name, c.project, c.image, c.image_digest, c.status, c.pod, "
        "coalesce(p.level, 'namespace') FROM containers c JOIN pods p ON p.id = c.pod ORDER BY c.created_at"
    )
    return [Used(*row) for row in db.execute(query)]


async def judge_all(core: Core, policy: TrustPolicy, used: Sequence[Used]) -> dict[Key, Admission]:
    """The admission of each key of *used* by *policy*. What cannot be judged is refused, with the reason."""
    found, left = await judge_some(core, policy, used, 0)
    return found | {key: _unjudgeable(key, left.detail) for key in left.keys}


async def judge_some(
    core: Core, policy: TrustPolicy, used: Sequence[Used], tries: int
) -> tuple[dict[Key, Admission], Unjudged]:
    """The admission of each key of *used* by *policy*, and what cannot be judged now. What never can is refused.

    One image may take the child down with all that it judges at once: from try to try it judges fewer at once.
    """
    from casemate.node.trust.judge_jobs import MAX_SUBJECTS  # noqa: PLC0415 - nothing of it is loaded without a policy

    keys = list(dict.fromkeys(row.key for row in used))
    found: dict[Key, Admission] = {}
    left: dict[Key, str] = {}
    subjects: list[tuple[Key, Subject]] = []
    for number, key in enumerate(keys):
        try:
            subjects.append((key, await _subject(core, policy, key, str(number))))
        except CasemateError as error:
            if is_passing(error):
                left[key] = error.detail
            else:
                found[key] = _unjudgeable(key, error.detail)
    size = max(1, MAX_SUBJECTS >> 3 * tries)
    for start in range(0, len(subjects), size):
        part = subjects[start : start + size]
        try:
            rows = {row.key: row for row in await _judged(core, policy, [subject for _, subject in part])}
        except CasemateError as error:
            if not is_passing(error):
                raise
            left |= {key: error.detail for key, _ in part}
            continue
        for key, subject in part:
            found[key] = recorded(core, key[0], (subject, rows[subject.key]))
    return found, Unjudged(frozenset(left), next(iter(left.values()), ""))


def is_passing(error: CasemateError) -> bool:
    """Whether *error* says of the child, or the host, that it failed, and nothing of the image."""
    problem = error.to_problem()
    return bool(problem.get("retryable")) or problem.get("code") == TrustChildFailed.code


async def _subject(core: Core, policy: TrustPolicy, key: Key, name: str) -> Subject:
    digest, image, project, level = key
    try:
        row = await core.db.read(lambda db: imagestore.find(db, digest))
    except ImageNotFound as error:
        raise ImageNotFound("its image was removed") from error
    return await subject_of(core, policy, row, Candidate(digest, image, project, level), name)


async def _judged(core: Core, policy: TrustPolicy, subjects: Sequence[Subject]) -> tuple[Judged, ...]:
    from casemate.node.trust.judge_jobs import JudgeJob, Judgements  # noqa: PLC0415 - as above

    job = JudgeJob(state=core.settings.text("paths.state"), policy=policy, subjects=tuple(subjects), today=today(core))
    answer = await ask(core.trust.batch, job, BATCH_S)
    assert isinstance(answer, Judgements)
    return answer.rows


def _keep(db: sqlite3.Connection, core: Core, used: Used, admission: Admission, reason: str) -> Admission | None:
    """Keep the answer with the container, and write an event, where it is another than before; the one before."""
    rows = select(db, ContainerRow, "WHERE id=?", used.id)
    if not rows:
        return None
    before = _ADMISSION.decode(rows[0].admission)
    if tells(before) == tells(admission):
        return None
    record(db, rows[0], admission)
    at = core.clock()
    does = admission.running if used.status in ALIVE and actions.violates(admission, used.level) else "nothing"
    events.add(
        db, at, "container", used.id, "judged", project=used.project, name=used.name, image=used.image,
        digest=used.digest, answer=admission.answer, was=before.answer, level=admission.level,
        segment=admission.segment, rule=admission.policy, reason=admission.reason[:500], because=reason, does=does,
    )  # fmt: skip
    audit.append(
        db, at, SELF.who, "container.judge", used.id, answer=admission.answer, name=used.name, rule=admission.policy,
        because=reason, does=does,
    )  # fmt: skip
    return before


def tells(admission: Admission) -> tuple[object, ...]:
    """What of an admission matters: another day, or a newer feed that says the same, is no news."""
    steps = tuple((step.rule, step.outcome, step.evidence) for step in admission.steps if step.outcome != "ok")
    level = admission.level or LEVELS[0]
    return admission.answer, level, admission.segment, admission.policy, admission.dry_run, steps
