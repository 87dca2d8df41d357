"""Findings as SARIF 2.1.0, which code hosts and CI systems show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from casemate.trust.feed.match import Finding, Match
from casemate.trust.feed.model import Severity

_LEVELS: dict[Severity, str] = {
    "critical": "error", "high": "error", "medium": "warning", "low": "note", "none": "none", "unknown": "warning",
}  # fmt: skip


def sarif(match: Match, findings: Sequence[Finding], digest: str, version: str) -> dict[str, Any]:
    """One run. *findings*: those of *match* that no ignore covers; *version*: of Casemate.

    Where no feed spoke of an ecosystem, the run says that it did not succeed.
    """
    rules: dict[str, dict[str, Any]] = {}
    for finding in findings:
        rules.setdefault(finding.ident, _rule(finding))
    numbers = {ident: number for number, ident in enumerate(rules)}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "Casemate", "version": version, "rules": list(rules.values())}},
                "invocations": [
                    {
                        "executionSuccessful": not match.uncovered,
                        "toolExecutionNotifications": [
                            {"level": "error", "message": {"text": f"no feed speaks of {name}"}}
                            for name in match.uncovered
                        ],
                    }
                ],
                "results": [_result(finding, numbers[finding.ident], digest) for finding in findings],
            }
        ],
    }


def _rule(finding: Finding) -> dict[str, Any]:
    properties: dict[str, Any] = {"tags": ["security", finding.severity, *finding.aliases]}
    if finding.score >= 0:
        properties["security-severity"] = f"{finding.score / 10:.1f}"
    return {
        "id": finding.ident,
        "shortDescription": {"text": finding.summary or finding.ident},
        "defaultConfiguration": {"level": _LEVELS[finding.severity]},
        "properties": properties,
    }


def _result(finding: Finding, number: int, digest: str) -> dict[str, Any]:
    package = finding.found.package
    repair = f"upgrade to {finding.fixed}" if finding.fixed else "nothing repairs it yet"
    text = f"{package.name} {package.version} ({package.type}, layer {finding.found.layer}): {repair}"
    return {
        "ruleId": finding.ident,
        "ruleIndex": number,
        "level": _LEVELS[finding.severity],
        "message": {"text": text},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": finding.found.path}}}],
        "partialFingerprints": {"casemate/v1": f"{digest} {finding.ident} {package.name} {finding.found.path}"},
    }
