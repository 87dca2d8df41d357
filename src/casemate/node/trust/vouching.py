"""What a publisher says, later, of an image that a container was made from: its tag was taken back, or means another.

Only what the publisher verifiably says counts. Metadata that ended, or cannot be verified, keeps new containers away
(:mod:`casemate.node.freshness`); a container that is there goes on, with a warning: a publisher that is away for a
week must not stop what it signed.
"""

from __future__ import annotations

import msgspec

from casemate.node import freshness, imagestore
from casemate.node.core import Core
from casemate.spec.api import Admission, AdmissionStep
from casemate.spec.errors import CasemateError
from casemate.spec.reference import ReferenceInvalid, parse_reference

#: The codes of the errors that are the publisher's word.
TAKEN_BACK = ("trust.tag_unknown", "image.digest_unpublished")


class Said(msgspec.Struct, frozen=True):
    """*step*: what the publisher signed, or that it takes it back; *warning*: why nothing is known. Both may lack."""

    step: AdmissionStep | None = None
    warning: str = ""

    @property
    def is_refusal(self) -> bool:
        return self.step is not None and self.step.outcome == "refuse"


async def said(core: Core, text: str, image: imagestore.ImageRow) -> Said:
    """What the publisher of the tag *text* says by what is kept of it; asks no network."""
    try:
        reference = parse_reference(text)
    except ReferenceInvalid:
        return Said()
    repository = f"{reference.registry}/{reference.repository}"
    pulled = await core.db.read(lambda db: imagestore.pulled_from(db, image.manifest_digest, repository))
    try:
        steps = await freshness.check(core, text, image, is_tag=pulled)
    except CasemateError as error:
        code = str(error.to_problem().get("code", error.code))
        if code in TAKEN_BACK:
            return Said(AdmissionStep("publisher", "refuse", error.detail[:600]))
        return Said(warning=f"what its publisher says cannot be told: {code}: {error.detail}"[:600])
    return Said(steps[0]) if steps else Said()


def with_word(core: Core, admission: Admission, word: Said, text: str) -> Admission:
    """*admission* with what the publisher says. Taken back: refused, and what runs is dealt with as the rule of its
    repository has it (*running*); a rule or a policy in dry run only tells. Without a policy: reported.
    """
    if word.warning:
        return msgspec.structs.replace(admission, warnings=(*admission.warnings, word.warning))
    if word.step is None:
        return admission
    steps = (word.step, *admission.steps)
    if not word.is_refusal:
        return msgspec.structs.replace(admission, steps=steps)
    policy = core.trust.policy
    running, is_dry = "report", False
    if policy is not None:
        from casemate.trust.rules.model import RUNNING  # noqa: PLC0415 - nothing of it is loaded without a policy

        rule = policy.rule_for(admission.repository) if admission.repository else None
        is_dry = policy.dry_run or (rule is not None and rule.dry_run)
        if rule is not None and not is_dry:
            running = max(rule.running, admission.running or "report", key=RUNNING.index)
    return msgspec.structs.replace(
        admission, answer=admission.answer if is_dry else "refuse", reason=word.step.evidence, steps=steps,
        running=running, dry_run=admission.dry_run or is_dry, policy=admission.policy or f"publisher of {text}"[:200],
    )  # fmt: skip
