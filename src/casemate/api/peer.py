"""Who is at the other end of an API connection.

On the unix socket the kernel says so (SO_PEERCRED, SO_PEERGROUPS), once, when the connection is made; the accepted
socket itself is what hostd wants to see before it uses a grant. Over TLS the client certificate's subject is the
name, and there is no socket to pass on, so nothing that needs a grant is allowed.
"""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import socket
from collections.abc import Callable
from dataclasses import dataclass

from casemate.host.granted import granted
from casemate.host.operators import projects_of_client, projects_of_user
from casemate.host.peer import peer_of
from casemate.node.core import Caller
from casemate.spec.settings import Settings


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end. *uid* None: a TLS client. *name* is for the audit log. *auditor*: may read the audit log.

    *projects*: those that are open to it; None: all.
    """

    name: str
    uid: int | None
    allowed: bool
    auditor: bool
    connection: object = None
    grants: Callable[[], frozenset[str]] = frozenset
    projects: frozenset[str] | None = None

    def caller(self) -> Caller:
        """This peer as the node knows callers."""
        who = f"{self.uid}:{self.name}" if self.uid is not None else f"tls:{self.name}"
        return Caller(who, self.uid, self._descriptor, self.grants, self.projects)

    def _descriptor(self) -> int:
        fileno = getattr(self.connection, "fileno", None)
        return int(fileno()) if fileno is not None else -1


def of_transport(transport: asyncio.BaseTransport, settings: Settings) -> Peer:
    """The peer of an accepted connection."""
    tls = transport.get_extra_info("ssl_object")
    if tls is not None:
        name = _subject(tls.getpeercert() or {})
        return Peer(name, None, allowed=True, auditor=False, projects=projects_of_client(name, settings))
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family != socket.AF_UNIX:
        return Peer("unknown", None, allowed=False, auditor=False)
    seen = peer_of(connection)
    groups = {seen.gid, *seen.groups}
    allowed = seen.uid in (0, os.geteuid()) or _group_id(settings.text("daemon.group")) in groups
    auditor = seen.uid in (0, os.geteuid())
    return Peer(
        _user_name(seen.uid), seen.uid, allowed, auditor, connection=connection,
        grants=lambda: granted(seen.uid, seen.gid, seen.groups, settings),
        projects=None if auditor else projects_of_user(seen.uid, seen.gid, seen.groups, settings),
    )  # fmt: skip


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "?"


def _group_id(name: str) -> int:
    """The group's number; -1, which nobody has, when it is not there."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return -1


def _subject(certificate: dict[str, object]) -> str:
    """The name in a client certificate: its first SAN, else its CN; printable and bounded."""
    names: list[str] = []
    for kind, value in certificate.get("subjectAltName", ()):  # type: ignore[attr-defined]
        if kind in ("DNS", "email", "URI"):
            names.append(str(value))
    for part in certificate.get("subject", ()):  # type: ignore[attr-defined]
        names += [str(value) for key, value in part if key == "commonName"]
    name = names[0] if names else "unnamed"
    return "".join(char if char.isprintable() else "?" for char in name)[:200]
