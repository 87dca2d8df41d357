"""The firewall's part of hostd's protocol: operations, answers and events of identities, verdicts, referrals and holds.

casemated decides who may talk to whom; hostd brings it into the kernel in one transaction and knows no rule. The state
in force has a number, its *generation*: a change names the one that it was planned from, and is refused when hostd has
another (a casemated that restarted, a repair from an older record); then the whole is given anew.

Elements travel as packed records of fixed size (the body), inside the message or, when they are many, in a sealed
memory file whose descriptor comes beside it. hostd checks each field again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Annotated, Literal

from msgspec import Meta

from casemate.hostd.protocol_base import Answer, Event, Operation
from casemate.spec.workload import Id, Value

#: What a body begins with: magic, and how many records of each section follow, in this order.
BODY_HEADER = struct.Struct("!4s6I")
BODY_MAGIC = b"CMF1"
SECTIONS = ("address_deletes", "verdict_deletes", "base_deletes", "verdict_adds", "base_adds", "address_adds")
#: table (0 port, 1 range, 2 pair), source, destination, protocol, first, last, verdict (policy.verdict's number).
VERDICT_RECORD = struct.Struct("!BIIBHHB")
#: exact (1) or interval (0), version (4, 6), first, last, viewer (all zero: none), number, lifetime in seconds (0: for
#: ever; only with a viewer). IPv4 addresses stand in the first 4 bytes of their field.
ADDRESS_RECORD = struct.Struct("!BB16s16s16sII")
#: identity, its egress base, its ingress base.
BASE_RECORD = struct.Struct("!III")
RECORDS = {
    "address_deletes": ADDRESS_RECORD,
    "verdict_deletes": VERDICT_RECORD,
    "base_deletes": BASE_RECORD,
    "verdict_adds": VERDICT_RECORD,
    "base_adds": BASE_RECORD,
    "address_adds": ADDRESS_RECORD,
}
#: A body up to this size stands in the message; a longer one comes as a sealed memory file.
MAX_INLINE_BYTES = 128 << 10
#: 1,000,000 verdicts and as many addresses are some 80 MiB; more than a host's memory should be asked for.
MAX_BODY_BYTES = 96 << 20
#: Held and referred packets in one event or one operation.
MAX_BATCH = 512
#: Where clouds answer with a machine's credentials: AWS, Azure, Google, OpenStack and others; Alibaba; Oracle; Azure's
#: wire server. No pod reaches them. The link-local ones are blocked anyway; these names say why.
METADATA = ("169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16")

AddressBytes = Annotated[bytes, Meta(min_length=4, max_length=16)]


def body(**sections: Iterable[bytes]) -> bytes:
    """A body of the packed records of *sections*."""
    joined = {name: b"".join(records) for name, records in sections.items()}
    counts = [len(joined.get(name, b"")) // RECORDS[name].size for name in SECTIONS]
    return BODY_HEADER.pack(BODY_MAGIC, *counts) + b"".join(joined.get(name, b"") for name in SECTIONS)


# --- operations -------------------------------------------------------------------------------------------------


class FirewallReplace(Operation, frozen=True, tag="firewall.replace"):
    """The whole state, in one transaction: what was in force before holds until it is. Answers FirewallChanged.

    With *in_force* False no policy holds: every pod reaches every other and the outside, as before the first document.
    An empty *body* means that the first descriptor is a sealed memory file with it.
    """

    body: Annotated[bytes, Meta(max_length=MAX_INLINE_BYTES)] = b""
    in_force: bool = True
    reason: Annotated[str, Meta(max_length=200)] = ""


class FirewallChange(Operation, frozen=True, tag="firewall.change"):
    """Deletes, then adds, in one transaction. Answers FirewallChanged; Conflict when *expected* is not in force.

    *look_again*: some connection that is open may not be any more; each is judged anew at its next packet.
    """

    expected: Annotated[int, Meta(ge=0)]
    body: Annotated[bytes, Meta(max_length=MAX_INLINE_BYTES)] = b""
    look_again: bool = False
    reason: Annotated[str, Meta(max_length=200)] = ""


class ReferralAnswer(Value, frozen=True, array_like=True):
    """What becomes of the packet that a :class:`Referred` event named *number*.

    *lifetime_s* above 0: the same answer holds so long for every connection of this source address to this
    destination, protocol and port, without asking. 0: for this connection alone.
    """

    number: int
    accept: bool
    lifetime_s: Annotated[int, Meta(ge=0, le=31_536_000)] = 0


class FirewallAnswer(Operation, frozen=True, tag="firewall.answer"):
    """Answers to referred packets; those that are not waiting any more are passed over. Answers Done."""

    answers: Annotated[tuple[ReferralAnswer, ...], Meta(min_length=1, max_length=MAX_BATCH)]


class AnswerKey(Value, frozen=True, array_like=True):
    """Whose cached answer: addresses (4 or 16 bytes), protocol (IANA), destination port (ICMP: type)."""

    source: AddressBytes
    destination: AddressBytes
    protocol: Annotated[int, Meta(ge=0, le=255)]
    port: Annotated[int, Meta(ge=0, le=65535)]


class FirewallForget(Operation, frozen=True, tag="firewall.forget"):
    """Cached answers to referrals are forgotten: those of *keys*, whose open connections are cut (unless *cut* is
    False), or all of them.

    Answers Done.
    """

    keys: Annotated[tuple[AnswerKey, ...], Meta(max_length=MAX_BATCH)] | None = None
    cut: bool = True


class PodHold(Operation, frozen=True, tag="firewall.hold"):
    """First packets of new connections to the pod wait, and its published ports stay, until :class:`PodRelease`.

    After *wait_s*, or beyond *limit* connections, clients get a reset. Repeated, the time begins anew. Answers Done.
    """

    pod: Id
    wait_s: Annotated[int, Meta(ge=1, le=600)] = 30
    limit: Annotated[int, Meta(ge=1, le=65_536)] = 16_384


class PodRelease(Operation, frozen=True, tag="firewall.release"):
    """What waits for the pod goes on to it (*accept*) or is reset. Answers :class:`Released`."""

    pod: Id
    accept: bool = True


class FlowsCut(Operation, frozen=True, tag="firewall.cut"):
    """Forget the tracked connections between *pairs* of addresses (empty bytes: any). Answers :class:`Cut`.

    Only needed for what no change of policy shows: a revoked answer. With a policy in force their next packet gets
    a reset.
    """

    pairs: Annotated[tuple[tuple[bytes, bytes], ...], Meta(min_length=1, max_length=64)]


class FirewallObserve(Operation, frozen=True, tag="firewall.observe"):
    """Answers :class:`FirewallState`."""


FirewallOperation = (
    FirewallReplace
    | FirewallChange
    | FirewallAnswer
    | FirewallForget
    | PodHold
    | PodRelease
    | FlowsCut
    | FirewallObserve
)


# --- answers ----------------------------------------------------------------------------------------------------


class FirewallChanged(Answer, frozen=True, tag="firewall_changed"):
    generation: int


class Released(Answer, frozen=True, tag="released"):
    """How many connections waited, and how many had been reset or dropped before (time, count)."""

    waited: int
    refused: int


class Cut(Answer, frozen=True, tag="cut"):
    connections: int


class Holding(Value, frozen=True):
    """A pod that is held: how many connections wait for it now, and for how long it may still be held."""

    pod: str
    waiting: int
    refused: int
    left_s: float


class FirewallState(Answer, frozen=True, tag="firewall_state"):
    """What is in force, and what was counted since hostd started (*counters*, in packets or connections)."""

    generation: int
    in_force: bool
    elements: dict[str, int]
    counters: dict[str, int]
    waiting: int
    holding: tuple[Holding, ...] = ()


FirewallAnswers = FirewallChanged | Released | Cut | FirewallState


# --- events -----------------------------------------------------------------------------------------------------


class ReferredPacket(Value, frozen=True, array_like=True):
    """The first packet of a connection that waits. Addresses are 4 or 16 bytes; ICMP's type is its port.

    *pod* has the source address; empty when it is outside. *waited_ms*: hostd drops it 0 to 60 s after it came, as
    the setting ``network.referral_wait`` says; no answer means deny.
    """

    number: int
    source: bytes
    destination: bytes
    protocol: int
    source_port: int
    port: int
    pod: str


class Referred(Event, frozen=True, tag="referred"):
    packets: tuple[ReferredPacket, ...]


class ReferralsLost(Event, frozen=True, tag="referrals_lost"):
    """Packets that were denied without an answer since the last such event, by why: bound, time_out, queue, away."""

    why: dict[str, int]


class HoldEnded(Event, frozen=True, tag="hold_ended"):
    """The bound of a hold was passed; its clients got a reset."""

    pod: str
    why: Literal["time", "gone"]
    refused: int


class FirewallRepaired(Event, frozen=True, tag="firewall_repaired"):
    """Somebody took rules of ours away, and they were made again; *what* in lines."""

    what: tuple[str, ...]


FirewallEvent = Referred | ReferralsLost | HoldEnded | FirewallRepaired
