"""Name servers in the text of a resolv.conf(5), as the daemons on both sides of a pod read it. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

#: resolv.conf(5): MAXNS; the C library ignores more.
MAX_RESOLVERS = 3


#: A pod's gateway, where the node's own resolver answers.
GATEWAY = "169.254.1.1"
#: The names of pods end so: NAME.PROJECT.casemate.
SUFFIX = "casemate"
_NAME = re.compile(r"[a-zA-Z0-9_]([a-zA-Z0-9_.-]{0,251}[a-zA-Z0-9_])?\Z")


def listed_resolvers(host_resolv: str) -> list[str]:
    """Every resolver in the host's own resolv.conf text, as the host itself asks them; never the pods' gateway."""
    found = (str(one) for one in _nameservers(host_resolv) if not one.is_unspecified)
    return list(dict.fromkeys(one for one in found if one != GATEWAY))


def host_search(host_resolv: str) -> list[str]:
    """The search list of the host's resolv.conf text, names that cannot be left out."""
    for line in reversed(host_resolv.splitlines()):
        words = line.split()
        if words[:1] in (["search"], ["domain"]):
            return [word.rstrip(".") for word in words[1:7] if _NAME.match(word.rstrip("."))]
    return []


def reachable_resolvers(host_resolv: str) -> list[str]:
    """Of the host's own resolv.conf text, the resolvers that a pod can reach: IPv4, and not the host's loopback.

    An empty answer means that none can be reached (a stub such as 127.0.0.53): the caller looks into the stub's
    own list (/run/systemd/resolve/resolv.conf), or tells the user to set ``network.dns``.
    """
    return list(dict.fromkeys(
        str(one)
        for one in _nameservers(host_resolv)
        if isinstance(one, ipaddress.IPv4Address) and not one.is_loopback and not one.is_unspecified
    ))  # fmt: skip


def _nameservers(host_resolv: str) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses that resolv.conf's text names, as they stand there; what is none is passed over."""
    for line in host_resolv.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ipaddress.ip_address(words[1])
        except ValueError:
            continue
        yield address
