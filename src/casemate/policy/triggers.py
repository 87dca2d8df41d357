"""Rules over flow events that put a workload in quarantine: a port scan, a forbidden first contact, a rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from casemate.policy.conditions import FACTS, Condition
from casemate.policy.errors import ConditionFailed
from casemate.policy.identity import Endpoint
from casemate.policy.rules import Workloads

#: What a trigger's condition may name, beside what it is; docs/reference/policy.md has the table too.
FLOW_FACTS: Mapping[str, str] = {
    **FACTS,
    "verdict": "string: what became of the connection: allow, audit, referred or deny",
    "rule": "string: the rule that decided",
    "ports": "int: different ports that the source aimed at in the last 10 seconds",
    "peers": "int: different addresses that the source aimed at in the last 10 seconds",
    "denied": "int: connections of the source that were refused in the last 10 seconds",
}


@dataclass(frozen=True, slots=True)
class Trigger:
    """When *condition* holds of a flow that one of *of* (None: anybody) opened, that workload is cut off.

    *for_s*: for how long (0: until it is released).
    """

    id: str
    name: str
    condition: Condition
    of: tuple[Workloads, ...] | None
    for_s: int
    reason: str

    def fires(self, source: Endpoint, facts: Mapping[str, Any]) -> bool:
        """A condition that gives no yes or no does not fire: a fault in it must not cut everybody off."""
        if self.of is not None and not any(one.matches(source) for one in self.of):
            return False
        try:
            return self.condition.holds(facts)
        except ConditionFailed:
            return False
