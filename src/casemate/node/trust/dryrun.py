"""What documents would change among the containers that are there, if they were applied. Nothing is changed."""

from __future__ import annotations

from casemate.node.core import Core
from casemate.node.rows import ALIVE
from casemate.node.trust import actions, policies
from casemate.node.trust.rematch import NO_POLICY, Used, in_use, judge_all, tells
from casemate.spec.api import Admission
from casemate.spec.api.trust import TrustChange, TrustDryRun, TrustPolicyText


async def dry_run(core: Core, text: TrustPolicyText) -> TrustDryRun:
    """Both policies, the one in force and the one with *text*, are asked about every container as it is now."""
    _, whole = await policies.read(core, text, await policies.stored(core))
    used = await core.db.read(in_use)
    now = await judge_all(core, core.trust.policy, used) if core.trust.policy is not None else {}
    then = await judge_all(core, whole, used)
    changes = [
        change(row, now.get(row.key, NO_POLICY), then[row.key])
        for row in used
        if tells(now.get(row.key, NO_POLICY)) != tells(then[row.key])
    ]
    return TrustDryRun(len(used), tuple(changes))


def change(row: Used, now: Admission, then: Admission) -> TrustChange:
    does = "nothing"
    if row.status in ALIVE and actions.violates(then, row.level):
        does = then.running or "report"
    return TrustChange(
        container=row.id, name=row.name, image=row.image, status=row.status, answer=now.answer,
        answer_then=then.answer, level=now.level, level_then=then.level, segment=now.segment,
        segment_then=then.segment, rule_then=then.policy, reason_then=then.reason[:2000],
        does=does,  # type: ignore[arg-type]  # the words of the Literal
    )  # fmt: skip
