"""Changing limits and restart policy of a container while it runs, and for its next start."""

from __future__ import annotations

import sqlite3

import msgspec

from casemate.hostd.client import ask
from casemate.hostd.protocol import ContainerUpdate, Warnings
from casemate.node import audit, events, lookup
from casemate.node.core import Caller, Core
from casemate.node.errors import ContainerState
from casemate.node.rows import ContainerRow, encode, update
from casemate.spec.api import UpdateAnswer, UpdateRequest
from casemate.spec.errors import InvalidArgument
from casemate.spec.workload import Resources


def merged(old: Resources, new: Resources) -> Resources:
    """*old* with what *new* names."""
    changes = {name: value for name in new.__struct_fields__ if (value := getattr(new, name)) is not None}
    return msgspec.structs.replace(old, **changes)


async def update_limits(
    core: Core, reference: str, project: str, request: UpdateRequest, caller: Caller
) -> UpdateAnswer:
    """Apply *request*: live where the container was made, in the record otherwise."""
    row = await core.db.read(lambda db: lookup.container(db, reference, project))
    if row.status == "removing":
        raise ContainerState(f"container {row.name} is {row.status}", status=row.status)
    if request.restart is not None and row.auto_remove and request.restart.name != "no":
        raise InvalidArgument("a container with --rm has no restart policy")
    warnings: tuple[str, ...] = ()
    async with core.lock(row.id):
        wanted = request.resources
        if row.made and wanted != Resources():
            warnings = (await ask(core.hostd, ContainerUpdate(row.id, wanted), Warnings)).warnings

        def work(db: sqlite3.Connection) -> None:
            now = lookup.container(db, row.id, project)
            spec, asked = now.the_spec(), now.the_request()
            restart = request.restart or asked.restart
            spec = msgspec.structs.replace(spec, resources=merged(spec.resources, wanted))
            asked = msgspec.structs.replace(asked, resources=merged(asked.resources, wanted), restart=restart)
            update(
                db, ContainerRow, row.id, spec=encode(spec), request=encode(asked), restart_name=restart.name,
                restart_maximum=restart.maximum,
            )  # fmt: skip
            at = core.clock()
            events.add(db, at, "container", row.id, "update", project=project, name=row.name)
            audit.append(
                db, at, caller.who, "container.update", row.id, name=row.name, request=msgspec.to_builtins(request)
            )

        await core.db.write(work)
    core.events.wake()
    return UpdateAnswer(warnings)
