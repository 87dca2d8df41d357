"""Who is at the other end of a connected unix socket, as the kernel tells it."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass

_SO_PEERGROUPS, _SO_PEERPIDFD = 59, 77
#: NGROUPS_MAX: no process has more supplementary groups.
_MAX_GROUPS = 65536


@dataclass(frozen=True, slots=True)
class Peer:
    """The credentials that a peer had when it connected; *groups* are its supplementary groups."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]


def peer_of(connection: socket.socket) -> Peer:
    """The peer's credentials (SO_PEERCRED, SO_PEERGROUPS; unix(7))."""
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF, _groups(connection))


def _groups(connection: socket.socket) -> tuple[int, ...]:
    size = 256
    while True:
        try:
            # Python raises for a buffer above 1024 bytes, so larger lists are read through the dup below.
            data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, size)
        except OSError as error:
            if error.errno == 34 and size < 1024:  # ERANGE: the list is longer
                size = 1024
                continue
            if error.errno == 34:
                return _many_groups(connection.fileno())
            return ()
        return struct.unpack(f"{len(data) // 4}I", data)


def _many_groups(number: int) -> tuple[int, ...]:
    import ctypes  # noqa: PLC0415 - only for a peer in more than 256 groups

    from casemate.host.syscalls import last_error, libc_function  # noqa: PLC0415

    buffer = (ctypes.c_uint32 * _MAX_GROUPS)()
    size = ctypes.c_uint32(ctypes.sizeof(buffer))
    result = libc_function("getsockopt")(
        number, socket.SOL_SOCKET, _SO_PEERGROUPS, ctypes.byref(buffer), ctypes.byref(size)
    )
    if result < 0:
        raise last_error("getsockopt SO_PEERGROUPS")
    return tuple(buffer[: size.value // 4])


def peer_pidfd(connection: socket.socket) -> int | None:
    """A pidfd of the peer (SO_PEERPIDFD, Linux 6.5), or None before that; the caller closes it."""
    try:
        number: int = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return None
    os.set_inheritable(number, False)
    return number
