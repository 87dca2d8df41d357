"""Who asks, proved by the kernel, and what they may.

The ``caller`` descriptor is the accepted connection of the person who asks, which casemated passes on. What counts
is what the kernel says of it (SO_PEERCRED, SO_PEERGROUPS: as they were when that person connected), and that it
is a connection *to the API's socket*: a pair that casemated made for itself has no such name.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from casemate.host.granted import granted
from casemate.host.peer import peer_of
from casemate.hostd.errors import CallerForged
from casemate.hostd.records import CallerRecord
from casemate.spec.errors import GrantMissing
from casemate.spec.settings import Settings


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks; *grants* of :data:`casemate.host.granted.GRANTS`. Nobody in particular has uid -1 and none."""

    uid: int = -1
    gid: int = -1
    groups: tuple[int, ...] = ()
    grants: frozenset[str] = frozenset()

    def need(self, grant: str, what: str) -> None:
        """Raise :class:`GrantMissing` unless the caller holds *grant*."""
        if grant not in self.grants:
            who = f"uid {self.uid}" if self.uid >= 0 else "a caller that is not on this host"
            raise GrantMissing(
                f"{what} needs the grant {grant!r}, which {who} does not hold",
                remedy=f"The administrator names the user, or @group, in grants.{grant} of casemate.toml.",
                grant=grant,
            )

    def record(self) -> CallerRecord | None:
        if self.uid < 0:
            return None
        return CallerRecord(self.uid, self.gid, self.groups, tuple(sorted(self.grants)))


NOBODY = Caller()


def from_record(record: CallerRecord | None) -> Caller:
    """The caller as it was when the object was made: a later start asks for nothing new."""
    if record is None:
        return NOBODY
    return Caller(record.uid, record.gid, record.groups, frozenset(record.grants))


def caller_of(number: int, api_socket: Path, settings: Settings) -> Caller:
    """The person behind descriptor *number* (not closed here); raises :class:`CallerForged`.

    casemated could connect to its own API socket and pass that: then the caller is casemated's user, who holds
    what the settings give to that user, by default nothing. It could also bind a socket of its own to the API's
    name and connect it to a server of root's, whose credentials would then look like a caller's; but a server has a
    name, and a client of ours has none. The API binds to a temporary name beside its own and renames it.
    """
    try:
        connection = socket.socket(fileno=os.dup(number))
    except OSError as error:
        raise CallerForged(f"descriptor: not a socket ({error.strerror})") from error
    with connection:
        if connection.family != socket.AF_UNIX:
            raise CallerForged(f"descriptor: family {connection.family}, not a unix socket")
        try:
            kind = connection.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
            listening = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            name, other = connection.getsockname(), connection.getpeername()
        except OSError as error:
            raise CallerForged(f"descriptor: not a connected socket ({error.strerror})") from error
        if kind != socket.SOCK_STREAM or listening or other or not _is_api(name, api_socket):
            raise CallerForged(f"descriptor: type {kind}, bound to {str(name)[:100]!r}, peer {str(other)[:100]!r}")
        peer = peer_of(connection)
    return Caller(peer.uid, peer.gid, peer.groups, granted(peer.uid, peer.gid, peer.groups, settings))


def _is_api(name: object, api_socket: Path) -> bool:
    if not isinstance(name, str):
        return False
    place = Path(name)
    return place == api_socket or (place.parent == api_socket.parent and place.name.startswith(f".{api_socket.name}."))
