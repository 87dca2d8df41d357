"""A trust policy as people write it, checked once."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from casemate.spec.errors import CasemateError
from casemate.spec.workload import Level
from casemate.trust.feed.fresh import as_date
from casemate.trust.feed.ignores import Ignore
from casemate.trust.rules.condition import Condition, compiled
from casemate.trust.signature import notation
from casemate.trust.signature.keyless import KeylessSigner, check_signer
from casemate.trust.signature.keys import load_public_key
from casemate.trust.signature.verify import MAX_SIGNERS, KeySigner, Signer

#: From the weakest to the strongest.
LEVELS: tuple[Level, ...] = ("namespace", "gvisor", "microvm")
#: What happens to a container that runs and would not be admitted so any more, from the mildest to the hardest.
Running = Literal["report", "restart", "quarantine", "stop"]
RUNNING: tuple[Running, ...] = ("report", "restart", "quarantine", "stop")
MAX_NAME_CHARS = 100
MAX_AGE_DAYS = 3650
MAX_RULES = 1000
MAX_GRADES = 64
MAX_EXCEPTIONS = 1000


_SEGMENT = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?\Z")


class PolicyInvalid(CasemateError):
    code = "trust.policy_invalid"
    status = 422
    title = "The trust policy is not valid"
    remedy = "Correct the rule that the message names."


class GradeRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*when* (CEL over the facts) holds: *then*. ``raise`` takes the least *level* and, where given, a *segment*.

    *running*: what happens to containers that run already; empty: what the rule says.
    """

    name: str
    when: str
    then: Literal["refuse", "raise", "warn"]
    level: Level = "namespace"
    segment: str = ""
    running: Literal["", "report", "restart", "quarantine", "stop"] = ""


class PredicateRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An attestation of the predicate *type* by one of the rule's signers; *when* (CEL) holds of its ``predicate``."""

    type: str
    when: str


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds for every repository that begins with *prefix* (whole parts; empty: all)."""

    name: str
    prefix: str
    signers: tuple[str, ...] = ()
    threshold: int = 1
    #: predicate types of attestations that must be there
    attestations: tuple[str, ...] = ()
    #: attestations that must be there, with a condition on what they say
    predicates: tuple[PredicateRule, ...] = ()
    #: signers whose signed OpenVEX statements settle findings; nobody's do by default
    vex: tuple[str, ...] = ()
    #: signers whose signed bills of materials add packages to those that were found in the layers
    bills: tuple[str, ...] = ()
    #: 0: no scan is asked for
    max_scan_age_days: int = 0
    max_feed_age_days: int = 0
    grades: tuple[GradeRule, ...] = ()
    floor: Level = "namespace"
    #: for containers that run already when what they are judged by changes
    running: Running = "report"
    #: the segment of a quarantine that no grade names one for
    quarantine: str = "quarantine"
    #: what would be refused or raised is admitted as it is, and told
    dry_run: bool = False


class Exception_(msgspec.Struct, frozen=True, forbid_unknown_fields=True):  # noqa: N801 - the word is the field's own
    """*rule* (a rule's or a grade's name) does not refuse *digest* until the day *until*."""

    rule: str
    digest: str
    reason: str
    owner: str
    until: str


class TrustPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*dry_run*: what would be refused or raised is admitted as it is, and the answer says so."""

    signers: tuple[Signer, ...] = ()
    rules: tuple[Rule, ...] = ()
    exceptions: tuple[Exception_, ...] = ()
    ignores: tuple[Ignore, ...] = ()
    dry_run: bool = False

    def rule_for(self, repository: str) -> Rule | None:
        """The rule with the longest prefix of *repository*, by whole parts."""
        found = [rule for rule in self.rules if covers(rule.prefix, repository)]
        return max(found, key=lambda rule: len(rule.prefix.rstrip("/")), default=None)


def covers(prefix: str, repository: str) -> bool:
    prefix = prefix.rstrip("/")
    return not prefix or repository == prefix or repository.startswith(prefix + "/")


def check_policy(policy: TrustPolicy) -> TrustPolicy:
    """*policy*, when everything in it refers to something and every condition compiles; else :class:`PolicyInvalid`."""
    names = [signer.name for signer in policy.signers]
    if len(names) != len(set(names)) or len(names) > MAX_SIGNERS:
        raise PolicyInvalid(f"the policy names {len(names)} signers: at most {MAX_SIGNERS}, each once")
    if len(policy.rules) > MAX_RULES or len(policy.exceptions) > MAX_EXCEPTIONS:
        raise PolicyInvalid(f"the policy has {len(policy.rules)} rules and {len(policy.exceptions)} exceptions")
    prefixes = [rule.prefix.rstrip("/") for rule in policy.rules]
    words = [rule.name for rule in policy.rules]
    grades = {grade.name for rule in policy.rules for grade in rule.grades}
    for what, values in (("prefix", prefixes), ("name", [*words, *grades])):
        if twice := {value for value in values if values.count(value) > 1}:
            raise PolicyInvalid(f"the {what} {sorted(twice)[0]!r} is there twice")
    for rule in policy.rules:
        _check_rule(rule, set(names))
    for exception in policy.exceptions:
        if exception.rule not in {*words, *grades} or not exception.reason.strip() or not exception.owner.strip():
            raise PolicyInvalid(
                f"the exception from {exception.rule!r} lacks a rule of that name, a reason or an owner"
            )
        as_date(exception.until, f"the exception from {exception.rule}")
    for ignore in policy.ignores:
        as_date(ignore.until, f"the ignore of {ignore.ident}")
    return policy


def check_signers(policy: TrustPolicy) -> None:
    """A key that cannot be used is found when the policy is written, not when an image is refused for it.

    Raises :class:`~casemate.trust.signature.errors.KeyInvalid`.
    """
    for signer in policy.signers:
        if isinstance(signer, KeySigner):
            load_public_key(signer.key.encode())
        elif isinstance(signer, KeylessSigner):
            check_signer(signer)
        else:
            notation.TrustStore(signer.name, signer.roots.encode())


def _check_rule(rule: Rule, signers: set[str]) -> None:
    for name in (rule.name, *(grade.name for grade in rule.grades)):
        if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable() or name == "default":
            raise PolicyInvalid(f"{name[:60]!r} is no name for a rule or a grade")
    for what, days in (("max_scan_age_days", rule.max_scan_age_days), ("max_feed_age_days", rule.max_feed_age_days)):
        if not 0 <= days <= MAX_AGE_DAYS:
            raise PolicyInvalid(f"rule {rule.name}: {what} is {days}; 0 (no bound) to {MAX_AGE_DAYS} are allowed")
    if unknown := set(rule.signers) - signers:
        raise PolicyInvalid(f"rule {rule.name}: the signer {sorted(unknown)[0]!r} is not defined")
    if len(set(rule.signers)) != len(rule.signers):
        raise PolicyInvalid(f"rule {rule.name}: a signer is there twice")
    if rule.signers and not 1 <= rule.threshold <= len(rule.signers):
        raise PolicyInvalid(
            f"rule {rule.name}: {rule.threshold} of {len(rule.signers)} signers can never be met, or is none"
        )
    for what, names in (("vex", rule.vex), ("bills", rule.bills)):
        if unknown := set(names) - signers:
            raise PolicyInvalid(f"rule {rule.name}: the signer {sorted(unknown)[0]!r} of {what} is not defined")
    if len(rule.predicates) > MAX_GRADES:
        raise PolicyInvalid(f"rule {rule.name}: {len(rule.predicates)} predicates; {MAX_GRADES} are allowed")
    for wanted in rule.predicates:
        compiled(wanted.when)
    if (rule.attestations or rule.predicates) and not rule.signers:
        raise PolicyInvalid(f"rule {rule.name}: attestations are wanted, and no signer whose word counts")
    if len(rule.grades) > MAX_GRADES:
        raise PolicyInvalid(f"rule {rule.name}: {len(rule.grades)} grades; {MAX_GRADES} are allowed")
    if len({grade.name for grade in rule.grades}) != len(rule.grades):
        raise PolicyInvalid(f"rule {rule.name}: two grades have one name")
    for segment in (rule.quarantine, *(grade.segment for grade in rule.grades)):
        if segment and not _SEGMENT.match(segment):
            raise PolicyInvalid(f"rule {rule.name}: the segment {segment[:60]!r} is not of the form of a label")
    for grade in rule.grades:
        Condition(grade.when, grade.name)
        if grade.then != "raise" and (grade.level != "namespace" or grade.segment):
            raise PolicyInvalid(f"grade {grade.name}: a level or a segment belongs to `raise`, not to `{grade.then}`")
