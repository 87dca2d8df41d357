"""The name servers that a pod gets: those of the settings, else those of the host that a pod can reach."""

from __future__ import annotations

from pathlib import Path

from casemate.spec.resolvers import MAX_RESOLVERS, reachable_resolvers
from casemate.spec.settings import Settings

#: resolv.conf of the host, and the real one behind systemd-resolved's stub on 127.0.0.53.
FILES = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
MAX_BYTES = 64 << 10


def name_servers(settings: Settings, files: tuple[str, ...] = FILES) -> tuple[str, ...]:
    """Name servers for a new pod; empty when the host has none that a pod can reach."""
    if settings.texts("network.dns"):
        return settings.texts("network.dns")
    for path in files:
        try:
            with Path(path).open("rb") as file:
                found = reachable_resolvers(file.read(MAX_BYTES).decode("utf-8", "replace"))
        except OSError:
            continue
        if found:
            return tuple(found[:MAX_RESOLVERS])
    return ()
