"""Addresses of pods: /32 out of the pool, unique, stable for the pod's life. Pure.

The first and the last address of the pool are left out; others are used whatever their last byte, since a routed /32
has neither network nor broadcast address. A new pod gets the address after the one that was given last, so that an
address rests as long as the pool allows before it is used anew (caches and connection tracking forget meanwhile).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

from casemate.node.errors import AddressesExhausted
from casemate.spec.settings import SettingInvalid


@dataclass(frozen=True, slots=True)
class Pool:
    """Addresses from *first* to *last* as numbers, both included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1


def parse_pool(text: str) -> Pool:
    """The setting ``network.pool`` (CIDR form); raises :class:`SettingInvalid`."""
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise SettingInvalid(f"network.pool {text!r}: {error}") from error
    if not 8 <= network.prefixlen <= 29:
        raise SettingInvalid(f"network.pool {text!r} has prefix /{network.prefixlen}; /8 to /29 are allowed")
    return Pool(int(network.network_address) + 1, int(network.broadcast_address) - 1)


def next_address(pool: Pool, last_given: int, is_used: Callable[[int], bool]) -> int:
    """The first free address after *last_given*, around the pool's end; :class:`AddressesExhausted` without one."""
    start = last_given + 1 if pool.first <= last_given < pool.last else pool.first
    for offset in range(pool.size):
        number = pool.first + (start - pool.first + offset) % pool.size
        if not is_used(number):
            return number
    raise AddressesExhausted(f"all {pool.size} addresses of network.pool are given to pods")


#: Texts are looked up, not made: `ps` shows thousands of addresses.
_OCTETS = tuple(str(number) for number in range(256))


def address_text(number: int | None) -> str:
    """``10.209.0.1``, or nothing for None."""
    if number is None:
        return ""
    return f"{_OCTETS[number >> 24]}.{_OCTETS[number >> 16 & 255]}.{_OCTETS[number >> 8 & 255]}.{_OCTETS[number & 255]}"
