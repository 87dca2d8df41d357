"""What a referral is made of: the packet and what it asks, who is asked, what was answered. Pure values."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from casemate.hostd.protocol_firewall import ReferredPacket
from casemate.policy.identity import Connection
from casemate.policy.ports import Protocol

WORDS = {protocol: protocol.name.lower() for protocol in Protocol}


class Told(NamedTuple):
    """What a person is told of both ends beside their names: addresses, and what the source asked the resolver for."""

    source_address: str = ""
    destination_address: str = ""
    dns: str = ""


@dataclass(slots=True)
class Prompt:
    """A person is asked about *asked*; *packets* wait for the answer."""

    number: int
    asked: Connection
    key: str
    began: float
    deadline: float
    rule: str
    told: Told
    packets: list[ReferredPacket] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a referral was answered, why and by what; *lifetime_s*: how long the kernel may keep it."""

    allow: bool
    reason: str
    by: str
    lifetime_s: int = 0


@dataclass(slots=True)
class Case:
    """A packet whose answer needs the store; *rate* as it was when it came."""

    packet: ReferredPacket
    asked: Connection
    rate: int


class Settled(NamedTuple):
    """*packets* have *answer*, and are still to be told of; *number* 0: nobody was asked, and *told* is not known."""

    packets: Sequence[ReferredPacket]
    asked: Connection
    answer: Answer
    waited_s: float
    number: int
    told: Told | None = None


def key_of(asked: Connection) -> str:
    """By what an answer is remembered: the two workloads (an outside end by its address), protocol and port."""
    return f"{asked.source.name} {asked.destination.name} {WORDS[asked.protocol]}/{asked.port}"
