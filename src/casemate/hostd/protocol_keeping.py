"""What hostd opens for the relay of kept connections, which works without privilege; and whether a pod is ready."""

from __future__ import annotations

import struct

from casemate.hostd.protocol_base import Answer, Operation
from casemate.spec.workload import Id, Port


class RelayListen(Operation, frozen=True, tag="relay.listen"):
    """Leads the kept ports of all pods to a listening socket. Answers Done and two descriptors: that, and a channel.

    Over the channel (SOCK_SEQPACKET) the relay asks for each connection that it accepted for one to the pod: a
    :data:`RELAY_REQUEST` with the accepted socket beside it. hostd answers a :data:`RELAY_ANSWER`, in the same order,
    with a socket that connects to the pod from the client's own address. It takes both ends from the socket itself,
    and only from one that its own listener accepted, for a port that a pod keeps. Asked again it makes others.
    """


class PodProbe(Operation, frozen=True, tag="pod.probe"):
    """Whether the pod takes TCP connections at *port* now, also while it is held: by making one, and resetting it.

    For pods whose listening sockets the host's tables do not show. Answers :class:`Probed`, within a second.
    """

    pod: Id
    port: Port


class Probed(Answer, frozen=True, tag="probed"):
    is_open: bool


#: Number, which the answer repeats.
RELAY_REQUEST = struct.Struct("=I")
#: Number, and 0 or an errno: EPERM for what is no accepted connection to a kept port.
RELAY_ANSWER = struct.Struct("=II")

KeepingOperation = RelayListen | PodProbe
KeepingAnswer = Probed
