"""Findings as SARIF 2.1.0, which code hosts and CI systems show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from casemate.trust.feed.match import Finding
from casemate.trust.feed.model import Severity

_LEVELS: dict[Severity, str] = {
    "critical": "error", "high": "error", "medium": "warning", "low": "note", "none": "none", "unknown": "warning",
}  # fmt: skip


def sarif(findings: Sequence[Finding], gaps: Sequence[str], digest: str, version: str) -> dict[str, Any]:
    """One run. *findings*: those that no ignore covers; *version*: of Casemate.

    *gaps*: why the answer is not whole (no feed, an old one, a list that cannot be read): the run did not succeed then.
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
                        "executionSuccessful": not gaps,
                        "toolExecutionNotifications": [{"level": "error", "message": {"text": gap}} for gap in gaps],
                    }
                ],
                "results": [_result(finding, numbers[finding.ident], digest) for finding in findings],
            }
        ],
    }


def _rule(finding: Finding) -> dict[str, Any]:
    properties: dict[str, Any] = {"tags": list(dict.fromkeys(("security", finding.severity, *finding.aliases)))}
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
    uri = quote(finding.found.path)  # SARIF 3.4.3: a URI reference (RFC 3986), not a path
    repair = f"upgrade to {finding.fixed}" if finding.fixed else "nothing repairs it yet"
    text = f"{package.name} {package.version} ({package.type}, layer {finding.found.layer}): {repair}"
    return {
        "ruleId": finding.ident,
        "ruleIndex": number,
        "level": _LEVELS[finding.severity],
        "message": {"text": text},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": uri}}}],
        "partialFingerprints": {"casemate/v1": f"{digest} {finding.ident} {package.name} {finding.found.path}"},
    }
