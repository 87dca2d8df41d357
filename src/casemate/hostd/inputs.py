"""Standard inputs that outlive casemated.

conmon closes a container's input when the connection that feeds it ends: right for a client that leaves, wrong when
casemated was killed. So hostd keeps a copy of each connection that it hands out for an input that is no terminal
(terminals stay open anyway). The end of the input is then told on purpose, by shutting the shared socket down.

When casemated is gone, nobody reads what conmon writes into such a connection, and conmon would wait for that, and
the container for conmon. So its reading half is shut down: conmon sees an error, and writes there no more.
"""

from __future__ import annotations

import os
import select
import socket
from dataclasses import dataclass

from casemate.host import pidfd
from casemate.host.pidfd import ProcessIdentity
from casemate.spec.errors import LimitExceeded
from casemate.spec.workload import Process

#: casemated shares one connection among all clients of a container, and makes another only when that is gone.
MAX_HELD = 64


@dataclass(slots=True)
class Held:
    """A copy of a connection to conmon, and the casemated that it was handed to (None when that is not known)."""

    number: int
    reader: ProcessIdentity | None
    silenced: bool = False


def hold(held: list[Held], process: Process, connection: int, reader: ProcessIdentity | None) -> None:
    """Keep a copy of *connection* where *process* has an input that ends with it. Raises :class:`LimitExceeded`."""
    if not process.stdin or process.terminal:
        return
    let_go(held)
    if len(held) >= MAX_HELD:
        raise LimitExceeded(f"{MAX_HELD} connections feed one input", limit=MAX_HELD)
    held.append(Held(os.dup(connection), reader))


def silence(held: list[Held]) -> None:
    """Let conmon write no more to those whose reader is gone; what they feed stays open."""
    for one in held:
        if not one.silenced and (one.reader is None or not pidfd.is_alive(one.reader.pid, one.reader.start_ticks)):
            one.silenced = True
            with socket.socket(fileno=os.dup(one.number)) as connection:
                try:
                    connection.shutdown(socket.SHUT_RD)
                except OSError:
                    continue  # conmon is gone


def let_go(held: list[Held]) -> None:
    """Close the copies of connections that have ended in both directions: by their client, or with conmon."""
    for one in list(held):
        poll = select.poll()
        poll.register(one.number, 0)  # POLLHUP is told unasked
        if poll.poll(0):
            held.remove(one)
            os.close(one.number)


def drop(held: list[Held]) -> None:
    """Close all: what they fed has ended."""
    while held:
        os.close(held.pop().number)
