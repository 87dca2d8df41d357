"""What of the node an operator of single projects sees: pure questions about a caller and a row.

Whether a route is open to a caller at all is asked before, in :mod:`casemate.api.scopes`. Here lists and streams of
several projects learn what to leave out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from casemate.node.core import Caller
    from casemate.spec.api import EventRow
    from casemate.spec.api.flows import FlowEnd, FlowMap, FlowRow


def project_of_end(name: str) -> str:
    """The project of an end as flows, referrals and quarantines name it (``PROJECT/NAME``); "" is outside."""
    project, slash, _ = name.partition("/")
    return project if slash else ""


def sees_end(caller: Caller, *names: str) -> bool:
    """Whether one of these ends is in a project of *caller*'s."""
    return caller.projects is None or any(project_of_end(name) in caller.projects for name in names)


def sees_event(caller: Caller, row: EventRow) -> bool:
    """Whether *row* is about what is open to *caller*; images are everybody's, what concerns the node is not."""
    if caller.projects is None:
        return True
    match row.kind:
        case "container" | "pod" | "volume" | "project":
            return row.project in caller.projects
        case "quarantine":
            return sees_end(caller, row.subject)
        case "referral":
            return sees_end(caller, str(row.facts.get("source", "")), str(row.facts.get("destination", "")))
        case "policy":
            return sees_end(caller, row.subject.partition("/")[2])
        case kind:
            return kind == "image"


def shown_flow(caller: Caller, row: FlowRow) -> FlowRow:
    """*row*, with no more than the name of an end that is another project's."""
    if caller.projects is None:
        return row
    source, destination = _shown_end(caller, row.source), _shown_end(caller, row.destination)
    return msgspec.structs.replace(row, source=source, destination=destination)


def _shown_end(caller: Caller, end: FlowEnd) -> FlowEnd:
    if not end.project or caller.sees(end.project):
        return end
    return msgspec.structs.replace(end, pod="", identity=0, labels="")


def shown_map(caller: Caller, found: FlowMap) -> FlowMap:
    """*found*, without the labels of other projects' workloads."""
    if caller.projects is None:
        return found
    nodes = tuple(
        node if not node.project or caller.sees(node.project) else msgspec.structs.replace(node, labels="")
        for node in found.nodes
    )
    return msgspec.structs.replace(found, nodes=nodes)
