"""Questions to the ring of flow records: what a client asks as SQL, and rows as the API's values."""

from __future__ import annotations

import ipaddress
import sqlite3
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from casemate.node.clock import rfc3339
from casemate.node.flows.conntrack import ICMP, ICMPV6, SCTP, TCP, UDP
from casemate.spec.api.flows import FlowEnd, FlowGap, FlowMap, FlowRow, MapEdge, MapNode
from casemate.spec.errors import InvalidArgument

MAX_ROWS = 10_000
PAGE = 500
MAX_DISTINCT = 50_000
#: Nodes of a map; outside addresses beyond are one node.
MAX_MAP_OUTSIDE = 40
MAX_MAP_EDGES = 5000
PROTOCOLS = {"tcp": TCP, "udp": UDP, "sctp": SCTP, "icmp": ICMP, "icmpv6": ICMPV6}
_NAMES = {number: name for name, number in PROTOCOLS.items()}
VERDICTS = ("allow", "audit", "referred", "deny")
#: Of connections that took place.
PASSED = VERDICTS[:3]

_COLUMNS = """
f.number, f.stamp, f.began, f.ended, f.source_address, f.source_port, f.destination_address, f.port, f.protocol,
f.verdict, f.rule, f.note, f.via, f.dns, f.tls, f.times, f.packets_out, f.bytes_out, f.packets_in, f.bytes_in,
s.kind, s.project, s.name, s.pod, s.identity, s.labels, d.kind, d.project, d.name, d.pod, d.identity, d.labels
"""
_FROM = "FROM flows f JOIN ends s ON s.number = f.source JOIN ends d ON d.number = f.destination"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records: each end as ``NAME``, ``PROJECT/NAME``, an address, a network, ``world`` or ``node``."""

    source: str = ""
    destination: str = ""
    either: str = ""
    verdict: tuple[str, ...] = ()
    since: float = 0.0
    until: float = float("inf")
    port: int = 0
    protocol: str = ""
    project: str = ""
    #: With an end in one of them; None: in any project, or in none.
    projects: frozenset[str] | None = None


def condition(wanted: Wanted) -> tuple[str, list[object]]:
    """The WHERE of *wanted*, and its values. Raises :class:`InvalidArgument`."""
    parts: list[str] = []
    values: list[object] = []
    for text, sides in ((wanted.source, "s"), (wanted.destination, "d"), (wanted.either, "sd")):
        if text:
            found = [_end(text, side) for side in sides]
            parts.append("(" + " OR ".join(one for one, _ in found) + ")")
            values += [value for _, some in found for value in some]
    if wanted.verdict:
        for word in wanted.verdict:
            if word not in VERDICTS:
                raise InvalidArgument(f"verdict {word[:40]!r} is none of {', '.join(VERDICTS)}")
        parts.append(f"f.verdict IN ({', '.join('?' * len(wanted.verdict))})")
        values += wanted.verdict
    if wanted.since:
        parts.append("(f.began >= ? OR f.ended >= ?)")
        values += [wanted.since, wanted.since]
    if wanted.until != float("inf"):
        parts.append("f.began <= ?")
        values.append(wanted.until)
    if wanted.port:
        parts.append("f.port = ?")
        values.append(wanted.port)
    if wanted.protocol:
        if wanted.protocol not in PROTOCOLS:
            raise InvalidArgument(f"protocol {wanted.protocol[:40]!r} is none of {', '.join(PROTOCOLS)}")
        parts.append("f.protocol = ?")
        values.append(PROTOCOLS[wanted.protocol])
    if wanted.project:
        parts.append("(s.project = ? OR d.project = ?)")
        values += [wanted.project, wanted.project]
    if wanted.projects is not None:
        marks = ", ".join("?" * len(wanted.projects))
        parts.append(f"(s.project IN ({marks}) OR d.project IN ({marks}))")
        values += [*wanted.projects, *wanted.projects]
    return " AND ".join(parts) or "1", values


def _end(text: str, side: str) -> tuple[str, list[object]]:
    column = "f.source_address" if side == "s" else "f.destination_address"
    if text in ("world", "node"):
        return f"{side}.kind = ?", [text]
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        project, slash, name = text.partition("/")
        if slash:
            return f"({side}.project = ? AND {side}.name = ?)", [project, name]
        if side == "d":
            return "(d.name = ? OR d.pod = ? OR f.dns = ? OR f.tls = ?)", [text] * 4
        return "(s.name = ? OR s.pod = ?)", [text, text]
    if network.num_addresses == 1:
        return f"{column} = ?", [str(network.network_address)]
    return f"in_network({column}, ?)", [str(network)]


def connect(path: str) -> sqlite3.Connection:
    """A reader's connection; raises ``sqlite3.OperationalError`` while there is no file."""
    if not Path(path).exists():
        raise sqlite3.OperationalError("no flow was recorded yet")
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA busy_timeout=2000")
    connection.create_function("in_network", 2, _in_network, deterministic=True)
    return connection


def _in_network(address: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(address) in _network(network)
    except ValueError:
        return False


@lru_cache(maxsize=64)
def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text)


def last(db: sqlite3.Connection, wanted: Wanted, limit: int) -> list[FlowRow]:
    """The newest *limit* records, the oldest of them first."""
    where, values = condition(wanted)
    query = f"SELECT {_COLUMNS} {_FROM} WHERE {where} ORDER BY f.number DESC LIMIT ?"
    return [_row(row) for row in reversed(db.execute(query, (*values, min(limit, MAX_ROWS))).fetchall())]


def distinct(db: sqlite3.Connection, wanted: Wanted) -> list[tuple[FlowRow, int]]:
    """Connections that differ in an end, a port or a name, each with how often it was seen; the most frequent first."""
    where, values = condition(wanted)
    query = (
        f"SELECT {_COLUMNS}, sum(f.times) AS seen {_FROM} WHERE {where} "
        "GROUP BY s.pod, f.source_address, d.pod, f.destination_address, f.protocol, f.port, f.dns "
        "ORDER BY seen DESC LIMIT ?"
    )
    return [(_row(row[:-1]), int(row[-1])) for row in db.execute(query, (*values, MAX_DISTINCT))]


def changed(db: sqlite3.Connection, wanted: Wanted, after: int, until: int) -> tuple[list[FlowRow], int]:
    """Records that began or ended with a stamp above *after* and up to *until*; and the stamp that was reached."""
    where, values = condition(wanted)
    query = f"SELECT {_COLUMNS} {_FROM} WHERE f.stamp > ? AND f.stamp <= ? AND {where} ORDER BY f.stamp LIMIT ?"
    rows = db.execute(query, (after, until, *values, PAGE)).fetchall()
    return [_row(row) for row in rows], int(rows[-1][1]) if len(rows) == PAGE else until


def newest_stamp(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT coalesce(max(stamp), 0) FROM flows").fetchone()[0])


def gaps(db: sqlite3.Connection, since: float, until: float) -> tuple[FlowGap, ...]:
    """Where records are missing."""
    query = "SELECT at, reason, count FROM gaps WHERE at >= ? AND at <= ? ORDER BY rowid DESC LIMIT 100"
    rows = db.execute(query, (since, min(until, 1e18))).fetchall()
    return tuple(FlowGap(rfc3339(at), reason, count) for at, reason, count in reversed(rows))


def _row(row: tuple[object, ...]) -> FlowRow:
    (number, _, began, ended, source_address, source_port, destination_address, port, protocol, verdict, rule, note,
     via, dns, tls, times, packets_out, bytes_out, packets_in, bytes_in, *ends) = row  # fmt: skip
    return FlowRow(
        number=_int(number), began=rfc3339(_float(began)), ended=rfc3339(_float(ended)) if ended is not None else "",
        source=_flow_end(source_address, source_port, ends[:6]),
        destination=_flow_end(destination_address, port, ends[6:]),
        protocol=_NAMES.get(_int(protocol), str(protocol)), verdict=str(verdict), rule=str(rule), note=str(note),
        via=str(via), dns=str(dns), tls=str(tls), times=_int(times), packets_out=_int(packets_out),
        bytes_out=_int(bytes_out), packets_in=_int(packets_in), bytes_in=_int(bytes_in),
    )  # fmt: skip


def _flow_end(address: object, port: object, end: list[object]) -> FlowEnd:
    kind, project, name, pod, identity, labels = end
    return FlowEnd(str(kind), str(address), _int(port), str(project), str(name), str(pod), _int(identity), str(labels))


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _float(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)


_MAP = f"""
SELECT s.kind, s.project, s.name, s.labels, CASE WHEN s.kind = 'pod' THEN '' ELSE f.source_address END,
    d.kind, d.project, d.name, d.labels,
    CASE WHEN d.kind = 'pod' THEN '' WHEN f.dns != '' THEN f.dns WHEN f.tls != '' THEN f.tls
        ELSE f.destination_address END,
    f.protocol, f.port, f.verdict, max(f.rule), sum(f.times), sum(f.bytes_out), sum(f.bytes_in), max(f.began)
{_FROM} WHERE %s GROUP BY 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13 ORDER BY 15 DESC LIMIT {MAX_MAP_EDGES}
"""


def service_map(db: sqlite3.Connection, wanted: Wanted, now: float) -> FlowMap:
    """Workloads and outside ends, and what goes between them; the busiest outside ends alone, the rest as one."""
    where, values = condition(wanted)
    rows = db.execute(_MAP % where, values).fetchall()
    busy: dict[str, int] = {}
    for row in rows:
        for kind, name, count in ((row[0], row[4], row[14]), (row[5], row[9], row[14])):
            if kind != "pod":
                busy[name] = busy.get(name, 0) + count
    shown = set(sorted(busy, key=lambda name: -busy[name])[:MAX_MAP_OUTSIDE])
    nodes: dict[str, MapNode] = {}
    edges: dict[tuple[object, ...], MapEdge] = {}
    for row in rows:
        ends = []
        for kind, project, name, labels, outside in (row[0:5], row[5:10]):
            node = _map_node(kind, project, name, labels, outside if outside in shown or kind == "pod" else "")
            nodes[node.id] = node
            ends.append(node.id)
        key = (*ends, row[10], row[11], row[12])
        before = edges.get(key)
        count, out, back = (before.count, before.bytes_out, before.bytes_in) if before else (0, 0, 0)
        edges[key] = MapEdge(
            ends[0], ends[1], _NAMES.get(row[10], str(row[10])), row[11], row[12], row[13], count + row[14],
            out + row[15], back + row[16], max(rfc3339(row[17]), before.last if before else ""),
        )  # fmt: skip
    folded = max(len(busy) - len(shown), 0)
    until = now if wanted.until == float("inf") else wanted.until
    return FlowMap(rfc3339(wanted.since), rfc3339(until), tuple(nodes.values()), tuple(edges.values()), folded)


def _map_node(kind: str, project: str, name: str, labels: str, outside: str) -> MapNode:
    if kind == "pod":
        return MapNode(f"{project}/{name}", kind, name, project, labels)
    return MapNode(f"{kind}:{outside}", kind, outside or "others")
