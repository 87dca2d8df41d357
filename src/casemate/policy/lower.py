"""Cells to the elements of the kernel's maps: as few as say the same.

Three maps, asked in this order (the first that has an element answers):

- PORT, exact: ``source . destination . protocol . port``;
- RANGE, by interval: the same with first and last port;
- PAIR, exact: ``source . destination``, what holds for the rest of the port space.

Where none has one, the same maps are asked once more for the bases of both (:mod:`casemate.policy.bases`), and where
those have none either, *absent* holds, which is deny: an identity that the map does not know gets nowhere. Protocols
without ports are asked for as protocol 0, port 0. ICMP's types end at 255.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from casemate.policy.cells import Cells
from casemate.policy.ports import Protocol, split
from casemate.policy.verdict import Verdict

MAX_ICMP_TYPE = 255


class Table(IntEnum):
    PORT = 0
    RANGE = 1
    PAIR = 2


class Element(NamedTuple):
    """One element; *protocol* is the IANA number, 0 for PAIR and for protocols without ports."""

    table: Table
    source: int
    destination: int
    protocol: int
    first: int
    last: int
    verdict: Verdict

    @property
    def key(self) -> tuple[int, ...]:
        return self[:-1]

    def describe(self) -> str:
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        where = "" if self.table is Table.PAIR else f" protocol {self.protocol} port {ports}"
        return f"{self.table.name.lower()} {self.source} to {self.destination}{where}: {self.verdict.word}"


Piece = tuple[Table, int, int, int, Verdict]
Runs = tuple[tuple[int, int, Verdict], ...]


def lower(source: int, destination: int, cut: Runs, absent: Verdict | None) -> list[Element]:
    """The elements of one pair; *absent* needs none for the rest of the port space (None: whatever it is does)."""
    pieces = _pieces(cut, absent)
    return [Element(t, source, destination, protocol, first, last, v) for t, protocol, first, last, v in pieces]


def runs(cells: Cells) -> Runs:
    """Cells without their rules: neighbours of one verdict are one."""
    return alike((first, last, verdict, "") for first, last, verdict, _ in cells)


def alike(cells: Iterable[tuple[int, int, Verdict, str]]) -> Runs:
    """The same for one side's answer."""
    out: list[tuple[int, int, Verdict]] = []
    for first, last, verdict, _ in cells:
        if out and out[-1][2] is verdict:
            out[-1] = (out[-1][0], last, verdict)
        else:
            out.append((first, last, verdict))
    return tuple(out)


@lru_cache(maxsize=65536)
def _pieces(cut: Runs, absent: Verdict | None) -> tuple[Piece, ...]:
    """Whichever verdict for the rest of the port space needs the fewest elements."""
    choices = []
    for rest in sorted({verdict for _, _, verdict in cut}):
        pieces = [
            piece for first, last, verdict in cut if verdict is not rest for piece in _ports(first, last, verdict)
        ]
        if rest is not absent:
            pieces.append((Table.PAIR, 0, 0, 0, rest))
        choices.append((len(pieces), -rest, tuple(pieces)))
    return min(choices)[2]


def _ports(first: int, last: int, verdict: Verdict) -> list[Piece]:
    out: list[Piece] = []
    for protocol, low, high in split(first, last):
        if protocol is Protocol.OTHER:
            out.append((Table.PORT, protocol.value, 0, 0, verdict))
        elif protocol is not Protocol.ICMP or low <= MAX_ICMP_TYPE:
            end = min(high, MAX_ICMP_TYPE) if protocol is Protocol.ICMP else high
            out.append((Table.PORT if low == end else Table.RANGE, protocol.value, low, end, verdict))
    return out


def tightens(one: Runs, other: Runs) -> bool:
    """Whether some place of the port space passed in *one* and does not any more in *other*."""
    at = 0
    for first, last, verdict in other:
        if verdict < Verdict.REFER:
            continue
        while at < len(one) and one[at][1] < first:
            at += 1
        place = at
        while place < len(one) and one[place][0] <= last:
            if one[place][2] < Verdict.REFER:
                return True
            place += 1
    return False


def ask(
    elements: Mapping[tuple[int, ...], Verdict], bases: Mapping[int, tuple[int, int]], pair: tuple[int, int],
    protocol: Protocol, port: int,
) -> Verdict:  # fmt: skip
    """What the kernel's chain answers from *elements* (key to verdict) and *bases*: the model for tests."""
    found = _ask_pair(elements, pair, protocol, port)
    if found is None and pair[0] in bases and pair[1] in bases:
        found = _ask_pair(elements, (bases[pair[0]][0], bases[pair[1]][1]), protocol, port)
    return Verdict.DENY if found is None else found


def _ask_pair(
    elements: Mapping[tuple[int, ...], Verdict], pair: tuple[int, int], protocol: Protocol, port: int
) -> Verdict | None:
    number = protocol.value
    port = 0 if protocol is Protocol.OTHER else port
    exact = elements.get((Table.PORT, *pair, number, port, port))
    if exact is not None:
        return exact
    for (table, s, d, p, first, last), verdict in elements.items():
        if table == Table.RANGE and ((s, d), p) == (pair, number) and first <= port <= last:
            return verdict
    return elements.get((Table.PAIR, *pair, 0, 0, 0))
