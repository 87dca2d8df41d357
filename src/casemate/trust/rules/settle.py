"""Findings that a signed OpenVEX statement settles, and predicates that a rule puts conditions on. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from casemate.spec.errors import CasemateError
from casemate.trust.feed.match import Finding
from casemate.trust.packages.bill import CYCLONEDX, SPDX, is_bill, packages_of
from casemate.trust.packages.merge import Found, ImageContents
from casemate.trust.packages.model import Unreadable
from casemate.trust.rules.condition import ConditionInvalid, compiled
from casemate.trust.rules.model import PredicateRule, Rule
from casemate.trust.signature.statement import Statement
from casemate.trust.signature.verify import Evidence
from casemate.trust.signature.vex import PREDICATE_TYPES, SETTLED, VexStatement, statements_of


def predicate_types(rule: Rule | None) -> tuple[str, ...]:
    """Predicate types whose content :func:`decide` has to be told for *rule*."""
    if rule is None:
        return ()
    found = {row.type: None for row in rule.predicates} | (dict.fromkeys(PREDICATE_TYPES) if rule.vex else {})
    return tuple(found | (dict.fromkeys((CYCLONEDX, SPDX)) if rule.bills else {}))


def with_bills(contents: ImageContents, rule: Rule, evidence: Evidence | None) -> ImageContents:
    """*contents* with what the signers in ``rule.bills`` say is in the image, where the layers did not tell of it.

    A bill that cannot be read makes the contents not wholly known.
    """
    known = {(row.package.type, row.package.name, row.package.version) for row in contents.packages}
    more: list[Found] = []
    unreadable = list(contents.unreadable)
    for signer, statement in evidence.attestations if evidence is not None else ():
        if signer in rule.bills and is_bill(statement.predicate_type):
            try:
                more += packages_of(signer, statement.predicate_type, statement.predicate)
            except CasemateError as error:
                unreadable.append(Unreadable(f"bill of materials by {signer}", error.detail[:200]))
    fresh = [row for row in more if (row.package.type, row.package.name, row.package.version) not in known]
    if not fresh and len(unreadable) == len(contents.unreadable):
        return contents
    packages = (*contents.packages, *dict.fromkeys(fresh))
    return msgspec.structs.replace(contents, packages=packages, unreadable=tuple(unreadable))


def vex_of(rule: Rule, evidence: Evidence | None) -> tuple[list[VexStatement], list[str]]:
    """What the signers in ``rule.vex`` say of the image, and why a document of theirs does not count."""
    found: list[VexStatement] = []
    faults: list[str] = []
    for signer, statement in evidence.attestations if evidence is not None else ():
        if signer in rule.vex and statement.predicate_type in PREDICATE_TYPES:
            try:
                found += statements_of(signer, statement, evidence.digest if evidence is not None else "")
            except CasemateError as error:
                faults.append(error.detail)
    return found, faults


def settle(findings: Sequence[Finding], said: Sequence[VexStatement]) -> tuple[list[Finding], list[str]]:
    """*findings* less those that are settled, and a line for each that is.

    Where one document says "not affected" and another "affected" of the same, the finding stays.
    """
    left: list[Finding] = []
    told: list[str] = []
    for finding in findings:
        about = [row for row in said if _is_about(row, finding)]
        if about and all(row.status in SETTLED for row in about):
            row = about[0]
            told.append(f"{finding.ident} in {finding.found.package.name}: {row.status} by {row.signer}: {row.reason}")
        else:
            left.append(finding)
    return left, told


def _is_about(said: VexStatement, finding: Finding) -> bool:
    if not set(said.names) & set(finding.names):
        return False
    package = finding.found.package
    names = (package.name, package.name.replace(":", "/"), package.source)
    return not said.packages or any(
        kind == package.type and name in names and version in ("", package.version, package.source_version)
        for kind, name, version in said.packages
    )


def lacking(rule: Rule, evidence: Evidence | None) -> Iterable[tuple[PredicateRule, str]]:
    """Each predicate rule with why it is not met; empty: it is."""
    for wanted in rule.predicates:
        given = [
            statement
            for signer, statement in (evidence.attestations if evidence is not None else ())
            if signer in rule.signers and statement.predicate_type == wanted.type
        ]
        yield wanted, _unmet(wanted, given)


def _unmet(wanted: PredicateRule, given: Sequence[Statement]) -> str:
    if not given:
        return f"attestation {wanted.type} is missing"
    reasons = []
    for statement in given:
        try:
            if holds(wanted, statement.predicate):
                return ""
            reasons.append("its condition does not hold")
        except CasemateError as error:
            reasons.append(error.detail)
    return f"attestation {wanted.type}: {reasons[0]}"


def holds(wanted: PredicateRule, predicate: Any) -> bool:
    """Whether the condition of *wanted* is true of *predicate*; anything but a truth value is an error."""
    import cel  # noqa: PLC0415 - lazily

    try:
        answer = compiled(wanted.when).execute(cel.Context(variables={"predicate": predicate}))
    except Exception as error:  # the library raises ValueError, TypeError, RuntimeError by what went wrong
        raise ConditionInvalid(f"{wanted.type}: {wanted.when[:200]!r}: {error}"[:400]) from error
    if not isinstance(answer, bool):
        raise ConditionInvalid(f"{wanted.type}: {wanted.when[:200]!r} gives no true or false")
    return answer
