"""Whose a route is, where projects have operators: one of these stands in each row of the table of routes.

:mod:`casemate.api.routing` asks it before the handler, and only for a caller whom not all projects are open to.
A project that the caller names is refused with 403; what belongs to another project is answered as if it were not
there, since its name would tell something. Where a list or a stream is of several projects the scope is
:data:`NARROWED`, and the handler leaves out what the caller does not see.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate.node import lookup
from casemate.node.errors import AdministratorNeeded, ExecNotFound, OperationNotFound, ProjectDenied, ProjectNotFound
from casemate.node.owners import project_of_end
from casemate.node.policy import ends
from casemate.node.policy.errors import ReferralNotFound
from casemate.policy.identity import Kind

if TYPE_CHECKING:
    from casemate.api.routing import Call


@dataclass(frozen=True, slots=True)
class RouteScope:
    """*says* in words whom a route is open to beside administrators; *check* raises for any other caller."""

    name: str
    says: str
    check: Callable[[Call], Awaitable[None]]


def _demand(call: Call, project: str) -> None:
    if not call.caller.sees(project):
        raise ProjectDenied(f"project {project[:80]!r} is not open to {call.caller.who}", project=project[:80])


async def _anybody(call: Call) -> None:
    """Nothing of a project's is in it, or the handler asks for a grant."""


async def _administrator(call: Call) -> None:
    path = call.request.url.path if call.request is not None else "this"
    raise AdministratorNeeded(f"{path} is not open to {call.caller.who}, an operator of single projects")


async def _project_of_query(call: Call) -> None:
    _demand(call, call.query.project)


async def _narrowed(call: Call) -> None:
    """One project may be named; without one the handler answers for the caller's."""
    project = getattr(call.query, "project", "")
    if project:
        _demand(call, project)


async def _project_of_body(call: Call) -> None:
    _demand(call, call.body.project)


async def _project_of_path(call: Call) -> None:
    name = call.path["name"]
    if not call.caller.sees(name):
        raise ProjectNotFound(f"project {name[:80]!r} is not there", project=name[:80])


async def _exec_of_path(call: Call) -> None:
    id_ = call.path["id"]
    row = await call.core.db.read(lambda db: lookup.exec_(db, id_))
    project = await call.core.db.read(lambda db: lookup.project_of(db, row.container))
    if not call.caller.sees(project):
        raise ExecNotFound(f"exec {id_[:80]!r} is not there", reference=id_[:80])


async def _own_operation(call: Call) -> None:
    id_ = call.path["id"]
    if await call.node.operations.owner(id_) != call.caller.who:
        raise OperationNotFound(f"operation {id_[:80]!r} is not there", id=id_[:80])


async def _referral_of_path(call: Call) -> None:
    """Both ends are the caller's, or are outside: between two projects the administrator decides."""
    text = call.path["number"]
    is_number = text.isascii() and text.isdigit() and len(text) < 18
    found = call.node.referrals.prompts.find(int(text)) if is_number else None
    projects = [] if found is None else [one for one in map(project_of_end, (found.source, found.destination)) if one]
    if not any(map(call.caller.sees, projects)):
        raise ReferralNotFound(f"referral {text[:40]} does not wait")
    for project in projects:
        _demand(call, project)


async def _workload_of_body(call: Call) -> None:
    """The workload may be written as PROJECT/NAME, beside a project that is the caller's."""
    text, project = call.body.workload, call.body.project
    _demand(call, project)
    # One in quarantine may be gone by now, and is released by its name.
    held = [name for name in (text, f"{project}/{text}") if name in call.core.policy.quarantines]
    name = held[0] if held else await ends.workload_name(call.core, text, project)
    if not call.caller.sees(project_of_end(name)):
        raise ends.unknown(text, project)
    for one in getattr(call.body, "allow", ()):
        await _end(call, one.end)


async def _ends_of_body(call: Call) -> None:
    _demand(call, call.body.project)
    for text in (call.body.source, call.body.destination):
        await _end(call, text)


async def _end(call: Call, text: str) -> None:
    try:
        if ipaddress.ip_network(text, strict=False).num_addresses > 1:
            return
    except ValueError:
        pass
    found = await ends.end(call.core, text, call.body.project)
    if found.kind is Kind.POD and not call.caller.sees(found.project):
        raise ends.unknown(text, call.body.project)


OPEN = RouteScope("open", "every member; it tells nothing of a project.", _anybody)
SHARED = RouteScope("shared", "every member; images, feeds and kernels are the node's.", _anybody)
GRANT = RouteScope("grant", "whoever holds the grant that it asks for, whatever their projects.", _anybody)
ADMINISTRATOR = RouteScope("administrator", "administrators; it concerns more than one project.", _administrator)
IN_QUERY = RouteScope("project", "operators of the project that the query names.", _project_of_query)
IN_BODY = RouteScope("project", "operators of the project that the body names.", _project_of_body)
IN_PATH = RouteScope("project", "operators of the project that the path names.", _project_of_path)
NARROWED = RouteScope("narrowed", "every operator; about the caller's projects alone.", _narrowed)
EXEC = RouteScope("project", "operators of the project of the exec's container.", _exec_of_path)
OPERATION = RouteScope("own", "whoever began the operation.", _own_operation)
REFERRAL = RouteScope("project", "operators of the projects of both ends.", _referral_of_path)
WORKLOAD = RouteScope("project", "operators of the project of the workload that the body names.", _workload_of_body)
ENDS = RouteScope("project", "operators of the projects of both ends that the body names.", _ends_of_body)
