"""Verdicts, and which of two holds."""

from __future__ import annotations

from enum import IntEnum


class Verdict(IntEnum):
    """What becomes of a connection; the larger is the stricter, and the stricter of both sides holds.

    AUDIT passes, and is recorded as what would have been denied or referred; never as ALLOW. HOLD is laid over a
    pod while it starts anew; no rule asks for it.
    """

    ALLOW = 0
    AUDIT = 1
    REFER = 2
    HOLD = 3
    DENY = 4

    @property
    def word(self) -> str:
        return self.name.lower()


class Action(IntEnum):
    """What a rule does with what it matches. PASS leaves the rest of the rule's own tier out."""

    ALLOW = 0
    REFER = 1
    DENY = 2
    PASS = 3


VERDICT_OF = {Action.ALLOW: Verdict.ALLOW, Action.REFER: Verdict.REFER, Action.DENY: Verdict.DENY}
