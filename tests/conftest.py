"""For every test: tests marked ``root`` are skipped without root, and skips are counted by what is missing.

No property test fails because the machine was busy: how long an example takes, or is looked for, is no assertion.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("casemate", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("casemate")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="missing: root"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which capability kept how many tests from running here; nothing when all ran."""
    reasons = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    if not reasons:
        return
    terminalreporter.section("not run here")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:5}  {reason}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    longrepr = report.longrepr
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return text.removeprefix("Skipped: ")
