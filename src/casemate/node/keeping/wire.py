"""What casemated and the relay of kept connections tell each other: msgpack values, one in a message."""

from __future__ import annotations

import msgspec

#: Raised with each change of these messages: a relay outlives the daemon that it was started for, and its upgrade.
VERSION = 1
MAX_MESSAGE_BYTES = 256 << 10
#: Ends in one message of the relay.
MAX_ENDS = 500

#: (address, port) of a pod's kept port, or of a client.
Address = tuple[str, int]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True, omit_defaults=True):
    """Base of the messages."""


class KeptPorts(_Message, frozen=True):
    """The kept ports of pods: (address, port, whether unanswered bytes may be sent again). All of them."""

    ports: tuple[tuple[str, int, bool], ...] = ()


class Hold(_Message, frozen=True):
    """Hold the connections to *address*: let answers come to their end within *drain_s*, then say :class:`Drained`.

    Until :class:`Resume`, at most *wait_s*; more than *limit* connections are reset at once.
    """

    address: str
    wait_s: float
    drain_s: float
    limit: int


class Resume(_Message, frozen=True):
    """The pod at *address* is ready: connect anew, and go on; *accept* False: reset what is held."""

    address: str
    accept: bool = True
    #: The pod's network is another's since: connections that seem open are not.
    anew: bool = False


class Cut(_Message, frozen=True):
    """Reset, on both sides, the connections from a client's address to a pod's and its port (empty, 0: any)."""

    client: str
    address: str
    port: int = 0


class Ask(_Message, frozen=True):
    """Who is connected now; answered by :class:`Connected`, as many as needed."""


class Hello(_Message, frozen=True):
    """The relay's first word to each casemated that is attached to it: one of another version is replaced."""

    version: int


class Drained(_Message, frozen=True):
    """Held at *address*: *quiet* connections with nothing under way, *busy* that had not come to an end."""

    address: str
    quiet: int
    busy: int


class Resumed(_Message, frozen=True):
    """What became of the held connections to *address*: gone on, replayed among them, reset."""

    address: str
    resumed: int
    replayed: int
    reset: int


class Connected(_Message, frozen=True):
    """Distinct (client's address, pod's address, port) with connections; the last message says *whole*."""

    ends: tuple[tuple[str, str, int], ...]
    whole: bool


class Held(msgspec.Struct, frozen=True, array_like=True):
    """A pod's port as the relay has it: open connections, those held, bytes kept for them, seconds left of a hold."""

    address: str
    port: int
    open: int
    held: int
    bytes: int
    left_s: float


class Counters(msgspec.Struct, frozen=True):
    """Since the relay started, in connections."""

    accepted: int = 0
    refused: int = 0
    failed: int = 0
    resumed: int = 0
    replayed: int = 0
    reset: int = 0
    cut: int = 0


class Told(_Message, frozen=True):
    """The relay's state, once a second while it changes."""

    ports: tuple[Held, ...]
    counters: Counters


TO_RELAY = msgspec.msgpack.Decoder(KeptPorts | Hold | Resume | Cut | Ask)
FROM_RELAY = msgspec.msgpack.Decoder(Hello | Drained | Resumed | Connected | Told)
ENCODER = msgspec.msgpack.Encoder()
