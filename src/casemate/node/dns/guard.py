"""Answers from outside that must not be believed: names of strangers that lead into the pool, or to the host.

A page or a program that follows its own name would otherwise be led to where only insiders may go (DNS rebinding).
Private networks (RFC 1918) are answered: companies have names for theirs; the firewall decides who may go there.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable

from casemate.policy.rules import name_matches

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_MAPPED = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))


def is_hosts(address: Address) -> bool:
    """Whether *address* is one of this host's own: a socket can be bound to it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError as error:
            # Only "not ours" clears an address; anything else is held against it.
            return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


class Guard:
    """*allowed*: patterns of names that may lead anywhere; *pool*: the pods' network."""

    def __init__(self, pool: str, allowed: Iterable[str] = (), hosts: Callable[[Address], bool] = is_hosts) -> None:
        self._pool = ipaddress.ip_network(pool)
        self._allowed = tuple(allowed)
        self._hosts = hosts

    def refused(self, name: str, addresses: Iterable[bytes]) -> Address | None:
        """The first of *addresses* that *name* may not lead to."""
        found = [ipaddress.ip_address(packed) for packed in addresses]
        if not found or any(name_matches(pattern, name) for pattern in self._allowed):
            return None
        return next((one for one in found if self._is_inside(one)), None)

    def _is_inside(self, address: Address) -> bool:
        if isinstance(address, ipaddress.IPv6Address):
            for network in _MAPPED:
                if address in network:
                    return self._is_inside(ipaddress.IPv4Address(address.packed[12:]))
        if address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast:
            return True
        if address.version == 4 and address.packed[0] == 0:
            return True
        if address.version == self._pool.version and address in self._pool:
            return True
        return self._hosts(address)
