"""One nftables table for all pods: address translation, published ports.

A pod without published ports changes nothing here: its rules match by the interfaces' prefix and the pool. A
published port is one element of a map. The table is made in one transaction, checked by the ruleset's generation
number, and made anew when somebody flushed the ruleset.

It lets through and drops nothing, since each chain more costs every packet something; who may send what, and that
only published ports are reached from elsewhere, is the other table's (:mod:`casemate.network.firewall.rules`). What
leaves the pool for elsewhere bears the host's address.

Other firewalls: an accept in one table does not overrule a drop in another. Where the ``filter FORWARD`` chain of
iptables drops (Docker and ufw set that policy), two accept rules for our interfaces are inserted *there*; a
drop anywhere else is reported by :func:`forward_obstacles`, not touched.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Literal

from casemate.host import nft, nft_netlink, programs
from casemate.host.netlink import attributes
from casemate.host.nft_netlink import DELETE_ELEMENTS, NEW_ELEMENTS, Batch, NftSocket, element
from casemate.network.plan import PodLink, Publish, check_pool, check_prefix
from casemate.spec.errors import Conflict, HostLacks, ProgramFailed

_IPTABLES_TIMEOUT_S = 15.0
#: Bound on copies of one rule that are removed.
_MAX_RULES = 64
_FORWARD_SYSCTL = "/proc/sys/net/ipv4/ip_forward"
#: Base chains that must be there for the table to be whole.
_CHAINS = {"pre", "ported", "out", "post"}
_DROP, _FORWARD_HOOK = 0, 2
#: Others change rules faster than they can be read.
_UNREAD = (-2, -2)
_IPTABLES = ("ip", "filter", "FORWARD")
#: Protocol and port, each padded to a register of 4 bytes; address and port.
_PORT_KEY, _TARGET = struct.Struct("!B3xH2x"), struct.Struct("!4sH2x")
_PROTOCOLS: dict[Literal["tcp", "udp"], int] = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_PROTOCOL_NAMES: dict[int, Literal["tcp", "udp"]] = {number: name for name, number in _PROTOCOLS.items()}
_ANY = "0.0.0.0"  # noqa: S104 - the value, not a bind


class PortTaken(Conflict):
    code = "network.port_taken"
    title = "The host's port is taken"
    remedy = "Publish another port of the host, or stop what listens there: `ss -lntup`."


@dataclass(frozen=True, slots=True)
class Published:
    """An element of the map as it is in the kernel."""

    port: Publish
    address: str


def base_script(table: str, prefix: str, pool: str) -> str:
    """The table, empty of elements, as nft(8) text. Adding it again over a whole one would double its rules.

    Every first packet meets it: to ask whether an address is the host's own takes a look into its routes, so pods'
    addresses, which are none of them, are let on before.
    """
    nft.check_table_name(table)
    ours = f'"{check_prefix(prefix)}*"'
    network = check_pool(pool)
    return f"""\
add table ip {table}
add map ip {table} published {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add map ip {table} published_at {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
add set ip {table} hairpin {{ type ipv4_addr . ipv4_addr; }}
add chain ip {table} ported
add rule ip {table} ported dnat ip to ip daddr . meta l4proto . th dport map @published_at
add rule ip {table} ported dnat ip to meta l4proto . th dport map @published
add chain ip {table} pre {{ type nat hook prerouting priority dstnat; policy accept; }}
add rule ip {table} pre ip daddr {network} accept
add rule ip {table} pre fib daddr type local jump ported
add chain ip {table} out {{ type nat hook output priority -100; policy accept; }}
add rule ip {table} out fib daddr type local jump ported
add chain ip {table} post {{ type nat hook postrouting priority srcnat; policy accept; }}
add rule ip {table} post ct status dnat ip saddr . ip daddr @hairpin masquerade
add rule ip {table} post ip saddr 127.0.0.0/8 oifname {ours} masquerade
add rule ip {table} post ip saddr {network} oifname != {ours} masquerade
"""


class Nat:
    """Our table on this host. Everything is idempotent."""

    def __init__(self, table: str, prefix: str, pool: str) -> None:
        self.table = nft.check_table_name(table)
        self.prefix = check_prefix(prefix)
        self.pool = str(check_pool(pool))
        self._nft: nft.Nft | None = None
        self._socket: NftSocket | None = None
        self._generation = -1
        #: Of our rules, when the table was seen to be whole last.
        self._fingerprints: dict[str, tuple[int, ...]] = {}
        #: What iptables' FORWARD was like when it was last seen to let our packets through.
        self._open_at: tuple[int, int] | None = None
        self._generations = nft.Generations()
        self._lock = asyncio.Lock()

    @property
    def nft(self) -> nft.Nft:
        """The library's context, loaded when first needed."""
        if self._nft is None:
            self._nft = nft.Nft()
        return self._nft

    @property
    def socket(self) -> NftSocket:
        """For elements: the library takes 90 us and more for each, and lists the table to take one out."""
        if self._socket is None:
            self._socket = NftSocket()
        return self._socket

    def unload(self) -> None:
        """Let go of the library, which is loaded again when needed."""
        if self._nft is not None:
            self._nft.close()
            self._nft = None

    def close(self) -> None:
        self.unload()
        self._generations.close()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def is_whole(self) -> bool:
        """Whether the table is there with all its chains, and their rules as they were; 20 us while nobody changed any
        rule."""
        if self._generations.now() == self._generation:
            return True
        # Not through the library, which would be loaded for it.
        try:
            found = self.socket.fingerprints(self.table, nft_netlink.IPV4)
            asleep = self.socket.is_dormant(self.table, nft_netlink.IPV4)
        except nft.NftFailed as error:
            # Others change rules faster than they can be read: it was whole, and is looked at again soon.
            if self._generation >= 0 and error.facts.get("errno") == "EINTR":
                return True
            raise
        if asleep or {name for name, ours in found.items() if ours} != _CHAINS:
            return False
        if self._fingerprints and found != self._fingerprints:
            return False
        self._fingerprints = found
        self._generation = self._generations.now()
        return True

    async def ensure(self, links: Sequence[PodLink] = ()) -> list[str]:
        """Make the table when it is not whole, with the ports of *links* in it, and let packets be forwarded.

        Answers what was done, in lines for the journal; an empty list when all was well, which takes 50 us while
        nobody changes any rule. Calls at the same time wait for one another.
        """
        async with self._lock:
            return await self._ensure(links)

    async def _ensure(self, links: Sequence[PodLink]) -> list[str]:
        done: list[str] = []
        if not self.is_whole():
            self.rebuild(links)
            done.append(f"made nftables table ip {self.table} with the published ports of {len(links)} pods")
        if switch_forwarding_on():
            done.append("switched net.ipv4.ip_forward on: pods reach other networks through this host")
        if _forward() not in (self._open_at, _UNREAD) and await self._open_forward():
            done.append(f"inserted accept rules for {self.prefix}* into iptables' FORWARD chain, whose policy is DROP")
        self._open_at = _forward()
        self._generation = self._generations.now()
        return done

    def rebuild(self, links: Sequence[PodLink]) -> None:
        """Replace the whole table in one transaction."""
        script = [f"add table ip {self.table}", f"delete table ip {self.table}"]
        script.append(base_script(self.table, self.prefix, self.pool).rstrip())
        for name, elements in _elements(links).items():
            script.extend(f"add element ip {self.table} {name} {{ {_text(element)} }}" for element in elements)
        self.nft.run("\n".join(script) + "\n")
        self._fingerprints = self.socket.fingerprints(self.table, nft_netlink.IPV4)
        self._generation = self._generations.now()

    def publish(self, link: PodLink) -> None:
        """Add the ports of *link* in one transaction; none costs nothing. Raises :class:`PortTaken`."""
        if not link.ports:
            return
        for port in link.ports:
            check_free(port)
        batch = Batch(self.table, nft_netlink.IPV4)
        for name, rows in _packed(link).items():
            batch.elements(NEW_ELEMENTS, name, (_element(*row) for row in rows))
        try:
            self._commit(batch)
        except nft.NftFailed as error:
            if error.facts.get("errno") == "EEXIST":
                taken = ", ".join(port.describe() for port in link.ports)
                raise PortTaken(f"another pod has published one of: {taken}", pod=link.pod) from error
            raise

    def _commit(self, batch: Batch) -> None:
        was_whole = self._generations.now() == self._generation
        self.socket.commit(batch)
        if was_whole:
            self._follow()

    def _follow(self) -> None:
        """Our own change, and nobody else's, moved the generation on."""
        self._generation = self._generations.now()

    def withdraw(self, link: PodLink) -> int:
        """Take the ports of *link* back, those that are its own; how many. As long with any number of other pods'."""
        wanted: list[tuple[str, bytes]] = []
        for name, rows in _packed(link).items():
            for key, value in rows:
                # By now it may be another pod's: what a map holds is asked, one by one.
                if self.socket.value_of(self.table, name, key, nft_netlink.IPV4) == (value or b""):
                    wanted.append((name, key))
        return self._take(wanted)

    def unpublish(self, address: str) -> int:
        """Remove every element that leads to *address*, whichever ports they are; how many. Lists all."""
        packed = IPv4Address(address).packed
        found = [(name, key) for name, key, value in self._kernel_elements() if (value or key)[:4] == packed]
        return self._take(found)

    def _take(self, wanted: Sequence[tuple[str, bytes]]) -> int:
        if not wanted:
            return 0
        batch = Batch(self.table, nft_netlink.IPV4)
        for name, key in wanted:
            batch.elements(DELETE_ELEMENTS, name, [_element(key)])
        self._commit(batch)
        return sum(name != "hairpin" for name, _ in wanted)

    def published(self) -> list[Published]:
        """The published ports as the kernel has them."""
        found = []
        for name, key, value in self._kernel_elements():
            if name == "hairpin":
                continue
            host, rest = (key[:4], key[4:]) if name == "published_at" else (bytes(4), key)
            protocol, host_port = _PORT_KEY.unpack(rest)
            address, pod_port = _TARGET.unpack(value)
            port = Publish(_PROTOCOL_NAMES[protocol], host_port, pod_port, str(IPv4Address(host)))
            found.append(Published(port, str(IPv4Address(address))))
        return found

    def _kernel_elements(self) -> list[tuple[str, bytes, bytes]]:
        """Map or set, key, and value (empty in the set) of every element; nothing where the table is not there."""
        return [
            (name, key, dict(attributes(data)).get(1, b""))
            for name in ("published", "published_at", "hairpin")
            for key, _, data in self.socket.elements(self.table, name, nft_netlink.IPV4)
        ]

    async def remove(self) -> list[str]:
        """Take away the table and our rules in FORWARD; what was removed, in lines."""
        done = []
        # inet: the identity firewall's, of the same name.
        for family in ("ip", "inet"):
            if nft_netlink.delete_table(family, self.table):
                done.append(f"removed nftables table {family} {self.table}")
        for rule in self._forward_rules():
            found = 0
            while found < _MAX_RULES and await _iptables("-C", rule) and await _iptables("-D", rule):
                found += 1
            if found:
                done.append(f"removed from iptables' FORWARD chain: {' '.join(rule)}")
        self._generation, self._open_at = -1, None
        return done

    def is_as_left(self) -> bool:
        """Whether nothing needs to be done: our table is whole, and iptables' FORWARD is as it was last seen."""
        return self.is_whole() and _forward() in (self._open_at, _UNREAD)

    async def _open_forward(self) -> bool:
        """Insert our accept rules where iptables' FORWARD drops; True when one was missing."""
        if _forward()[0] != _DROP:
            return False
        changed = False
        for rule in self._forward_rules():
            if not await _iptables("-C", rule):
                await _iptables("-I", rule, check=True)
                changed = True
        return changed

    def _forward_rules(self) -> list[list[str]]:
        comment = ["-m", "comment", "--comment", f"casemate:{self.table}"]
        answers = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED,DNAT"]
        return [
            ["-i", f"{self.prefix}+", *comment, "-j", "ACCEPT"],
            ["-o", f"{self.prefix}+", *answers, *comment, "-j", "ACCEPT"],
        ]

    def forward_obstacles(self, chains: Sequence[nft_netlink.BaseChain] | None = None) -> list[str]:
        """Base chains of others that drop forwarded packets by policy and are not iptables' own; for the doctor."""
        return [
            f"{one.family} {one.table} {one.name}"
            for one in (nft_netlink.base_chains() if chains is None else chains)
            if one.hook == _FORWARD_HOOK and one.policy == _DROP and (one.family, one.table, one.name) != _IPTABLES
        ]


def _forward() -> tuple[int, int]:
    """Policy and number of rules of iptables' FORWARD: whoever changes it changes these; to look takes no program."""
    try:
        return nft_netlink.policy_and_rules("filter", nft_netlink.IPV4, "FORWARD")
    except nft.NftFailed as error:
        if error.facts.get("errno") == "EINTR":
            return _UNREAD
        raise


async def _iptables(action: str, rule: Sequence[str], *, check: bool = False) -> bool:
    argv = ["iptables", "-w", "10", action, "FORWARD", *rule]
    try:
        done = await programs.run(argv, timeout_s=_IPTABLES_TIMEOUT_S, check=check)
    except programs.ProgramMissing:
        return False
    except ProgramFailed:
        if check:
            raise
        return False
    return done.returncode == 0


def _packed(link: PodLink) -> dict[str, list[tuple[bytes, bytes]]]:
    """Key and value, as the kernel has them, of each element for the ports of *link*."""
    found: dict[str, list[tuple[bytes, bytes]]] = {}
    own = IPv4Address(link.address).packed
    for port in link.ports:
        key, value = _PORT_KEY.pack(_PROTOCOLS[port.protocol], port.host_port), _TARGET.pack(own, port.pod_port)
        if port.host_address == _ANY:
            found.setdefault("published", []).append((key, value))
        else:
            at = IPv4Address(port.host_address).packed + key
            found.setdefault("published_at", []).append((at, value))
    if link.ports:
        found["hairpin"] = [(own + own, b"")]
    return found


def _element(key: bytes, value: bytes = b"") -> bytes:
    return element(key, data=nft_netlink.value(value) if value else b"")


def _elements(links: Sequence[PodLink]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {"published": [], "published_at": [], "hairpin": []}
    for link in links:
        for port in link.ports:
            value = {"concat": [link.address, port.pod_port]}
            key: list[object] = [port.protocol, port.host_port]
            name = "published"
            if port.host_address != _ANY:
                key.insert(0, port.host_address)
                name = "published_at"
            found[name].append([{"concat": key}, value])
        if link.ports:
            found["hairpin"].append({"concat": [link.address, link.address]})
    return found


def _text(element: Any) -> str:
    if isinstance(element, dict):
        return " . ".join(str(part) for part in element["concat"])
    return " : ".join(_text(part) for part in element)


def switch_forwarding_on() -> bool:
    """Switch ip_forward on; False when it was. Raises :class:`HostLacks` where /proc/sys may not be written."""
    if Path(_FORWARD_SYSCTL).read_bytes().strip() == b"1":
        return False
    try:
        Path(_FORWARD_SYSCTL).write_bytes(b"1")
    except OSError as error:
        raise HostLacks(
            f"{_FORWARD_SYSCTL} is 0 and cannot be set: {error.strerror}", remedy="Run `sysctl net.ipv4.ip_forward=1`."
        ) from error
    return True


def check_free(port: Publish) -> None:
    """Raise :class:`PortTaken` when a program of the host listens where *port* would be published.

    Without this the port would silently be taken away from that program.
    """
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC) as probe:
        if kind == socket.SOCK_STREAM:
            # Connections in TIME_WAIT are no listener.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.host_address, port.host_port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(
                    f"{port.host_address}:{port.host_port}/{port.protocol} is in use by a program of the host",
                    port=port.host_port,
                ) from error
            if error.errno == errno.EADDRNOTAVAIL:
                raise PortTaken(f"{port.host_address} is not an address of this host", port=port.host_port) from error
            raise
