"""Messages between casemated and its flow recorder, over one SOCK_SEQPACKET pair; msgpack, bounded. Pure."""

from __future__ import annotations

import msgspec

from casemate.spec.workload import Value

#: Below the default send buffer with room for the kernel's own; larger lists go in several messages.
MAX_MESSAGE_BYTES = 128 << 10
#: Items of one message, so that its bytes stay below that: an end has at most some 560, a ruling 500.
MAX_ITEMS = 200
#: Referred connections of one message: each some 60 bytes.
MAX_FIVES = 400
MAX_RULE_BYTES, MAX_NOTE_BYTES, MAX_LABELS_BYTES = 250, 200, 256


def bounded(text: str, size: int) -> str:
    """*text*, cut where its UTF-8 would be longer than *size* bytes."""
    return text if len(text) * 4 <= size else text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")


class End(Value, frozen=True, array_like=True):
    """Who an address is: *kind* pod, node or world; *identity* its number under the rules in force (0: none)."""

    address: str
    kind: str = "world"
    project: str = ""
    name: str = ""
    pod: str = ""
    identity: int = 0
    labels: str = ""


class Question(Value, frozen=True, array_like=True):
    """Which rule decides a connection between two addresses. *port*: the destination's; ICMP's type."""

    source: str
    destination: str
    protocol: int
    port: int


class Ruling(Value, frozen=True, array_like=True):
    """An answer to a question: *verdict* allow, audit, refer, hold or deny; *rule* by its name; both identities."""

    verdict: str = "allow"
    rule: str = ""
    source_identity: int = 0
    destination_identity: int = 0
    note: str = ""


class ToRecorder(Value, frozen=True, tag_field="is"):
    """Base of what casemated sends."""


class Ends(ToRecorder, frozen=True, tag="ends"):
    """Addresses that have an end now, and such as have none any more; *replace* forgets all others."""

    set: tuple[End, ...] = ()
    gone: tuple[str, ...] = ()
    replace: bool = False


class Names(ToRecorder, frozen=True, tag="names"):
    """Answers that pods got: (viewer's address, address, name, lifetime in seconds)."""

    answers: tuple[tuple[str, str, str, int], ...]


class Rulings(ToRecorder, frozen=True, tag="rulings"):
    """Answers to the questions of the same *number*, in their order."""

    number: int
    rulings: tuple[Ruling, ...]


class RulesChanged(ToRecorder, frozen=True, tag="rules"):
    """Rulings from before hold no longer."""


class ReferralTold(Value, frozen=True, array_like=True):
    """What connections were answered with: *verdict* allow or deny, by which *rule* and why, and both identities."""

    verdict: str
    rule: str
    note: str = ""
    source_identity: int = 0
    destination_identity: int = 0


#: Addresses of 4 or 16 bytes, protocol, source port, port.
Five = tuple[bytes, bytes, int, int, int]


class Referred(ToRecorder, frozen=True, tag="referred"):
    """Connections that were referred and answered, each with the place of its answer in *answers*."""

    answers: tuple[ReferralTold, ...]
    connections: tuple[tuple[Five, int], ...]


class FromRecorder(Value, frozen=True, tag_field="is"):
    """Base of what the recorder sends."""


class Questions(FromRecorder, frozen=True, tag="questions"):
    number: int
    questions: tuple[Question, ...]


class Counters(Value, frozen=True):
    """Since the recorder began. *lost*: events that the kernel could not keep for us, each kind counted as it can be:
    messages of the log by their numbers, conntrack's by the times that its buffer ran over."""

    recorded: int = 0
    denied: int = 0
    audited: int = 0
    ended: int = 0
    lost_log: int = 0
    overruns: int = 0
    broken: int = 0
    unruled: int = 0
    names_seen: int = 0


class Progress(FromRecorder, frozen=True, tag="progress"):
    """What was written: the newest stamp of the store, and the counters."""

    stamp: int
    counters: Counters


ENCODER = msgspec.msgpack.Encoder()
TO_RECORDER: msgspec.msgpack.Decoder[Ends | Names | Rulings | RulesChanged | Referred] = msgspec.msgpack.Decoder(
    Ends | Names | Rulings | RulesChanged | Referred
)
FROM_RECORDER: msgspec.msgpack.Decoder[Questions | Progress] = msgspec.msgpack.Decoder(Questions | Progress)
