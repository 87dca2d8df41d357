"""Asks the child that fetches and checks."""

from __future__ import annotations

import msgspec

from casemate.image.errors import WorkerFailed
from casemate.image.jobs import Failure
from casemate.node.evidence_jobs import ANSWERS, EvidenceJob, Good
from casemate.node.warm import Warm, WarmSeveral
from casemate.spec.errors import RemoteError


async def ask(child: Warm | WarmSeveral, job: EvidenceJob, timeout_s: float) -> Good:
    """The child's answer; its problem as an error."""
    data = await child.ask(msgspec.json.encode(job), timeout_s)
    try:
        answer = ANSWERS.decode(data)
    except msgspec.MsgspecError as error:
        raise WorkerFailed(f"the evidence child wrote no answer: {error}") from error
    if isinstance(answer, Failure):
        raise RemoteError(answer.problem)
    return answer
