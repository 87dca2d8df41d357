"""Who may do what to policy: a project's own documents anyone of the API, the operator's with the grant ``policy``."""

from __future__ import annotations

from casemate.node.core import Caller
from casemate.spec.errors import GrantMissing

GRANT = "policy"


def demand(caller: Caller, what: str) -> None:
    """Raises :class:`GrantMissing` unless *caller* holds the grant for *what*."""
    if GRANT not in caller.grants():
        raise GrantMissing(
            f"{what} needs the grant {GRANT!r}, which {caller.who} does not hold",
            remedy="The administrator adds the user under grants.policy in /etc/casemate/casemate.toml.",
            grant=GRANT,
        )
