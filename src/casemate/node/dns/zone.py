"""What the node itself knows of names: its pods by project. Pure.

``NAME.PROJECT.casemate`` is a container or a pod that runs; a name without a dot is one of the asker's own project.
Neither is ever asked of a resolver outside: they would tell strangers how the services are called.
"""

from __future__ import annotations

import ipaddress

from casemate.node.dns import message
from casemate.node.dns.message import AAAA, ANY, NOERROR, NXDOMAIN, PTR, A

SUFFIX = "casemate"
#: A pod that starts anew has another address: its old one must not be believed long.
LIFETIME_S = 5
_LOOPBACK = {A: ipaddress.IPv4Address("127.0.0.1").packed, AAAA: ipaddress.IPv6Address("::1").packed}
Reply = tuple[int, list[tuple[int, int, bytes]]]


class Zone:
    """Pods by address, and addresses by project and name."""

    def __init__(self, pool: str) -> None:
        self._pool = ipaddress.ip_network(pool)
        self._pods: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._names: dict[tuple[str, str], dict[str, None]] = {}

    def put(self, address: str, project: str, names: tuple[str, ...]) -> None:
        self.drop(address)
        self._pods[address] = (project, names)
        for name in names:
            self._names.setdefault((project, name.lower()), {})[address] = None

    def drop(self, address: str) -> None:
        project, names = self._pods.pop(address, ("", ()))
        for name in names:
            key = (project, name.lower())
            found = self._names.get(key, {})
            found.pop(address, None)
            if not found:
                self._names.pop(key, None)

    def clear(self) -> None:
        self._pods.clear()
        self._names.clear()

    def project(self, viewer: str) -> str | None:
        """The project of the pod at *viewer*; None where no pod has that address."""
        found = self._pods.get(viewer)
        return found[0] if found is not None else None

    def answer(self, viewer_project: str, name: str, kind: int) -> Reply | None:
        """Code and records, where the name is ours to answer; None where it is for others."""
        if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, 6.3
            data = _LOOPBACK.get(kind)
            return NOERROR, [(kind, LIFETIME_S, data)] if data is not None else []
        if name.endswith((".in-addr.arpa", ".ip6.arpa")):
            return self._reverse(name, kind)
        if name == SUFFIX:
            return NOERROR, []
        if "." not in name:
            return self._forward(viewer_project, name, kind) if name else None
        if name.endswith(f".{SUFFIX}"):
            rest = name[: -len(SUFFIX) - 1]
            short, dot, project = rest.rpartition(".")
            if not dot:
                # A project's own name: there, or not.
                return (NOERROR, []) if any(rest == held for held, _ in self._names) else (NXDOMAIN, [])
            return self._forward(project, short, kind)
        return None

    def _forward(self, project: str, name: str, kind: int) -> Reply:
        addresses = self._names.get((project, name))
        if not addresses:
            return NXDOMAIN, []
        wanted = {A: 4, AAAA: 6}.get(kind, 4 if kind == ANY else 0)
        found = [ipaddress.ip_address(address) for address in addresses]
        return NOERROR, [
            (A if one.version == 4 else AAAA, LIFETIME_S, one.packed) for one in found if one.version == wanted
        ]

    def _reverse(self, name: str, kind: int) -> Reply | None:
        labels = name.split(".")
        if labels[-2:] != ["in-addr", "arpa"] or len(labels) != 6:
            return None
        try:
            address = ipaddress.IPv4Address(".".join(reversed(labels[:4])))
        except ValueError:
            return None
        if address.is_loopback:
            return NOERROR, [(PTR, LIFETIME_S, message.write_name("localhost"))] if kind == PTR else []
        if address not in self._pool:
            return None
        project, names = self._pods.get(str(address), ("", ()))
        if not names:
            return NXDOMAIN, []
        if kind not in (PTR, ANY):
            return NOERROR, []
        return NOERROR, [(PTR, LIFETIME_S, message.write_name(f"{one}.{project}.{SUFFIX}")) for one in names]
