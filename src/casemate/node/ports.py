"""Published ports: who holds which port of the host, and which one is free.

A pod holds its ports while a container of it runs or waits for its restart, as hostd publishes them. Those of a pod at
rest are its to ask for again: they are chosen for nobody else, but whoever names one gets it. What listens on the host
itself is read from /proc/net, since a DNAT rule would take its traffic away without a word.
"""

from __future__ import annotations

import ipaddress
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec

from casemate.node.errors import PortTaken
from casemate.node.rows import ALIVE
from casemate.spec.api import PortRequest
from casemate.spec.errors import InvalidArgument
from casemate.spec.workload import PodSpec

#: RFC 6335: dynamic ports.
FIRST_DYNAMIC, LAST_DYNAMIC = 49_152, 65_535
_ANY = "0.0.0.0"  # noqa: S104 - compared with, not bound
_LISTEN = "0A"
_HOLDING = ALIVE | {"restarting", "removing"}
Listening = frozenset[tuple[str, str, int]]


def listening() -> Listening:
    """(protocol, address, port) of what listens on the host, IPv4 and IPv6 alike (IPv6 as the any address)."""
    found: set[tuple[str, str, int]] = set()
    for protocol in ("tcp", "udp"):
        for suffix in ("", "6"):
            try:
                lines = Path(f"/proc/net/{protocol}{suffix}").read_text("ascii").splitlines()[1:]
            except OSError:
                continue
            for line in lines:
                fields = line.split()
                # A connected UDP socket has a remote port; it takes nothing from others.
                is_open = fields[3] == _LISTEN if protocol == "tcp" else fields[2].endswith(":0000")
                if is_open:
                    address, _, port = fields[1].partition(":")
                    text = _address(address) if not suffix else _ANY
                    if text is not None:
                        found.add((protocol, text, int(port, 16)))
    return frozenset(found)


def reserve(
    db: sqlite3.Connection,
    pod: str,
    ports: tuple[PortRequest, ...],
    in_use: Listening,
    pick: Callable[[int], int],
) -> tuple[PortRequest, ...]:
    """Take *ports* for *pod*, choosing those whose host port is 0; raises :class:`PortTaken`.

    *pick* answers a random number below its argument. Call it in the transaction that starts the pod.
    """
    db.execute("DELETE FROM ports WHERE pod=?", (pod,))  # those of its last start
    chosen: list[PortRequest] = []
    for port in ports:
        _check_address(port)
        if port.host_port:
            why = _holder(db, port, in_use, pod)
            if why:
                raise PortTaken(
                    f"{port.host_address}:{port.host_port}/{port.protocol} is held by {why}", port=port.host_port
                )
        else:
            port = _free(db, port, in_use, pick)  # noqa: PLW2901
        db.execute("INSERT INTO ports VALUES (?, ?, ?, ?)", (pod, port.protocol, port.host_address, port.host_port))
        chosen.append(port)
    return tuple(chosen)


def _free(db: sqlite3.Connection, port: PortRequest, in_use: Listening, pick: Callable[[int], int]) -> PortRequest:
    count = LAST_DYNAMIC - FIRST_DYNAMIC + 1
    start = pick(count)
    asked = "SELECT 1 FROM ports WHERE protocol=? AND host_port=?"
    for offset in range(count):
        candidate = msgspec.structs.replace(port, host_port=FIRST_DYNAMIC + (start + offset) % count)
        at_rest = db.execute(asked, (port.protocol, candidate.host_port)).fetchone()
        if at_rest is None and not _holder(db, candidate, in_use, ""):
            return candidate
    raise PortTaken(f"no port from {FIRST_DYNAMIC} to {LAST_DYNAMIC} is free")


def _holder(db: sqlite3.Connection, port: PortRequest, in_use: Listening, pod: str) -> str:
    """Who holds *port* already, as text, by name in the project of *pod* alone; empty when nobody does."""
    query = (
        "SELECT p.host_address, c.name, c.status, c.project=(SELECT project FROM pods WHERE id=?) "
        "FROM ports p JOIN containers c ON c.pod=p.pod WHERE p.protocol=? AND p.host_port=?"
    )
    for address, name, status, is_neighbour in db.execute(query, (pod, port.protocol, port.host_port)):
        if status in _HOLDING and _overlap(address, port.host_address):
            return f"container {name}" if is_neighbour else "a container of another project"
    for protocol, address, number in in_use:
        if protocol == port.protocol and number == port.host_port and _overlap(address, port.host_address):
            return "a program of the host"
    return ""


def _overlap(one: str, other: str) -> bool:
    return one == other or _ANY in (one, other)


def _check_address(port: PortRequest) -> None:
    try:
        ipaddress.IPv4Address(port.host_address)
    except ValueError as error:
        raise InvalidArgument(f"host address {port.host_address!r} of a port is not IPv4") from error


def _address(text: str) -> str | None:
    """The dotted form of an address as /proc/net/tcp has it (32 bits in the host's byte order, here little endian)."""
    if len(text) != 8:
        return None
    return str(ipaddress.IPv4Address(bytes.fromhex(text)[::-1]))


def chosen(spec: PodSpec) -> tuple[PortRequest, ...]:
    """The ports of a pod that was made already."""
    return tuple(PortRequest(p.container_port, p.host_port, p.host_address, p.protocol) for p in spec.network.ports)
