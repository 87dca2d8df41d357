"""The doctor's lines on flow records and the resolver."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from casemate.node import watched
from casemate.node.dns.wire import Counters
from casemate.spec.api.flows import FlowCounters
from casemate.spec.settings import Settings


def node(
    flows: FlowCounters, *, working: bool = True, enabled: bool = True, counters: Counters | None = None,
    operators: tuple[str, ...] = (),
) -> Any:  # fmt: skip
    names = SimpleNamespace(working=working, enabled=enabled, counters=counters or Counters(queries=5))
    core = SimpleNamespace(settings=Settings({"projects.operators": operators}))
    return SimpleNamespace(flows=SimpleNamespace(counters=lambda: flows), names=names, core=core)


@pytest.mark.parametrize(
    ("flows", "severity", "word"),
    [
        (FlowCounters(True, 10, recorded=3), "ok", "none lost"),
        (FlowCounters(True, 10, recorded=3, overruns=2), "note", "2 overruns"),
        (FlowCounters(False, 10), "warning", "nobody"),
        (FlowCounters(False, 0), "note", "flows.records is 0"),
    ],
)
def test_flows(flows: FlowCounters, severity: str, word: str) -> None:
    line = watched.findings(node(flows))[0]
    assert (line.check, line.severity) == ("flows", severity)
    assert word in line.detail


@pytest.mark.parametrize(
    ("more", "severity"),
    [
        ({}, "ok"),
        ({"working": False}, "warning"),
        ({"working": False, "enabled": False}, "note"),
        ({"counters": Counters(queries=100, forwarded=20, failed=19)}, "warning"),
        ({"counters": Counters(queries=100, forwarded=20, failed=2)}, "ok"),
    ],
)
def test_names(more: dict[str, Any], severity: str) -> None:
    line = watched.findings(node(FlowCounters(True, 10), **more))[1]
    assert (line.check, line.severity) == ("names", severity)


def test_operators_that_nobody_is() -> None:
    """They open nothing, and somebody waits for it."""
    assert len(watched.findings(node(FlowCounters(True, 10), operators=("a=root", "a=@root", "a=tls:x")))) == 2
    line = watched.findings(node(FlowCounters(True, 10), operators=("a=root", "a=no-such-user")))[2]
    assert (line.check, line.severity) == ("operators", "warning")
    assert "a=no-such-user" in line.detail
