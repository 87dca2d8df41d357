"""What was decided, and by which rule."""

from __future__ import annotations

from dataclasses import dataclass

from casemate.policy.verdict import Verdict

#: Names in place of a rule's id: the side belongs to no pod; the rule set's default decided.
UNGOVERNED = "(outside)"
DEFAULT_RULE = "(default)"


@dataclass(frozen=True, slots=True)
class Side:
    """One end's answer; *rule* is the id of the rule that gave it (for AUDIT: that would have forbidden it)."""

    verdict: Verdict
    rule: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Both ends' answers: the opener's egress and the other's ingress. The stricter holds."""

    egress: Side
    ingress: Side

    @property
    def verdict(self) -> Verdict:
        return max(self.egress.verdict, self.ingress.verdict)

    @property
    def rule(self) -> str:
        """The rule that decided: of the stricter side; where both say the same, egress, unless that is a default."""
        if self.egress.verdict != self.ingress.verdict:
            return (self.egress if self.egress.verdict > self.ingress.verdict else self.ingress).rule
        unnamed = (UNGOVERNED, DEFAULT_RULE)
        if self.egress.rule in unnamed and self.ingress.rule != UNGOVERNED:
            return self.ingress.rule
        return self.egress.rule
