"""Blocks of addresses with exceptions, and which of them an address is in.

A block in a rule matches pods too when it holds their address (as Kubernetes' judges have it). So what blocks an
address is in becomes part of its identity; :class:`BlockIndex` cuts the address space at every block's border once,
and answers by bisection.
"""

from __future__ import annotations

import hashlib
import ipaddress
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Block:
    """A network without its *exceptions* (each inside it)."""

    network: Network
    exceptions: tuple[Network, ...] = ()

    def holds(self, address: Address) -> bool:
        if address.version != self.network.version:
            return False
        return address in self.network and not any(address in exception for exception in self.exceptions)

    def describe(self) -> str:
        less = f" except {', '.join(map(str, self.exceptions))}" if self.exceptions else ""
        return f"{self.network}{less}"

    def intervals(self) -> Iterator[tuple[int, int]]:
        """First and last address as numbers, exceptions cut out."""
        at, end = int(self.network.network_address), int(self.network.broadcast_address)
        for first, last in sorted((int(e.network_address), int(e.broadcast_address)) for e in self.exceptions):
            if first > at:
                yield at, first - 1
            at = max(at, last + 1)
        if at <= end:
            yield at, end


@dataclass(frozen=True, slots=True)
class BlockGroup:
    """The blocks of one peer, matched when any of them does; *key* is made of the content, so it is stable."""

    blocks: tuple[Block, ...]
    key: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        text = ";".join(sorted(block.describe() for block in self.blocks))
        object.__setattr__(self, "key", hashlib.sha256(text.encode()).hexdigest()[:24])

    def holds(self, address: Address) -> bool:
        return any(block.holds(address) for block in self.blocks)

    def describe(self) -> str:
        shown = ", ".join(block.describe() for block in self.blocks[:4])
        return shown if len(self.blocks) <= 4 else f"{shown} and {len(self.blocks) - 4} more"


class BlockIndex:
    """Every border of every group, with the set of groups (their keys) that holds between two borders."""

    def __init__(self, groups: Iterable[BlockGroup]) -> None:
        unique = {group.key: group for group in groups}
        self._keys = sorted(unique)
        self._starts: dict[int, list[int]] = {4: [0], 6: [0]}
        self._masks: dict[int, list[int]] = {4: [0], 6: [0]}
        self._sets: dict[int, frozenset[str]] = {0: frozenset()}
        for version in (4, 6):
            self._sweep(version, [unique[key] for key in self._keys])

    def _sweep(self, version: int, groups: list[BlockGroup]) -> None:
        events: dict[int, dict[int, int]] = {}
        for bit, group in enumerate(groups):
            for block in group.blocks:
                if block.network.version != version:
                    continue
                for first, last in block.intervals():
                    for at, step in ((first, 1), (last + 1, -1)):
                        here = events.setdefault(at, {})
                        here[bit] = here.get(bit, 0) + step
        held = [0] * len(groups)
        mask, starts, masks = 0, [0], [0]
        for at in sorted(events):
            for bit, step in events[at].items():
                held[bit] += step
                mask = mask | (1 << bit) if held[bit] else mask & ~(1 << bit)
            if at == 0:
                masks[0] = mask
            elif mask != masks[-1]:
                starts.append(at)
                masks.append(mask)
        self._starts[version], self._masks[version] = starts, masks

    def groups_of(self, address: Address) -> frozenset[str]:
        """Keys of the groups that hold *address*."""
        at = bisect_right(self._starts[address.version], int(address)) - 1
        return self._as_set(self._masks[address.version][at])

    def cells(self, version: int) -> Iterator[tuple[int, int, frozenset[str]]]:
        """First and last address, and the groups there: the whole space of *version*, in order."""
        end = (1 << (32 if version == 4 else 128)) - 1
        starts = self._starts[version]
        for number, (first, mask) in enumerate(zip(starts, self._masks[version], strict=True)):
            last = starts[number + 1] - 1 if number + 1 < len(starts) else end
            if first <= last:
                yield first, last, self._as_set(mask)

    def _as_set(self, mask: int) -> frozenset[str]:
        found = self._sets.get(mask)
        if found is None:
            found = frozenset(key for bit, key in enumerate(self._keys) if mask >> bit & 1)
            self._sets[mask] = found
        return found
