"""Which grants the settings give to a user of this host, by name, by number, or by a group.

hostd asks it of the person behind a descriptor before it uses a privilege; casemated asks it before it lets a person
into a container that was given one.
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Sequence

from casemate.spec.settings import Settings

GRANTS = (
    "host_paths",
    "devices",
    "capabilities",
    "host_namespaces",
    "privileged",
    "policy",
    "metrics",
    "trust",
)


def granted(uid: int, gid: int, groups: Sequence[int], settings: Settings) -> frozenset[str]:
    """What the settings give to a user: named by name or number, or by a group as ``@name``."""
    if uid == 0:
        return frozenset(GRANTS)
    return frozenset(
        grant
        for grant in GRANTS
        if any(_is_named(entry, uid, {gid, *groups}) for entry in settings.texts(f"grants.{grant}"))
    )


def _is_named(entry: str, uid: int, gids: set[int]) -> bool:
    name = entry.removeprefix("@")
    try:
        if entry.startswith("@"):
            return (int(name) if name.isdigit() else grp.getgrnam(name).gr_gid) in gids
        return (int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid) == uid
    except KeyError:
        return False
