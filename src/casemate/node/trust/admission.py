"""Admission at work: which repository an image is of, who signed it, what is in it; the child decides.

One digest goes through all of it: what was resolved is verified, scanned, judged, run and recorded.
"""

from __future__ import annotations

import sqlite3

import msgspec

from casemate.image.jobs import Failure
from casemate.node import imagestore
from casemate.node.clock import rfc3339
from casemate.node.core import Core
from casemate.node.signatures import signature_evidence
from casemate.node.trust.jobs import TrustChildFailed
from casemate.node.trust.scans import complete, today
from casemate.node.warm import Warm
from casemate.spec.api import Admission, AdmissionStep
from casemate.spec.errors import RemoteError
from casemate.spec.reference import ReferenceInvalid, parse_reference
from casemate.spec.workload import LEVELS, Level
from casemate.trust.admission import AdmissionRefused, Candidate, LevelTooWeak

#: The label that says where admission wants a container; only Casemate sets it.
SEGMENT_LABEL = "casemate/segment"
#: How the names of Casemate's own labels begin.
OWN = "casemate/"
#: Images that were imported, loaded or built here, and so come from no registry.
LOCAL = "local"
#: A decision takes milliseconds; the first of a child loads its libraries.
JUDGE_S = 60.0
TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.node.trust.judge_jobs import Answer, Job, Judged, Subject
    from casemate.trust.rules.model import Rule, TrustPolicy
    from casemate.trust.signature.verify import Evidence


async def ask(child: Warm, job: Job, timeout_s: float = JUDGE_S) -> Answer:
    """The child's answer; its problem as an error."""
    from casemate.node.trust.judge_jobs import ANSWERS  # noqa: PLC0415 - nothing of it is loaded without a policy

    data = await child.ask(msgspec.json.encode(job), timeout_s)
    try:
        answer = ANSWERS.decode(data)
    except msgspec.MsgspecError as error:
        raise TrustChildFailed(f"the judging child wrote no answer: {error}") from error
    if isinstance(answer, Failure):
        raise RemoteError(answer.problem)
    return answer


def origin(db: sqlite3.Connection, row: imagestore.ImageRow, text: str) -> str:
    """The reference by which rules are chosen for the image *row*, named by *text*.

    It is the name that was asked for only where the image was pulled from there: a local tag is anybody's word. Else
    it is where it was pulled from last, or ``local/NAME`` for what came from no registry.
    """
    query = "SELECT repository FROM image_origins WHERE manifest_digest=? ORDER BY at DESC, repository"
    pulled = [repository for (repository,) in db.execute(query, (row.manifest_digest,))]
    try:
        reference = parse_reference(text)
        asked, tag = f"{reference.registry}/{reference.repository}", reference.tag
    except ReferenceInvalid:
        asked, tag = "", None
    if asked in pulled:
        return f"{asked}:{tag}" if tag else f"{asked}@{row.manifest_digest}"
    if pulled:
        return f"{pulled[0]}@{row.manifest_digest}"
    names = imagestore.names_of(db, row.manifest_digest)
    if names and f"{asked}:{tag}" not in names:
        reference = parse_reference(names[0])
        asked = f"{reference.registry}/{reference.repository}"
    return f"{LOCAL}/{asked or 'unnamed'}@{row.manifest_digest}"


async def decide(
    core: Core, row: imagestore.ImageRow, candidate: Candidate, *, asked_by_name: bool
) -> tuple[Admission, Level]:
    """The admission of a stored image that wants to run as *candidate*, and the level to run it at.

    Raises :class:`AdmissionRefused`, :class:`LevelTooWeak` (a level that was asked for by name and is too weak), and
    what keeps it from being judged.
    """
    admission = await consider(core, row, candidate)
    return admission, enforced(admission, candidate, asked_by_name=asked_by_name)


async def consider(core: Core, row: imagestore.ImageRow, candidate: Candidate) -> Admission:
    """What admission says, whatever it is; with the evidence, as it is kept with a container."""
    if core.trust.policy is None:
        grade = core.admitter(candidate)
        return Admission(grade.answer, grade.reason, grade.policy, level=grade.least_level)
    return recorded(core, row.manifest_digest, await judged(core, row, candidate))


def enforced(admission: Admission, candidate: Candidate, *, asked_by_name: bool) -> Level:
    """The level to run at, not below the one asked for. Raises :class:`AdmissionRefused` and :class:`LevelTooWeak`."""
    if admission.answer != "admit":
        raise AdmissionRefused(
            f"{candidate.reference} ({candidate.digest}): {admission.reason}"[:4000],
            remedy=f"`casemate trust why {candidate.reference}` shows each step; the rule is {admission.policy}.",
            policy=admission.policy, digest=candidate.digest,
        )  # fmt: skip
    by_name: dict[str, Level] = {level: level for level in LEVELS}
    least = by_name.get(admission.level, LEVELS[-1])
    if LEVELS.index(candidate.level) >= LEVELS.index(least):
        return candidate.level
    if asked_by_name:
        raise LevelTooWeak(
            f"{candidate.reference}: rule {admission.policy} wants at least {least}, not {candidate.level}: "
            f"{admission.reason}"[:2000],
            rule=admission.policy, level=least,
        )  # fmt: skip
    return least


async def judged(core: Core, row: imagestore.ImageRow, candidate: Candidate) -> tuple[Subject, Judged]:
    """What was judged and what came out, whatever it is. There must be a policy."""
    from casemate.node.trust.judge_jobs import JudgeJob, Judgements  # noqa: PLC0415 - as above

    policy = core.trust.policy
    assert policy is not None
    subject = await subject_of(core, policy, row, candidate)
    job = JudgeJob(state=core.settings.text("paths.state"), policy=policy, subjects=(subject,), today=today(core))
    answer = await ask(core.trust.judge, job)
    assert isinstance(answer, Judgements)
    (found,) = answer.rows
    if found.knowledge.missing:
        # Its list was damaged: made anew, once.
        await complete(core, row.the_record(), also=found.knowledge.missing)
        answer = await ask(core.trust.judge, job)
        assert isinstance(answer, Judgements)
        (found,) = answer.rows
    return subject, found


async def subject_of(
    core: Core, policy: TrustPolicy, row: imagestore.ImageRow, candidate: Candidate, key: str = ""
) -> Subject:
    """What the child has to be told of an image: who signed it and which layers it has, where the rule asks."""
    from casemate.node.trust.judge_jobs import Subject  # noqa: PLC0415 - as above
    from casemate.trust.rules.decide import needs, repository_of  # noqa: PLC0415 - as above

    record = row.the_record()
    name = await core.db.read(lambda db: origin(db, row, candidate.reference))
    wanted = needs(policy.rule_for(repository_of(name)))
    evidence = await _evidence(core, policy, name, row.manifest_digest) if wanted.signatures else None
    if wanted.contents:
        await complete(core, record)
    layers = tuple(layer.diff_id for layer in record.layers) if wanted.contents else ()
    return Subject(key, msgspec.structs.replace(candidate, reference=name), layers, evidence)


async def said_of(core: Core, text: str) -> tuple[Rule | None, Evidence | None]:
    """The rule for the image that *text* names, and what the policy's signers say of it; for a scan."""
    policy = core.trust.policy
    if policy is None:
        return None, None
    from casemate.trust.rules.decide import repository_of  # noqa: PLC0415 - as above

    row = await core.db.read(lambda db: imagestore.find(db, text))
    name = await core.db.read(lambda db: origin(db, row, text))
    return policy.rule_for(repository_of(name)), await _evidence(core, policy, name, row.manifest_digest)


async def _evidence(core: Core, policy: TrustPolicy, name: str, digest: str) -> Evidence:
    """Who signed, by the policy's signers; of an image that no registry gave, nobody."""
    from casemate.trust.signature.verify import Evidence  # noqa: PLC0415 - as above

    if name.startswith(f"{LOCAL}/") or not policy.signers:
        return Evidence(digest)
    from casemate.trust.rules.decide import repository_of  # noqa: PLC0415 - as above
    from casemate.trust.rules.settle import predicate_types  # noqa: PLC0415 - as above

    predicates = predicate_types(policy.rule_for(repository_of(name)))
    return await signature_evidence(core, name, digest, policy.signers, predicates)


def recorded(core: Core, digest: str, found: tuple[Subject, Judged]) -> Admission:
    """The decision with its evidence, as it is kept with a container."""
    from casemate.trust.rules.decide import repository_of  # noqa: PLC0415 - as above

    subject, answer = found
    decision, knowledge = answer.decision, answer.knowledge
    grade = decision.grade()
    return Admission(
        answer=decision.answer, reason=grade.reason[:4000], policy=decision.rule, at=rfc3339(core.clock()),
        digest=digest, repository=repository_of(subject.candidate.reference), level=decision.level,
        segment=decision.segment, running=decision.running, quarantine=decision.quarantine, dry_run=decision.dry_run,
        steps=tuple(AdmissionStep(step.rule, step.outcome, step.evidence) for step in decision.steps),
        warnings=decision.warnings, signers=tuple(sorted(subject.evidence.signers)) if subject.evidence else (),
        packages=knowledge.packages, counts=knowledge.counts, distribution=knowledge.distribution,
        feeds=knowledge.feeds,
    )  # fmt: skip


def own_labels(labels: dict[str, str], admission: Admission) -> dict[str, str]:
    """The labels of a new container: none of Casemate's own that a user or an image's author set."""
    return with_segment({key: value for key, value in labels.items() if not key.startswith(OWN)}, admission)


def with_segment(labels: dict[str, str], admission: Admission) -> dict[str, str]:
    """*labels* with the one that says where the container has to run, as *admission* has it."""
    found = {key: value for key, value in labels.items() if key != SEGMENT_LABEL}
    return found | {SEGMENT_LABEL: admission.segment} if admission.segment else found
