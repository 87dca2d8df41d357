"""What is dropped before any rule is asked, so that an explanation does not promise what no packet will do. Pure."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from casemate.hostd.protocol_firewall import METADATA
from casemate.policy.identity import Endpoint, Kind

_METADATA = frozenset(map(ipaddress.ip_address, METADATA))
_LINK_LOCAL, _GATEWAY = ipaddress.IPv4Network("169.254.0.0/16"), ipaddress.ip_address("169.254.1.1")
#: Multicast, what is reserved above it, and broadcast.
_MULTICAST = ipaddress.IPv4Network("224.0.0.0/3")


class Guarded(NamedTuple):
    """*rule* is what records of such flows name."""

    rule: str
    why: str


def guarded(source: Endpoint, destination: Endpoint, pool: ipaddress.IPv4Network) -> Guarded | None:
    """What drops a connection of these two, whatever the rules say; *pool* is where pods have their addresses."""
    for end in (source, destination):
        if end.kind is not Kind.POD and any(address.version == 6 for address in end.addresses):
            return Guarded("Guard:ipv6", "pods have no IPv6, each packet of it is dropped and counted")
        if end.kind is not Kind.POD and any(address in pool for address in end.addresses):
            return Guarded("Guard:pool", "an address of the pool that no pod has")
    if source.kind is not Kind.POD:
        return None
    for address in destination.addresses:
        if address in _METADATA:
            return Guarded("Guard:metadata", "a cloud's metadata service, which answers with the machine's credentials")
        if address in _LINK_LOCAL and address != _GATEWAY:
            return Guarded("Guard:link_local", "an address of the link itself, which is the host's alone")
        if address in _MULTICAST:
            return Guarded("Guard:multicast", "multicast or broadcast, which leaves no pod")
    return None
