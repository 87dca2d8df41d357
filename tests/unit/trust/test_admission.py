"""Admission: today's admitter, and one that refuses."""

from __future__ import annotations

import pytest

from casemate.trust.admission import AdmissionRefused, Candidate, Grade, admit, no_policy

CANDIDATE = Candidate("sha256:" + "0" * 64, "debian:12", "default", "namespace")


def test_without_a_policy_everything_is_admitted_and_says_so() -> None:
    assert admit(no_policy, CANDIDATE) == Grade("admit", "no policy")


def test_a_refusal_is_an_error_with_its_reason() -> None:
    with pytest.raises(AdmissionRefused, match="not signed") as error:
        admit(lambda _: Grade("refuse", "not signed", "prod"), CANDIDATE)
    problem = error.value.to_problem()
    assert (problem["code"], problem["status"]) == ("trust.refused", 403)
    assert error.value.facts["policy"] == "prod"
