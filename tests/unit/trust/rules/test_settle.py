"""Signed VEX settles findings, and conditions on predicates are met or refuse; only by signers that the rule names."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

pytest.importorskip("cel", reason="missing: common-expression-language")
pytest.importorskip("cryptography", reason="missing: cryptography")

from casemate.trust.admission import Candidate
from casemate.trust.feed.match import Finding, Match
from casemate.trust.packages.merge import Found, ImageContents
from casemate.trust.packages.model import Package
from casemate.trust.rules.condition import ConditionInvalid
from casemate.trust.rules.decide import Decision, Scan, decide
from casemate.trust.rules.model import GradeRule, PolicyInvalid, PredicateRule, Rule, TrustPolicy, check_policy
from casemate.trust.signature.errors import SignatureInvalid
from casemate.trust.signature.statement import Statement
from casemate.trust.signature.verify import Evidence, KeySigner, Verified
from casemate.trust.signature.vex import statements_of

TODAY = date(2026, 11, 22)
DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32
VEX = "https://openvex.dev/ns"
PROVENANCE = "https://slsa.dev/provenance/v1"
OPENSSL = Package("deb", "libssl3", "3.0.11-1", source="openssl", source_version="3.0.11-1")


def finding(ident: str = "CVE-2026-1") -> Finding:
    return Finding(Found(OPENSSL, "var/lib/dpkg/status", 0), ident, severity="critical")


def said(status: str, *products: Any, name: str = "CVE-2026-1", **more: Any) -> dict[str, Any]:
    row = {"vulnerability": {"name": name}, "status": status, "products": list(products), **more}
    return {"statements": [row]}


def attested(predicate: Any, kind: str = VEX, signer: str = "team") -> tuple[str, Statement]:
    return signer, Statement("https://in-toto.io/Statement/v1", kind, (), predicate)


def judged(*attestations: tuple[str, Statement], **more: Any) -> Decision:
    rule = Rule("app", "registry.example", ("team",), vex=("team",), grades=(
        GradeRule("critical", "findings.exists(f, f.severity == 'critical')", "refuse"),), **more)  # fmt: skip
    policy = check_policy(TrustPolicy((KeySigner("team", "x"), KeySigner("other", "y")), (rule,)))
    evidence = Evidence(DIGEST, (Verified("team", "cosign-bundle"),), (), 1, attestations)
    contents = ImageContents((Found(OPENSSL, "var/lib/dpkg/status", 0),))
    scan = Scan(contents, Match((finding(),)), (), "2026-11-22")
    return decide(policy, Candidate(DIGEST, "registry.example/app:1", "default", "namespace"), evidence, scan, TODAY)


WHY = {"justification": "vulnerable_code_not_present"}


def refused_by(decision: Decision) -> list[str]:
    return [step.rule for step in decision.steps if step.outcome == "refuse" and "no feed" not in step.evidence
            and "there is no feed" not in step.evidence]  # fmt: skip


@pytest.mark.parametrize(
    ("predicate", "settles"),
    [
        (said("not_affected", **WHY), True),
        (said("not_affected", f"pkg:oci/app@{DIGEST}", **WHY), True),
        (said("not_affected", {"@id": "app", "hashes": {"sha-256": "ab" * 32}}, **WHY), True),
        (said("not_affected", {"@id": f"pkg:oci/app@{DIGEST}", "subcomponents": [{"@id": "pkg:deb/debian/openssl"}]},
              **WHY), True),
        (said("fixed", "pkg:deb/debian/libssl3@3.0.11-1"), True),
        (said("not_affected"), False),  # without a reason
        (said("not_affected", f"pkg:oci/app@{OTHER}", **WHY), False),
        (said("not_affected", "registry.example/app:1", **WHY), False),  # a name is anybody's
        (said("not_affected", "pkg:deb/debian/zlib1g", **WHY), False),
        (said("fixed", "pkg:deb/debian/libssl3@3.0.13"), False),
        (said("affected"), False),
        (said("under_investigation"), False),
        (said("not_affected", name="CVE-2026-2", **WHY), False),
    ],
)  # fmt: skip
def test_what_a_signed_statement_settles(predicate: Any, settles: bool) -> None:
    decision = judged(attested(predicate))
    assert refused_by(decision) == ([] if settles else ["critical"])
    assert any("settled by signed VEX" in step.evidence for step in decision.steps) == settles


def test_vex_by_another_signer_and_contradictions_settle_nothing() -> None:
    good = said("not_affected", **WHY)
    assert refused_by(judged(attested(good, signer="other"))) == ["critical"]
    assert refused_by(judged(attested(good), attested(said("affected")))) == ["critical"]
    assert refused_by(judged()) == ["critical"]


@pytest.mark.parametrize("predicate", [None, [], {"statements": 1}, {"statements": [{"status": "fine"}]},
                                       {"statements": [said("fixed")["statements"][0]] * 20_001},
                                       said("fixed", *["pkg:deb/debian/x"] * 1001)])  # fmt: skip
def test_documents_that_are_none_settle_nothing_and_are_told(predicate: Any) -> None:
    with pytest.raises(SignatureInvalid):
        statements_of("team", attested(predicate)[1], DIGEST)
    decision = judged(attested(predicate))
    assert refused_by(decision) == ["critical"]
    assert any("OpenVEX" in line for line in decision.warnings)


def test_a_condition_on_a_predicate() -> None:
    wanted = (PredicateRule(PROVENANCE, "predicate.buildDefinition.buildType == 'https://ci.example/v1'"),)
    settled = attested(said("not_affected", **WHY))
    good = attested({"buildDefinition": {"buildType": "https://ci.example/v1"}}, PROVENANCE)
    bad = attested({"buildDefinition": {"buildType": "somewhere"}}, PROVENANCE)
    empty = attested({}, PROVENANCE)
    stranger = attested(good[1].predicate, PROVENANCE, "other")
    assert refused_by(judged(settled, good, predicates=wanted)) == []
    assert refused_by(judged(settled, bad, good, predicates=wanted)) == []
    for given in ((bad,), (empty,), (stranger,), ()):
        assert refused_by(judged(settled, *given, predicates=wanted)) == ["app"]


def test_conditions_that_cannot_be_read_are_found_with_the_policy() -> None:
    for text in ("predicate.", "findings == 1", "", "x" * 3000):
        rule = Rule("app", "a", ("team",), predicates=(PredicateRule(PROVENANCE, text),))
        with pytest.raises(ConditionInvalid):
            check_policy(TrustPolicy((KeySigner("team", "x"),), (rule,)))
    for rule in (Rule("app", "a", vex=("nobody",)), Rule("app", "a", predicates=(PredicateRule(PROVENANCE, "true"),))):
        with pytest.raises(PolicyInvalid):
            check_policy(TrustPolicy((KeySigner("team", "x"),), (rule,)))
