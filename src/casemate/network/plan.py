"""What a pod's network identity is made of: pure values, from the pod's id and address.

One veth pair for each pod, routed /32, no bridge. The gateway 169.254.1.1 is the same in every pod: it is the
host's end of the pair. Both ends know each other's hardware address from the start, so nothing is asked by ARP
and nobody can answer for somebody else. IPv6 is not offered yet: it is off in the pod and on the host's end,
so that no link-local address gives a way around the IPv4 rules.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from casemate.spec.errors import InvalidArgument
from casemate.spec.ids import check_id

#: The address that every pod sends to; link-local, so that it cannot meet a real one (RFC 3927).
GATEWAY = "169.254.1.1"
#: Linux: IFNAMSIZ is 16 with its null byte.
_MAX_INTERFACE = 15
_PREFIX = re.compile(r"[a-z][a-z0-9-]{0,5}[a-z-]\Z")


@dataclass(frozen=True, slots=True)
class Publish:
    """A port of the host that leads to a port of the pod; *host_address* 0.0.0.0 means all of the host's."""

    protocol: Literal["tcp", "udp"]
    host_port: int
    pod_port: int
    host_address: str = "0.0.0.0"  # noqa: S104 - what `-p 80:80` means in the field

    def describe(self) -> str:
        return f"{self.host_address}:{self.host_port}/{self.protocol} leads to port {self.pod_port}"


@dataclass(frozen=True, slots=True)
class PodLink:
    """A pod's link: the namespace's *pin*, the host's *interface*, address, hardware addresses, MTU, ports."""

    pod: str
    address: str
    interface: str
    pin: Path
    mtu_bytes: int
    ports: tuple[Publish, ...] = ()
    pod_interface: str = "eth0"
    #: The pod's end is a virtual machine's: a tap, and no namespace.
    tap: bool = False
    #: The pod's end has a network stack of its own, which asks for the gateway by ARP.
    asks: bool = False

    @property
    def host_mac(self) -> str:
        return _mac(0, self.address)

    @property
    def pod_mac(self) -> str:
        return _mac(1, self.address)

    def describe(self) -> list[str]:
        """What :func:`casemate.network.links.apply` does, a line each."""
        if self.tap:
            return [
                f"make the tap {self.interface}, MTU {self.mtu_bytes}",
                f"route {self.address}/32 through it",
                *(port.describe() for port in self.ports),
            ]
        return [
            f"make a network namespace, pinned at {self.pin}",
            f"make {self.interface} with its other end {self.pod_interface} inside, MTU {self.mtu_bytes}",
            f"route {self.address}/32 through {self.interface}; inside, everything through {GATEWAY}",
            *(port.describe() for port in self.ports),
        ]


def interface_name(prefix: str, pod: str) -> str:
    """The name of the host's interface of *pod*: *prefix* and the first 8 digits of its id."""
    name = check_prefix(prefix) + check_id(pod)[:8]
    assert len(name) <= _MAX_INTERFACE
    return name


def check_prefix(prefix: str) -> str:
    """*prefix*, when it can begin an interface's name and stand in a firewall rule."""
    if not _PREFIX.match(prefix):
        raise InvalidArgument(f"network.link_prefix {prefix[:40]!r} is not 2 to 7 of [a-z0-9-] that end in no digit")
    return prefix


@lru_cache(maxsize=8)
def check_pool(pool: str) -> ipaddress.IPv4Network:
    """The network that pods' addresses come from."""
    try:
        network = ipaddress.IPv4Network(pool)
    except ValueError as error:
        raise InvalidArgument(f"network.pool {pool[:60]!r} is not an IPv4 network: {error}") from error
    if network.prefixlen < 8 or network.prefixlen > 30 or network.is_loopback or network.is_multicast:
        raise InvalidArgument(f"network.pool {pool}: allowed are /8 to /30 of unicast addresses")
    return network


def check_address(address: str, pool: str) -> str:
    """*address*, when it is one of *pool*'s and neither its first nor its last."""
    network = check_pool(pool)
    try:
        value = ipaddress.IPv4Address(address)
    except ValueError as error:
        raise InvalidArgument(f"address {address[:40]!r} is not IPv4") from error
    if value not in network or value in (network.network_address, network.broadcast_address):
        raise InvalidArgument(f"address {address} is not a host's address in network.pool {pool}")
    return str(value)


def check_publish(port: Publish) -> Publish:
    """*port*, when its numbers and its address can be."""
    for what, number in (("host", port.host_port), ("container", port.pod_port)):
        if not 1 <= number <= 65535:
            raise InvalidArgument(f"{what} port {number} is outside 1..65535")
    if port.protocol not in ("tcp", "udp"):
        raise InvalidArgument(f"protocol {port.protocol!r} is neither tcp nor udp")
    try:
        host = ipaddress.IPv4Address(port.host_address)
    except ValueError as error:
        raise InvalidArgument(f"host address {port.host_address[:40]!r} is not IPv4") from error
    if host.is_multicast:
        raise InvalidArgument(f"host address {port.host_address} is a multicast address")
    return port


def pod_link(
    pod: str,
    address: str,
    *,
    prefix: str,
    pool: str,
    netns_folder: Path,
    mtu_bytes: int,
    ports: Sequence[Publish] = (),
    tap: bool = False,
    asks: bool = False,
) -> PodLink:
    """The link of *pod*, every value checked. Raises :class:`InvalidArgument`."""
    if not 576 <= mtu_bytes <= 65535:
        raise InvalidArgument(f"MTU {mtu_bytes} is outside 576..65535")
    checked = tuple(check_publish(port) for port in ports)
    keys = [(port.protocol, port.host_address, port.host_port) for port in checked]
    if len(set(keys)) != len(keys):
        raise InvalidArgument("the same host port is published twice")
    return PodLink(
        check_id(pod),
        check_address(address, pool),
        interface_name(prefix, pod),
        netns_folder / pod,
        mtu_bytes,
        checked,
        tap=tap,
        asks=asks,
    )


def _mac(side: int, address: str) -> str:
    """A locally administered unicast hardware address (IEEE 802: second bit set, first clear), unique by address."""
    return bytes([0x0E, side, *ipaddress.IPv4Address(address).packed]).hex(":")
