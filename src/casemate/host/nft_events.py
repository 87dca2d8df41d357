"""Who else changes a table of nftables: by the kernel's notifications, unasked for while we change it ourselves.

They are made for each element of a transaction, if anybody listens: of our own, which may have 50,000, none is wanted.
Source: linux/netfilter/nf_tables.h, nf_tables_commit in net/netfilter/nf_tables_api.c; NFNLGRP_NFTABLES.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from dataclasses import dataclass, field

from casemate.host.netlink import attributes, messages

_SOL_NETLINK, _JOIN, _LEAVE, _GROUP = 270, 1, 2, 7
_SO_RCVBUFFORCE = 33
#: Some 2,000 messages; when others change more between two looks, that is known, and nothing else.
_BUFFER_BYTES = 2 << 20
_NEW_GENERATION = 10 << 8 | 15


@dataclass(slots=True)
class Seen:
    """What came since the last look: *generations* of the ruleset; whether one of them *touched* the table; and whether
    the kernel had to leave any out (*lost*)."""

    generations: set[int] = field(default_factory=set)
    touched: bool = False
    lost: bool = False


class TableEvents:
    """Changes of *table* of *family* (by number) by others, in the network namespace that this is made in."""

    def __init__(self, table: str, family: int) -> None:
        self._name, self._family = table.encode() + b"\0", family
        self._muted = 0
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 12
        )
        try:
            with contextlib.suppress(PermissionError):
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _JOIN, _GROUP)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def mute(self) -> None:
        """A change of ours begins. May be called again before :meth:`unmute`."""
        if not self._muted:
            self._socket.setsockopt(_SOL_NETLINK, _LEAVE, _GROUP)
        self._muted += 1

    def unmute(self) -> None:
        """It is over: 3 us for both."""
        self._muted -= 1
        if not self._muted:
            self._socket.setsockopt(_SOL_NETLINK, _JOIN, _GROUP)

    def take(self) -> Seen:
        """What came; the next look begins after it."""
        seen = Seen()
        while True:
            try:
                data = self._socket.recv(1 << 18)
            except BlockingIOError:
                return seen
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                seen.lost = True
                continue
            for kind, _, _, body in messages(data):
                self._read(kind, body, seen)

    def _read(self, kind: int, body: bytes, seen: Seen) -> None:
        try:
            # In every message of a table, chain, rule, set, element and object the first attribute is the table's name.
            first = next((value for number, value in attributes(body[4:]) if number == 1), b"")
        except ValueError:
            seen.lost = True
            return
        if kind == _NEW_GENERATION:
            if len(first) == 4:
                seen.generations.add(struct.unpack("!I", first)[0])
        elif body[:1] == bytes([self._family]) and first == self._name:
            seen.touched = True
