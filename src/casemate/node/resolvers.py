"""The name servers that a pod gets: those of the settings, else those of the host that a pod can reach."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from casemate.spec.settings import Settings

#: resolv.conf of the host, and the real one behind systemd-resolved's stub on 127.0.0.53.
FILES = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
MAX_BYTES = 64 << 10
#: resolv.conf(5): MAXNS.
MAX_SERVERS = 3


def parse(content: str) -> tuple[str, ...]:
    """The reachable IPv4 name servers of a resolv.conf: a loopback address is the host's own, a pod cannot reach it."""
    found: list[str] = []
    for line in content.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ipaddress.IPv4Address(words[1])
        except ValueError:
            continue
        if not address.is_loopback and not address.is_unspecified and str(address) not in found:
            found.append(str(address))
    return tuple(found[:MAX_SERVERS])


def name_servers(settings: Settings, files: tuple[str, ...] = FILES) -> tuple[str, ...]:
    """Name servers for a new pod; empty when the host has none that a pod can reach."""
    if settings.texts("network.dns"):
        return settings.texts("network.dns")
    for path in files:
        try:
            with Path(path).open("rb") as file:
                found = parse(file.read(MAX_BYTES).decode("utf-8", "replace"))
        except OSError:
            continue
        if found:
            return found
    return ()
