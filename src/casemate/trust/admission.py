"""Admission: the step between "resolved to a digest" and "run". Pure; no I/O.

Every start of a new container asks an :class:`Admitter` about the image, by digest. Today's knows no policy: it
admits, and says so; what it answered is kept with the container and shown by ``inspect``. Signatures, known
vulnerabilities and rules bring other admitters, which may also refuse, or raise the isolation level.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from casemate.spec.errors import PermissionDenied
from casemate.spec.workload import Level


class AdmissionRefused(PermissionDenied):
    code = "trust.refused"
    title = "Policy does not admit the image"
    remedy = "The reason names the rule; another image, or the rule's owner, helps."


class LevelTooWeak(PermissionDenied):
    code = "trust.level_too_weak"
    status = 403
    title = "Policy wants a stronger isolation level for this image"
    remedy = "Leave `--isolation` out, or name the level that the message gives."


class Candidate(msgspec.Struct, frozen=True):
    """What wants to run: the image by digest, as it was named, for whom, and at which level."""

    digest: str
    reference: str
    project: str
    level: Level


class Grade(msgspec.Struct, frozen=True):
    """The answer: *admit* or *refuse*, the reason as a person reads it, the policy, and the least level."""

    answer: Literal["admit", "refuse"]
    reason: str
    policy: str = ""
    least_level: Level = "namespace"


class Admitter(Protocol):
    """Whoever decides. Must be pure: the same candidate and policy give the same grade."""

    def __call__(self, candidate: Candidate) -> Grade:
        """The grade of *candidate*; refusing is a grade, not an exception."""
        ...


def no_policy(candidate: Candidate) -> Grade:  # noqa: ARG001 - an admitter is asked about each candidate alike
    """Today's admitter: there is no policy, so everything that was resolved to a digest may run."""
    return Grade("admit", "no policy")


def admit(admitter: Admitter, candidate: Candidate) -> Grade:
    """The grade that *admitter* gives; raises :class:`AdmissionRefused` when it refuses."""
    grade = admitter(candidate)
    if grade.answer == "refuse":
        raise AdmissionRefused(
            f"{candidate.reference} ({candidate.digest}): {grade.reason}", policy=grade.policy, digest=candidate.digest
        )
    return grade
