"""A pod's name servers: the node's own resolver, or those of the settings or the host; and whom the resolver asks."""

from __future__ import annotations

from pathlib import Path

from casemate.spec.resolvers import (
    GATEWAY,
    MAX_RESOLVERS,
    SUFFIX,
    host_search,
    listed_resolvers,
    reachable_resolvers,
)
from casemate.spec.settings import Settings

#: resolv.conf of the host, and the real one behind systemd-resolved's stub on 127.0.0.53.
FILES = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
MAX_BYTES = 64 << 10


#: Resolvers that the node's own asks.
MAX_UPSTREAM = 8
#: search lists of resolv.conf(5): the C library takes six names.
MAX_SEARCH = 6


def upstream_servers(settings: Settings, files: tuple[str, ...] = FILES) -> tuple[str, ...]:
    """Whom the node's own resolver asks: the settings' servers, else the host's, its local stub too."""
    if settings.texts("network.dns"):
        return settings.texts("network.dns")[:MAX_UPSTREAM]
    return tuple(listed_resolvers(_read(files[0]))[:MAX_UPSTREAM])


def search_list(settings: Settings, project: str, files: tuple[str, ...] = FILES) -> tuple[str, ...]:
    """The search list of a pod of *project* that asks the node's own resolver: its project first, then the host's."""
    if not settings.flag("network.resolver"):
        return ()
    return (f"{project}.{SUFFIX}", *host_search(_read(files[0])))[:MAX_SEARCH]


def _read(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def name_servers(settings: Settings, mode: str = "pod", files: tuple[str, ...] = FILES) -> tuple[str, ...]:
    """Name servers for a new pod; empty when the host has none that a pod can reach."""
    if mode == "pod" and settings.flag("network.resolver"):
        return (GATEWAY,)
    if mode == "host":
        # Without any the host's own file serves as it is; a resolv.conf holds no ports.
        return tuple(text for text in settings.texts("network.dns") if "#" not in text)
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
