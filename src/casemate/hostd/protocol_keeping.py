"""What hostd opens for the relay of kept connections, which works without privilege; and whether a pod is ready."""

from __future__ import annotations

import struct

from casemate.hostd.protocol_base import Answer, Operation
from casemate.spec.workload import Id, Port


class RelayAttach(Operation, frozen=True, tag="relay.attach"):
    """A channel to the relay, which is started where none runs. Answers Done and a descriptor (SOCK_SEQPACKET).

    The relay outlives both daemons: hostd finds it again at its socket, and casemated by asking this. The one that was
    attached before hears the end of its channel. *anew*: the one that runs speaks another version; it is ended first.
    """

    anew: bool = False


class PodProbe(Operation, frozen=True, tag="pod.probe"):
    """Whether the pod takes TCP connections at *port* now, also while it is held: by making one, and resetting it.

    For pods whose listening sockets the host's tables do not show. Answers :class:`Probed`, within a second.
    """

    pod: Id
    port: Port


class Probed(Answer, frozen=True, tag="probed"):
    is_open: bool


# hostd and the relay speak over one connection (SOCK_SEQPACKET) to the relay's socket; only root may connect to that.
#
# For each connection that it accepted the relay asks for one to the pod: a request with the accepted socket beside it.
# hostd answers in the same order, with a socket that connects to the pod from the client's own address. It takes both
# ends from the socket itself, and only from one that its own listener accepted, for a port that a pod keeps.

#: Number, which the answer repeats. 0, and nothing beside it: what was given last was taken.
RELAY_REQUEST = struct.Struct("=I")
#: Number, and 0 or an errno: EPERM for what is no accepted connection to a kept port. With the number 0 hostd gives
#: what is beside it: one of the two below.
RELAY_ANSWER = struct.Struct("=II")
#: Another listener, instead of the one before; and a channel to casemated, whose taking is acknowledged.
GIVEN_LISTENER, GIVEN_CASEMATED = 1, 2

KeepingOperation = RelayAttach | PodProbe
KeepingAnswer = Probed
