"""Decisions: each promise of the policy, and that whatever is missing makes the answer stricter."""

from __future__ import annotations

import random
from datetime import date
from typing import Any

import msgspec
import pytest

from casemate.trust.admission import Candidate
from casemate.trust.feed.ignores import Ignore
from casemate.trust.feed.match import Finding, Match
from casemate.trust.feed.model import Source
from casemate.trust.packages.merge import Found, ImageContents
from casemate.trust.packages.model import Distribution, Package, Unreadable
from casemate.trust.rules.condition import Condition, ConditionInvalid, Facts
from casemate.trust.rules.decide import FINDING_FIELDS, Decision, LevelTooWeak, Scan, check_level, decide, repository_of
from casemate.trust.rules.model import Exception_, GradeRule, PolicyInvalid, Rule, TrustPolicy, check_policy
from casemate.trust.signature.statement import Statement, Subject
from casemate.trust.signature.verify import Evidence, KeySigner, Verified

pytest.importorskip("cel", reason="missing: common-expression-language")

TODAY = date(2026, 11, 22)
DIGEST = "sha256:" + "ab" * 32
CANDIDATE = Candidate(DIGEST, "registry.example/team/app:1", "default", "namespace")
SLSA = "https://slsa.dev/provenance/v1"
ADA, BOB = (Verified(name, "cosign-simple") for name in ("ada", "bob"))
SIGNED = Evidence(DIGEST, (ADA,), documents=1)
CRITICAL = GradeRule("critical-fixable", "findings.exists(f, f.severity == 'critical' && f.fixable)", "refuse")
UNFIXED = GradeRule(
    "unfixed-high", "findings.exists(f, f.severity == 'high' && !f.fixable)", "raise", "microvm", "quarantine-egress"
)
UNSIGNED = GradeRule("unknown-publisher", "!signed", "raise", "gvisor")
RULE = Rule(
    "team",
    "registry.example/team",
    ("ada", "bob"),
    1,
    grades=(CRITICAL, UNFIXED, UNSIGNED),
    max_scan_age_days=7,
    max_feed_age_days=3,
)
OPEN = Rule("open", "", grades=(UNSIGNED,))
POLICY = TrustPolicy((KeySigner("ada", "pem"), KeySigner("bob", "pem")), (RULE, OPEN))


def finding(severity: Any = "critical", fixed: str = "2", ident: str = "CVE-2026-1111") -> Finding:
    return Finding(Found(Package("deb", "openssl", "1"), "var/lib/dpkg/status", 0), ident, (), severity, 98, fixed)


def scan(*findings: Finding, **changes: Any) -> Scan:
    feed = Source("debian", "debian-tracker", "2026-11-21", "sha256:0", "2026-11-21", 1, 1, 0, ("Debian:12",))
    contents = ImageContents(distribution=Distribution("debian", "12"), end_of_life="2028-06-30")
    return changed(Scan(contents, Match(findings), (feed,), "2026-11-20"), **changes)


def changed(value: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(value, **changes)


def decided(
    *,
    policy: TrustPolicy = POLICY,
    candidate: Candidate = CANDIDATE,
    evidence: Evidence | None = SIGNED,
    scanned: Scan | None = None,
) -> Decision:
    return decide(policy, candidate, evidence, scan() if scanned is None else scanned, TODAY)


def why(decision: Decision) -> str:
    return "\n".join(f"{step.rule} {step.outcome} {step.evidence}" for step in decision.steps)


def test_admitted() -> None:
    found = decided()
    assert (found.answer, found.level, found.segment, found.rule) == ("admit", "namespace", "", "team")
    assert "signed by ada" in why(found)
    assert found.grade().answer == "admit"


def test_the_longest_prefix_wins_by_whole_parts() -> None:
    assert POLICY.rule_for("registry.example/team/app") is RULE
    assert POLICY.rule_for("registry.example/teams/app") is OPEN
    assert repository_of("registry.example:5000/a/b:1@sha256:00") == "registry.example:5000/a/b"


def test_refused_by_default() -> None:
    found = decided(policy=TrustPolicy())
    assert found.answer == "refuse"
    assert "no rule covers registry.example/team/app" in found.grade().reason


def test_critical_and_fixable_is_refused_with_the_rule_s_name() -> None:
    found = decided(scanned=scan(finding()))
    assert found.answer == "refuse"
    assert "critical-fixable" in found.grade().reason
    assert decided(scanned=scan(finding(fixed=""))).answer == "admit"


def test_unfixed_high_runs_in_a_stronger_room() -> None:
    found = decided(scanned=scan(finding("high", "")))
    assert (found.answer, found.level, found.segment) == ("admit", "microvm", "quarantine-egress")
    assert found.grade().least_level == "microvm"
    assert check_level(CANDIDATE, found, asked_by_name=False) == "microvm"
    with pytest.raises(LevelTooWeak, match="rule team wants at least microvm"):
        check_level(CANDIDATE, found, asked_by_name=True)
    strong = changed(CANDIDATE, level="microvm")
    assert check_level(strong, decided(candidate=strong), asked_by_name=True) == "microvm"


def test_the_strongest_of_several_wins() -> None:
    policy = TrustPolicy(rules=(Rule("r", "", floor="gvisor", grades=(UNFIXED, UNSIGNED)),))
    assert decided(policy=policy, scanned=scan(finding("high", "")), evidence=None).level == "microvm"
    assert decided(policy=policy, evidence=None).level == "gvisor"
    assert decided(policy=policy).level == "gvisor"


def test_unknown_publisher_is_raised_where_no_signature_is_asked_for() -> None:
    other = changed(CANDIDATE, reference="elsewhere.example/x:1")
    assert decided(candidate=other, evidence=None).level == "gvisor"
    assert decided(candidate=other).level == "namespace"


def graded(when: str) -> TrustPolicy:
    return changed(POLICY, rules=(changed(RULE, grades=(GradeRule("g", when, "warn"),)),))


UNREAD = ImageContents(unreadable=(Unreadable("x.jar", "cut off"),))
STRICTER = {
    "no signatures": {"evidence": None},
    "too few signers": {"policy": changed(POLICY, rules=(changed(RULE, threshold=2),))},
    "signatures of another digest": {"evidence": changed(SIGNED, digest="sha256:" + "cd" * 32)},
    "a missing attestation": {"policy": changed(POLICY, rules=(changed(RULE, attestations=(SLSA,)),))},
    "an old scan": {"scanned": scan(matched="2026-11-01")},
    "a scan from the future": {"scanned": scan(matched="2027-11-01")},
    "a scan without a day": {"scanned": scan(matched="yesterday")},
    "an old feed": {"scanned": scan(feeds=(changed(scan().feeds[0], date="2026-11-01"),))},
    "a feed from the future": {"scanned": scan(feeds=(changed(scan().feeds[0], date="2027-11-01"),))},
    "a list that cannot be read": {"scanned": scan(contents=UNREAD)},
    "no feed for it": {"scanned": scan(match=Match((), ("Debian:12",)))},
    "a condition that fails": {"policy": graded("findings[7].score > 1.0")},
    "a condition that is no truth": {"policy": graded("size(findings)")},
}  # fmt: skip


@pytest.mark.parametrize("case", STRICTER)
def test_what_is_missing_makes_it_stricter(case: str) -> None:
    found = decided(**STRICTER[case])  # type: ignore[arg-type]
    assert found.answer == "refuse", why(found)


def test_no_scan_at_all() -> None:
    assert decide(POLICY, CANDIDATE, SIGNED, None, TODAY).answer == "refuse"


def test_an_attestation_counts_from_the_rule_s_signers_only() -> None:
    statement = Statement("https://in-toto.io/Statement/v1", SLSA, (Subject({"sha256": DIGEST[7:]}),))
    policy = changed(POLICY, rules=(changed(RULE, attestations=(SLSA,)),))
    for signer, answer in (("ada", "admit"), ("mallory", "refuse")):
        assert decided(policy=policy, evidence=changed(SIGNED, attestations=((signer, statement),))).answer == answer


def test_an_exception_holds_for_one_digest_until_its_day() -> None:
    fine = Exception_("critical-fixable", DIGEST, "migrating", "ada", "2026-11-22")
    for exception, answer in (
        (fine, "admit"),
        (changed(fine, until="2026-11-21"), "refuse"),
        (changed(fine, digest="sha256:" + "cd" * 32), "refuse"),
        (changed(fine, rule="unfixed-high"), "refuse"),
    ):
        found = decided(policy=changed(POLICY, exceptions=(exception,)), scanned=scan(finding()))
        assert found.answer == answer
    assert "excepted until 2026-11-22 by ada: migrating" in why(
        decided(policy=changed(POLICY, exceptions=(fine,)), scanned=scan(finding()))
    )


def test_ignores_and_their_warnings() -> None:
    policy = changed(
        POLICY,
        ignores=(
            Ignore("CVE-2026-1111", "not reachable", "ada", "2026-12-01"),
            Ignore("CVE-1", "x", "bob", "2026-01-01"),
        ),
    )
    found = decided(policy=policy, scanned=scan(finding()))
    assert found.answer == "admit"
    assert "CVE-1 ended" in found.warnings[0]


def test_dry_run_admits_and_says_what_would_have_been() -> None:
    found = decided(policy=changed(POLICY, dry_run=True), scanned=scan(finding()))
    assert (found.answer, found.dry_run) == ("admit", True)
    assert found.grade().reason.startswith("dry run: critical-fixable")


def test_end_of_life_and_counts_are_facts() -> None:
    for when in (
        "end_of_life",
        "counts['critical'] == 1 && worst == 'critical'",
        "distribution == 'debian 12'",
        "level == 'namespace'",
    ):
        policy = TrustPolicy(rules=(Rule("r", "", grades=(GradeRule("g", when, "refuse"),)),))
        contents = ImageContents(distribution=Distribution("debian", "12"), end_of_life="2020-01-01")
        assert decided(policy=policy, scanned=scan(finding(), contents=contents)).answer == "refuse", when


@pytest.mark.parametrize(
    "text",
    ["", "x" * 3000, "1 +", "unheard == 1", "finding.size() > 0", "import os", "findings.exists(f, ", "(" * 1000],
)
def test_conditions_that_are_refused(text: str) -> None:
    with pytest.raises(ConditionInvalid):
        Condition(text, "g")


BAD: list[TrustPolicy] = [
    TrustPolicy((KeySigner("a", ""), KeySigner("a", ""))),
    TrustPolicy(rules=(Rule("a", "x"), Rule("b", "x/"))),
    TrustPolicy(rules=(Rule("a", "x"), Rule("a", "y"))),
    TrustPolicy(rules=(Rule("a", "", ("nobody",)),)),
    TrustPolicy((KeySigner("a", ""),), (Rule("r", "", ("a", "a"), 2),)),
    TrustPolicy((KeySigner("a", ""),), (Rule("r", "", ("a",), 2),)),
    TrustPolicy((KeySigner("a", ""),), (Rule("r", "", ("a",), 0),)),
    TrustPolicy(rules=(Rule("r", "", attestations=(SLSA,)),)),
    TrustPolicy(rules=(Rule("r", "", grades=(GradeRule("g", "true", "refuse", "microvm"),)),)),
    TrustPolicy(rules=(Rule("r", "", grades=(GradeRule("g", "true", "warn"),) * 65),)),
    TrustPolicy(exceptions=(Exception_("r", DIGEST, "x", "y", "2026-12-01"),)),
    TrustPolicy(rules=(Rule("r", ""),), exceptions=(Exception_("r", DIGEST, "", "y", "2026-12-01"),)),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_policies_that_are_refused(number: int) -> None:
    with pytest.raises(PolicyInvalid):
        check_policy(BAD[number])


def test_a_policy_as_people_write_it() -> None:
    assert check_policy(POLICY) is POLICY
    assert msgspec.json.decode(msgspec.json.encode(POLICY), type=TrustPolicy) == POLICY
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"rulez":[]}', type=TrustPolicy)


CONDITIONS = (
    "findings.exists(f, f.severity == 'critical' && f.fixable)",
    "findings.all(f, f.score < 5.0)",
    "size(findings) > 3",
    "findings.filter(f, f.severity == 'high').size() >= 2",
    "findings.exists(f, 'CVE-1' in f.aliases)",
    "findings.exists_one(f, f.package == 'a')",
    "findings.exists(f, findings.exists(g, g.package == f.package && g.id != f.id))",
    "findings.exists(f, f.exploited || f.epss > 0.5)",
    "findings.map(f, f.severity).exists(s, s == 'low')",
    "counts['high'] > 1 && findings.all(f, f['type'] == 'deb')",
)


def test_leaner_findings_answer_as_whole_ones_do() -> None:
    chance = random.Random(7)
    for _ in range(60):
        found = [
            Finding(
                Found(Package("deb", chance.choice("abc"), "1"), "p", chance.randrange(3)),
                f"CVE-{chance.randrange(4)}", ("CVE-1",) * chance.randrange(2),
                chance.choice(("low", "high", "critical")), chance.randrange(100), chance.choice(("", "2")), "",
                chance.random(), chance.random() > 0.8,
            )
            for _ in range(chance.randrange(6))
        ]  # fmt: skip
        whole = {
            "counts": {"high": sum(row.severity == "high" for row in found)},
            "findings": [
                {name: list(get(row)) if name == "aliases" else get(row) for name, get in FINDING_FIELDS.items()}
                for row in found
            ],
        }
        for text in CONDITIONS:
            condition = Condition(text, "g")
            wanted = condition.holds(Facts(whole, condition.uses))
            rule = Rule("r", "", grades=(GradeRule("g", text, "warn"),))
            answer = decided(policy=TrustPolicy(rules=(rule,)), scanned=scan(*found))
            told = [step.rule for step in answer.steps if step.outcome == "warn"]
            assert (told == ["g"]) == wanted, (text, found)
            assert not [step for step in answer.steps if "cannot be answered" in step.evidence]
