"""The relay of kept connections: ``python -m casemate.node.keeping.child``, a child of casemated without privilege.

Descriptor 3 leads to casemated, 4 is the listener and 5 the channel that casemate-hostd made. What it relays it does
not read; a client or a pod can cost it a connection, and no more memory than is bounded here.
"""

from __future__ import annotations

import array
import ctypes
import gc
import os
import resource
import signal
import socket
import sys

import msgspec

from casemate.node.keeping import wire
from casemate.node.keeping.relay import MAX_PAIRS, Relay, note

CHANNEL, LISTENER, HOSTD = 3, 4, 5
MEMORY_BYTES = 512 << 20
#: Both ends of a connection, and a spare for each that is on its way to hostd.
_DESCRIPTORS_OF_ONE, _DESCRIPTORS_BESIDE = 3, 64
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38


def bound_self() -> int:
    """Lower this process's limits for good; how many connections it can have."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for which, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_NPROC, 0)):
        _bound(which, value)
    files = _bound(resource.RLIMIT_NOFILE, _DESCRIPTORS_OF_ONE * MAX_PAIRS + _DESCRIPTORS_BESIDE)
    return min(MAX_PAIRS, (files - _DESCRIPTORS_BESIDE) // _DESCRIPTORS_OF_ONE)


def _bound(which: int, value: int) -> int:
    _, hard = resource.getrlimit(which)
    limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (limit, limit))
    return limit


class Channel:
    """To and from casemated."""

    def __init__(self) -> None:
        self._socket = socket.socket(fileno=CHANNEL)
        self._socket.setblocking(False)
        os.set_inheritable(CHANNEL, False)
        self.relay = Relay(self.tell)
        self.relay.add(CHANNEL, self._on_message)

    def tell(self, message: msgspec.Struct) -> None:
        try:
            self._socket.send(wire.ENCODER.encode(message))
        except BlockingIOError:
            # casemated is slow: it asks again, or waits to its own bound.
            return
        except OSError:
            self.relay.ended = True

    def _on_message(self, _number: int, _events: int) -> None:
        try:
            data, beside, _, _ = self._socket.recvmsg(
                wire.MAX_MESSAGE_BYTES, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, beside = b"", []
        if not data:
            self.relay.ended = True
            return
        descriptors = [number for _, _, content in beside for number in array.array("i", content[: len(content) & ~3])]
        self.relay.on_message(wire.TO_RELAY.decode(data), descriptors)
        for number in descriptors:
            os.close(number)


def main(argv: list[str]) -> int:
    if argv:
        sys.stderr.write("usage: python -m casemate.node.keeping.child (started by casemated)\n")
        return 2
    most = bound_self()
    channel = Channel()
    channel.relay.max_pairs = most
    if most < MAX_PAIRS:
        note(f"at most {most} connections: the limit of open files is low")
    channel.relay.listen(LISTENER, HOSTD)
    gc.freeze()
    channel.relay.run()
    # Connections end with a reset of the kernel's where something was unread; what counts is that they end now.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
