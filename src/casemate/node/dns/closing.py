"""What the rules in force leave each pod to ask the resolver for: see :mod:`casemate.policy.askable`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from casemate.node.directory import Entry
from casemate.node.policy.state import Policy
from casemate.policy.plan import Planner
from casemate.policy.rules import RuleSet

#: Pods that are looked at between two turns of the loop.
_TURN = 500
#: Of the patterns of one pod: who has more may ask for any name.
MAX_PATTERN_BYTES = 64 << 10


class Closing:
    """*pods*: by address, the patterns of names that each pod may ask for, of those who may not ask for any."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.pods: dict[str, tuple[str, ...]] = {}
        #: By identity, under these rules of this planner.
        self._known: dict[int, tuple[str, ...] | None] = {}
        self._of: tuple[RuleSet | None, Planner | None] = None, None

    async def look(self, entries: Iterable[Entry]) -> None:
        """All pods anew."""
        found: dict[str, tuple[str, ...]] = {}
        for count, entry in enumerate(list(entries)):
            self._add(entry, found)
            if count % _TURN == _TURN - 1:
                await asyncio.sleep(0)
        self.pods = found

    def one(self, old: Entry | None, new: Entry | None) -> None:
        """A pod came, went, or is another now."""
        if old is not None:
            self.pods.pop(old.address, None)
        if new is not None:
            self._add(new, self.pods)

    def _add(self, entry: Entry, to: dict[str, tuple[str, ...]]) -> None:
        policy = self._policy
        if not policy.active or policy.planner is None:
            return
        if self._of[0] is not policy.rules or self._of[1] is not policy.planner:
            self._known, self._of = {}, (policy.rules, policy.planner)
        number = policy.number(entry.pod)
        if not number:
            # Policy knows a pod before its link comes up.
            return
        if number not in self._known:
            names = policy.askable(number)
            too_many = names is not None and sum(map(len, names)) + 5 * len(names) > MAX_PATTERN_BYTES
            self._known[number] = None if too_many else names
        names = self._known[number]
        if names is not None:
            to[entry.address] = names
