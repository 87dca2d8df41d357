"""What policy work refuses. Each message names the document and the path in it, the value seen, the values allowed."""

from __future__ import annotations

from casemate.spec.errors import CasemateError


class PolicyInvalid(CasemateError):
    code = "policy.invalid"
    status = 400
    title = "A policy document is not valid"
    remedy = "Correct the field that the message names; docs/reference/policy.md describes each."


class PolicyTooLarge(CasemateError):
    code = "policy.too_large"
    status = 413
    title = "A policy passes a bound"
    remedy = "Split the document, or name fewer rules, blocks or levels in it."


class ConditionInvalid(PolicyInvalid):
    code = "policy.condition_invalid"
    title = "A condition is not a bounded CEL expression over the documented facts"
    remedy = "docs/reference/policy.md lists the facts and the functions that conditions may use."


class ConditionFailed(CasemateError):
    code = "policy.condition_failed"
    status = 422
    title = "A condition gave no yes or no"
    remedy = "Guard the fact with has(), or compare values of one type."


class IdentitiesExhausted(CasemateError):
    code = "policy.identities_exhausted"
    status = 507
    title = "No identity number is free"
    remedy = "Remove workloads with label sets of their own: labels that differ for each pod make an identity each."


class WallBreached(CasemateError):
    code = "policy.wall_breached"
    status = 403
    title = "A conflict-of-interest wall forbids this"
    remedy = "An officer releases the workload, with a reason, or another workload that has no history does the work."
