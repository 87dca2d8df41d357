"""Messages between casemated and the resolver, over one SOCK_SEQPACKET pair; msgpack, bounded. Pure."""

from __future__ import annotations

import msgspec

from casemate.spec.workload import Value

MAX_MESSAGE_BYTES = 128 << 10
#: Of the names in rules in one message; beyond, every answer waits.
MAX_WATCHED_BYTES = 64 << 10
#: Pods of one message, so that its bytes stay below that: a pod has a few names of at most 128 characters.
MAX_PODS = 100


class ToResolver(Value, frozen=True, tag_field="is"):
    """Base of what casemated sends."""


class Pods(ToResolver, frozen=True, tag="pods"):
    """Pods that are there now: (address, project, names); addresses that are gone; *replace* forgets all others."""

    set: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    gone: tuple[str, ...] = ()
    replace: bool = False


class Orders(ToResolver, frozen=True, tag="orders"):
    """*servers* to ask, in order (address, or address#port). *watched*: names in rules, whose answers wait.

    *watch_all*: there are too many to say; every answer waits.
    """

    servers: tuple[str, ...]
    watched: tuple[str, ...] = ()
    rebind_allowed: tuple[str, ...] = ()
    watch_all: bool = False


class Held(ToResolver, frozen=True, tag="held"):
    """A pod in quarantine: the names outside (patterns, as in rules) that it may ask for all the same; None: it is not
    in quarantine any more."""

    address: str
    names: tuple[str, ...] | None = None


class Laid(ToResolver, frozen=True, tag="laid"):
    """The answer *number* is in the firewall (or could not be: *failed*); the pod may have it."""

    number: int
    failed: bool = False


class FromResolver(Value, frozen=True, tag_field="is"):
    """Base of what the resolver sends."""


class Answered(FromResolver, frozen=True, tag="answered"):
    """The pod at *viewer* was, or with *number* is about to be, told that *name* is at *addresses* (lifetime in s)."""

    viewer: str
    name: str
    addresses: tuple[tuple[str, int], ...]
    number: int = 0


class Refused(FromResolver, frozen=True, tag="refused"):
    """An answer that was not passed on: *name* would have led *viewer* to *address*."""

    viewer: str
    name: str
    address: str


class Counters(Value, frozen=True):
    """Since the resolver began, in queries or answers."""

    queries: int = 0
    own: int = 0
    forwarded: int = 0
    cached: int = 0
    failed: int = 0
    refused: int = 0
    rebound: int = 0
    dropped: int = 0
    broken: int = 0
    held: int = 0
    spoofed: int = 0


class Told(FromResolver, frozen=True, tag="told"):
    counters: Counters


ENCODER = msgspec.msgpack.Encoder()
TO_RESOLVER: msgspec.msgpack.Decoder[Pods | Orders | Held | Laid] = msgspec.msgpack.Decoder(Pods | Orders | Held | Laid)
FROM_RESOLVER: msgspec.msgpack.Decoder[Answered | Refused | Told] = msgspec.msgpack.Decoder(Answered | Refused | Told)
