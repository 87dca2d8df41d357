"""What the table's sets hold, compared with what they should hold: element by element, as bytes. Pure.

All elements of one set have one layout, so each is cut at places that were looked for in the first: some 0.5 us an
element, where reading its attributes takes 4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from casemate.host.nft_netlink import element, value
from casemate.network.firewall.sets import ALL_SETS, TIMED, Row

#: Sets whose elements come and go by nobody's hand but ours. Those of verdicts are told by their number alone.
STATIC = frozenset(one.name for one in ALL_SETS if not one.timed and not one.dynamic and one.name not in TIMED)
COMPARED = STATIC - {"verdicts", "given"}
_HEAD = struct.Struct("=HH")
#: linux/netfilter/nf_tables.h: NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_KEY_END
_KEY, _DATA, _KEY_END = 1, 2, 10


class Held(NamedTuple):
    """An element: key, end of the interval (or nothing), value (or nothing)."""

    key: bytes
    end: bytes
    data: bytes

    def row(self, name: str) -> Row:
        return Row(name, element(self.key, end=self.end, data=value(self.data) if self.data else b""))


@dataclass(slots=True)
class Difference:
    """By set: what is missing, and what nobody asked for."""

    missing: dict[str, list[Held]] = field(default_factory=dict)
    surplus: dict[str, list[Held]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(len(found) for by_set in (self.missing, self.surplus) for found in by_set.values())

    def adds(self) -> list[Row]:
        return [one.row(name) for name, found in self.missing.items() for one in found]

    def deletes(self) -> list[Row]:
        return [one.row(name) for name, found in self.surplus.items() for one in found]

    def describe(self) -> list[str]:
        """A line for each set."""
        lines: list[str] = []
        for name in sorted(self.missing.keys() | self.surplus.keys()):
            gone, come = len(self.missing.get(name, ())), len(self.surplus.get(name, ()))
            parts = [f"{gone} elements were gone"] * (gone > 0) + [f"{come} were not ours"] * (come > 0)
            lines.append(f"set {name}: {', '.join(parts)}")
        return lines


def held(elements: Iterable[bytes]) -> Iterator[Held]:
    """Netlink elements (each with its header) as values; what is no element is passed over."""
    layouts: dict[bytes, tuple[slice, slice, slice]] = {}
    for one in elements:
        # The length tells layouts apart within a set.
        layout = layouts.get(one[:2])
        if layout is None:
            layout = layouts[one[:2]] = _layout(one)
        yield Held(one[layout[0]], one[layout[1]], one[layout[2]])


def cut(listing: bytes) -> Iterator[bytes]:
    """The elements of one message's list."""
    at = 0
    while at + 4 <= len(listing):
        size = _HEAD.unpack_from(listing, at)[0]
        if size < 4:
            return
        yield listing[at : at + size]
        at += (size + 3) & ~3


def compare(wanted: Mapping[str, Iterable[bytes]], found: Mapping[str, Iterable[bytes]]) -> Difference:
    """The sets in *wanted*, as they are *found*."""
    difference = Difference()
    for name, elements in wanted.items():
        ours, theirs = set(held(elements)), set(held(found.get(name, ())))
        if ours == theirs:
            continue
        if missing := ours - theirs:
            difference.missing[name] = sorted(missing)
        if surplus := theirs - ours:
            difference.surplus[name] = sorted(surplus)
    return difference


def _layout(one: bytes) -> tuple[slice, slice, slice]:
    """Where key, end and value stand in *one*: each is an attribute within an attribute."""
    places = {_KEY: slice(0), _KEY_END: slice(0), _DATA: slice(0)}
    at = 4
    while at + 8 <= len(one):
        size, kind = _HEAD.unpack_from(one, at)
        if size < 4:
            break
        if kind & 0x3FFF in places:
            inner = _HEAD.unpack_from(one, at + 4)[0]
            places[kind & 0x3FFF] = slice(at + 8, at + 4 + inner)
        at += (size + 3) & ~3
    return places[_KEY], places[_KEY_END], places[_DATA]
