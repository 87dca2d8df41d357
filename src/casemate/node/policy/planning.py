"""The planner's long steps, in a thread: a second for 100,000 rules, in which the loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from casemate.node.policy.bulk import bulk
from casemate.policy.identity import Allocation, Endpoint
from casemate.policy.parse import Document, Policies, together
from casemate.policy.plan import Planner, Transaction
from casemate.policy.rules import RuleSet

P = ParamSpec("P")
T = TypeVar("T")


async def planner_of(rules: RuleSet, ends: list[Endpoint], allocation: Allocation) -> Planner:
    return await _in_bulk(Planner, rules, ends, allocation=allocation)


async def put_together(documents: Iterable[Document]) -> Policies:
    return await _in_bulk(together, list(documents))


async def replanned(planner: Planner, rules: RuleSet, reason: str = "policy") -> Transaction:
    """The planner's step from its rules to *rules*."""
    return await _in_bulk(planner.replace_rules, rules, reason)


async def _in_bulk(make: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    def work() -> T:
        with bulk():
            return make(*args, **kwargs)

    return await asyncio.to_thread(work)
