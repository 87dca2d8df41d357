"""The relay of kept connections: ``python -m casemate.node.keeping.child SOCKET``, a process without privilege.

casemate-hostd starts it, so that it outlives casemated, and it outlives hostd too: descriptor 3 is the socket at which
a hostd that was started anew finds it (its path is for people who look at processes). By hostd it is given a listener,
and its channel to casemated. What it relays it does not read; a client or a pod can cost it a connection, and no more
memory than is bounded here.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import socket
import sys

import msgspec

from casemate.host import ownlimits
from casemate.host.peer import peer_of
from casemate.node.keeping import wire
from casemate.node.keeping.relay import MAX_PAIRS, Relay, note

DOOR, FILTER = 3, 4
MEMORY_BYTES = 512 << 20
#: Both ends of a connection, and a spare for each that is on its way to hostd.
_DESCRIPTORS_OF_ONE, _DESCRIPTORS_BESIDE = 3, 64
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_INSTRUCTION_BYTES, _MAX_FILTER_BYTES = 8, 4096 * 8
#: hostd connects again where it was hung up on.
_BACKLOG = 8


def bound_self() -> int:
    """Lower this process's limits for good; how many connections it can have."""
    ownlimits.bound_self({resource.RLIMIT_AS: MEMORY_BYTES, resource.RLIMIT_NPROC: 0})
    files = ownlimits.settle(resource.RLIMIT_NOFILE, _DESCRIPTORS_OF_ONE * MAX_PAIRS + _DESCRIPTORS_BESIDE)
    return min(MAX_PAIRS, (files - _DESCRIPTORS_BESIDE) // _DESCRIPTORS_OF_ONE)


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def confine() -> None:
    """Give up what descriptor 4 does not list: all files, all new sockets, all other processes."""
    program = os.pread(FILTER, _MAX_FILTER_BYTES, 0)
    os.close(FILTER)
    if not program:
        note("libseccomp is missing: no filter of system calls")
        return
    libc = ctypes.CDLL(None, use_errno=True)
    value = _Program(len(program) // _INSTRUCTION_BYTES, program)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(value), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


class Daemons:
    """Both daemons, as they come and go; *relay* is what they work with."""

    def __init__(self, door: socket.socket) -> None:
        self.relay = Relay(self.tell, is_heard=lambda: self._casemated is not None)
        self.relay.on_casemated = self.attach
        self._casemated: socket.socket | None = None
        self._door = door
        door.setblocking(False)
        # Again, and now as this process: by that hostd knows it (unix(7), SO_PEERCRED).
        door.listen(_BACKLOG)
        self.relay.add(door.fileno(), self._on_door)

    def _on_door(self, _number: int, _events: int) -> None:
        try:
            connection, _ = self._door.accept()
        except OSError:
            return
        # The socket is root's alone to connect to; this is the second lock.
        if peer_of(connection).uid == 0:
            self.relay.hostd.talk_to(connection)
        else:
            connection.close()

    # --- casemated ------------------------------------------------------------------------------------------------

    def attach(self, channel: socket.socket) -> None:
        """Another casemated: it is told all anew, and what an earlier one held stays held to its bound."""
        self._detach()
        channel.setblocking(False)
        self._casemated = channel
        self.relay.add(channel.fileno(), self._on_message)
        self.tell(wire.Hello(wire.VERSION))
        self.relay.tell_anew()

    def _detach(self) -> None:
        gone, self._casemated = self._casemated, None
        if gone is not None:
            self.relay.unwatch(gone.fileno())
            gone.close()

    def tell(self, message: msgspec.Struct) -> None:
        if self._casemated is None:
            return
        try:
            self._casemated.send(wire.ENCODER.encode(message), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            # casemated is slow: it asks again, or waits to its own bound.
            return
        except OSError:
            self._detach()

    def _on_message(self, _number: int, _events: int) -> None:
        if self._casemated is None:
            return
        try:
            data = self._casemated.recv(wire.MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            if data:
                self.relay.on_message(wire.TO_RELAY.decode(data))
                return
        except msgspec.DecodeError as error:
            note(f"casemated said what is no message: {error}")
        self._detach()


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        sys.stderr.write("usage: python -m casemate.node.keeping.child SOCKET (started by casemate-hostd)\n")
        return 2
    most = bound_self()
    os.set_inheritable(DOOR, False)
    relay = Daemons(socket.socket(fileno=DOOR)).relay
    relay.max_pairs = most
    if most < MAX_PAIRS:
        note(f"at most {most} connections: the limit of open files is low")
    gc.freeze()
    confine()
    relay.run()
    # Connections end with a reset of the kernel's where something was unread; what counts is that they end now.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
