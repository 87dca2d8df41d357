"""Flow records, the service map, and what is counted."""

from __future__ import annotations

from typing import Literal

from casemate.spec.workload import Value

EndKind = Literal["pod", "node", "world"]
FlowVerdict = Literal["allow", "audit", "referred", "deny"]


class FlowEnd(Value, frozen=True):
    """One end of a connection. *name* is the pod's as people call it; empty for the world outside."""

    kind: str
    address: str
    port: int
    project: str = ""
    name: str = ""
    pod: str = ""
    identity: int = 0
    labels: str = ""


class FlowRow(Value, frozen=True):
    """A connection, or the attempt at one.

    *verdict* is what became of it: allow, audit (passed, and would have been denied or referred), referred (asked,
    and allowed), deny. *rule* decided. *source* opened it; *destination* is where it really went, *via* what the
    source aimed at where that was translated (a published port). Counters are known when it has *ended*; *times*
    is how often a refused one was tried. *dns* is the name whose answer led the source there, *tls* the one that its
    handshake showed; both are the source's word.
    """

    number: int
    began: str
    ended: str
    source: FlowEnd
    destination: FlowEnd
    protocol: str
    verdict: str
    rule: str
    note: str = ""
    via: str = ""
    dns: str = ""
    tls: str = ""
    times: int = 1
    packets_out: int = 0
    bytes_out: int = 0
    packets_in: int = 0
    bytes_in: int = 0


class FlowGap(Value, frozen=True):
    """Records are missing since *at*; *count* of them, -1 where nobody knows."""

    at: str
    reason: str
    count: int = -1


class FlowCounters(Value, frozen=True):
    """Of the recorder, since it began. What was *lost* is counted as far as the kernel tells."""

    watching: bool
    capacity: int
    recorded: int = 0
    ended: int = 0
    denied: int = 0
    audited: int = 0
    lost_log: int = 0
    overruns: int = 0
    broken: int = 0
    unruled: int = 0
    names_seen: int = 0


class FlowList(Value, frozen=True):
    """Records, the oldest first; *gaps* in the time that was asked for."""

    flows: tuple[FlowRow, ...]
    counters: FlowCounters
    gaps: tuple[FlowGap, ...] = ()


class MapNode(Value, frozen=True):
    """A workload, or an outside name or address."""

    id: str
    kind: str
    name: str
    project: str = ""
    labels: str = ""


class MapEdge(Value, frozen=True):
    """All connections between two nodes to one port, by verdict."""

    source: str
    destination: str
    protocol: str
    port: int
    verdict: str
    rule: str
    count: int
    bytes_out: int = 0
    bytes_in: int = 0
    last: str = ""


class FlowMap(Value, frozen=True):
    """The service map of a span of time."""

    since: str
    until: str
    nodes: tuple[MapNode, ...]
    edges: tuple[MapEdge, ...]
    #: Outside ends that were put together because there were too many to show.
    folded: int = 0
