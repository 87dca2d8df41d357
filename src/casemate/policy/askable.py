"""Which names of the outside a pod may ask for: those that its rules let it go to. Pure.

To ask for a name is to tell it to whoever serves its domain, so a pod that may open nothing to the outside must not ask
either: data would leave by names. Where it may open something to an address outside (whatever the port, also after
a person has said so) it may ask for any name; otherwise for the names that its rules speak of.
"""

from __future__ import annotations

from casemate.policy.compile import Compiler
from casemate.policy.identity import Kind
from casemate.policy.rules import Direction, Names, Rule
from casemate.policy.verdict import Action, Verdict


def askable(compiler: Compiler, number: int) -> tuple[str, ...] | None:
    """The patterns of names that the identity *number* may ask for; None: any name."""
    for other, identity in compiler.identities.items():
        if identity.kind is not Kind.WORLD or identity.dns:
            continue
        if any(verdict < Verdict.HOLD for _, _, verdict in compiler.verdicts(number, other)):
            return None
    found: set[str] = set()
    for rule in compiler.rules_of(number, Direction.EGRESS):
        found.update(_names(rule))
    return tuple(sorted(found))


def _names(rule: Rule) -> set[str]:
    """What *rule* lets its subjects go to by name, at once or when it was referred."""
    if rule.action not in (Action.ALLOW, Action.REFER) and not rule.audit:
        return set()
    return {pattern for peer in rule.peers if isinstance(peer, Names) for pattern in peer.patterns}


def words(name: str, asked: tuple[str, ...] | None) -> str:
    """The same as a sentence about *name*, for who wants an explanation."""
    if asked is None:
        return f"names: {name} may ask the resolver for any name, since it may open something to the outside"
    if not asked:
        return f"names: {name} may ask the resolver for no name outside, since it may open nothing to the outside"
    shown = ", ".join(asked[:8]) + (f" and {len(asked) - 8} more" if len(asked) > 8 else "")
    return f"names: {name} may ask the resolver for these names outside: {shown}"
