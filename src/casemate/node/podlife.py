"""Starting, stopping and removing pods with all their containers."""

from __future__ import annotations

import asyncio

from casemate.node import lifecycle, lookup, pods, removal
from casemate.node.core import Caller, Core
from casemate.node.errors import PodInUse
from casemate.spec.api import StopRequest


async def start(core: Core, reference: str, project: str, caller: Caller) -> None:
    """Start every container of the pod, in the order of their creation."""
    pod = await core.db.read(lambda db: lookup.pod(db, reference, project))
    for row in await core.db.read(lambda db: pods.members(db, pod.id)):
        await lifecycle.start(core, row.id, project, caller)


async def stop(core: Core, reference: str, project: str, request: StopRequest, caller: Caller) -> None:
    """Stop every container of the pod, at the same time."""
    pod = await core.db.read(lambda db: lookup.pod(db, reference, project))
    rows = await core.db.read(lambda db: pods.members(db, pod.id))
    try:
        async with asyncio.TaskGroup() as tasks:
            for row in rows:
                tasks.create_task(lifecycle.stop(core, row.id, project, request, caller))
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


async def remove(core: Core, reference: str, project: str, caller: Caller, *, force: bool) -> None:
    """Remove a pod; with *force* its containers too."""
    pod = await core.db.read(lambda db: lookup.pod(db, reference, project))
    inside = await core.db.read(lambda db: pods.members(db, pod.id))
    if inside and not force:
        names = ", ".join(row.name for row in inside[:5])
        raise PodInUse(f"pod {pod.name} has {len(inside)} containers: {names}", pod=pod.id)
    for row in inside:
        await removal.remove(core, row.id, project, caller, force=True, volumes=True)
    if not pod.implicit or not inside:
        await pods.remove_empty(core, pod.id, caller)
