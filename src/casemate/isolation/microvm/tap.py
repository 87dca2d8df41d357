"""A pod's network at this level: a tap, whose descriptor goes to QEMU, and the guest's own end of it.

A tap that is not persistent lives as long as its descriptor: it goes with QEMU, whoever was killed in between.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from casemate.host import tun
from casemate.isolation.microvm import frames
from casemate.isolation.microvm.errors import BundleUnsupported, NetworkFailed
from casemate.isolation.microvm.frames import Field, Tag

#: IFNAMSIZ less its end, and nothing that a path or a shell would take for its own.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\Z")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")


@dataclass(frozen=True, slots=True)
class GuestNetwork:
    """*tap*: the host's interface; *address* with its prefix length, *gateway*, *mac* and *mtu_bytes*: the guest's."""

    tap: str
    address: ipaddress.IPv4Interface
    gateway: ipaddress.IPv4Address
    mac: str
    mtu_bytes: int = 1500

    def fields(self) -> list[Field]:
        """What CONFIGURE says of it."""
        return [
            Field(Tag.MAC, bytes.fromhex(self.mac.replace(":", ""))),
            frames.u32(Tag.MTU, self.mtu_bytes),
            Field(Tag.ADDRESS, self.address.ip.packed + bytes([self.address.network.prefixlen])),
            Field(Tag.GATEWAY, self.gateway.packed),
        ]


class _Text(Struct, frozen=True, forbid_unknown_fields=True):
    tap: str
    address: str
    gateway: str
    mac: str
    mtu: int = 1500


def parse(text: str) -> GuestNetwork:
    """The network in an annotation (JSON). :class:`BundleUnsupported`."""
    try:
        found = msgspec.json.decode(text.encode(), type=_Text)
        address, gateway = ipaddress.IPv4Interface(found.address), ipaddress.IPv4Address(found.gateway)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BundleUnsupported(f"the network annotation: {error}") from error
    if not _NAME.match(found.tap) or not _MAC.match(found.mac) or not 576 <= found.mtu <= 65_535:
        raise BundleUnsupported(f"the network annotation: tap {found.tap!r}, mac {found.mac!r}, mtu {found.mtu}")
    return GuestNetwork(found.tap, address, gateway, found.mac, found.mtu)


def open_tap(name: str) -> int:
    """A descriptor of the tap *name*, made when it is not there; the caller closes it. :class:`NetworkFailed`."""
    try:
        return tun.open_tap(name)
    except OSError as error:
        raise NetworkFailed(f"tap {name}: {error.strerror}", interface=name) from error
