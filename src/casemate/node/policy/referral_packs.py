"""Decided referrals as the store keeps them: many in one value, each still to be read by itself. Pure.

A flood leaves tens of thousands a second, nearly all with the same ends, answer and reason. So what they share is said
once in a pack, and of each there is its number and its port.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from casemate.node.clock import rfc3339
from casemate.spec.api.policy import ReferralRow

#: Referrals of one pack: it is read, and forgotten, as a whole.
MAX_PACKED = 2048


class Kind(NamedTuple):
    """What referrals have in common: both ends, protocol, the answer and why, and how long it holds.

    Packs of earlier versions end with *lifetime_s*.
    """

    source: str
    destination: str
    protocol: str
    answer: Literal["allow", "deny"]
    reason: str
    by: str
    lifetime_s: int
    source_address: str = ""
    destination_address: str = ""
    dns: str = ""


class Run(NamedTuple):
    """Referrals that were decided at one moment (seconds since the epoch): numbers from *first* on, one for a port."""

    first: int
    at: float
    kind: Kind
    ports: Sequence[int]


class Packed(NamedTuple):
    """A row of the store. *projects*: of all ends, each between spaces."""

    last: int
    projects: str
    pack: bytes


class _Pack(msgspec.Struct, frozen=True, array_like=True):
    kinds: tuple[Kind, ...]
    #: First number, time, place among *kinds*, ports.
    runs: tuple[tuple[int, float, int, tuple[int, ...]], ...]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Pack)


def packed(runs: Iterable[Run]) -> list[Packed]:
    """*runs*, in the order of their numbers, as rows."""
    found: list[Packed] = []
    held: list[Run] = []
    size = 0
    for run in runs:
        if size and size + len(run.ports) > MAX_PACKED:
            found.append(_packed(held))
            held, size = [], 0
        held.append(run)
        size += len(run.ports)
    if held:
        found.append(_packed(held))
    return found


def _packed(runs: Sequence[Run]) -> Packed:
    places: dict[Kind, int] = {}
    told = [(run.first, run.at, places.setdefault(run.kind, len(places)), run.ports) for run in runs]
    projects = {_project(end) for kind in places for end in (kind.source, kind.destination)}
    last = runs[-1].first + len(runs[-1].ports) - 1
    return Packed(last, f" {' '.join(sorted(projects))} ", _ENCODER.encode((list(places), told)))


def read(pack: bytes, projects: frozenset[str] | None = None) -> Iterator[ReferralRow]:
    """The referrals of a pack, the newest first; with an end in one of *projects*, if given."""
    held = _DECODER.decode(pack)
    wanted = [
        projects is None or _project(kind.source) in projects or _project(kind.destination) in projects
        for kind in held.kinds
    ]
    for first, at, place, ports in reversed(held.runs):
        if wanted[place]:
            yield from rows(Run(first, at, held.kinds[place], ports))


def rows(run: Run) -> Iterator[ReferralRow]:
    """The referrals of *run*, the newest first."""
    kind, at = run.kind, rfc3339(run.at)
    until = rfc3339(run.at + kind.lifetime_s) if kind.lifetime_s else ""
    for place in range(len(run.ports) - 1, -1, -1):
        yield ReferralRow(
            run.first + place, at, kind.source, kind.destination, kind.protocol, run.ports[place], "", kind.answer,
            kind.reason, kind.by, until=until, source_address=kind.source_address,
            destination_address=kind.destination_address, dns=kind.dns,
        )  # fmt: skip


def _project(end: str) -> str:
    """The project of a workload's name; an outside end has none."""
    return end.partition("/")[0] if "/" in end else ""
