"""Layers and volumes: what ``storage`` does, asked through the protocol."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from casemate.hostd import protocol
from casemate.hostd.context import Context
from casemate.hostd.protocol import AnyAnswer, Done, Layers, Volumes
from casemate.spec.errors import Conflict
from casemate.storage.volumes import Volume

#: An entry is about 75 bytes of msgpack: a page stays far below the bound on a message.
_PAGE = 1000
STAGING = "staging"
#: One walk takes about 1 s for a million files; a volume of a hundred million is told as not counted.
_SIZES_TIMEOUT_S = 20.0

Asked = (
    protocol.LayerAdopt
    | protocol.LayerList
    | protocol.LayerRemove
    | protocol.VolumeCreate
    | protocol.VolumeRemove
    | protocol.VolumeList
)


async def handle(context: Context, operation: Asked) -> AnyAnswer:
    """The answer to an operation on layers or volumes."""
    match operation:
        case protocol.LayerAdopt():
            staging = Path(context.settings.text("paths.state")) / STAGING
            await context.layers.adopt(staging, operation.layer, owner_uid=context.casemated_uid)
            return Done()
        case protocol.LayerList():
            found = [one for one in context.layers.list() if one.hex > operation.after]
            page = tuple((one.hex, one.size_bytes) for one in found[:_PAGE])
            return Layers(page, page[-1][0] if len(found) > _PAGE else "")
        case protocol.LayerRemove():
            context.layers.remove(operation.layer)
            return Done()
        case protocol.VolumeCreate():
            context.volumes.create(operation.project, operation.name)
            return Done()
        case protocol.VolumeRemove():
            users = context.state.volume_users.get((operation.project, operation.name))
            if users:
                raise Conflict(
                    f"volume {operation.name} is used by {', '.join(sorted(user[:12] for user in users)[:3])}",
                    remedy="Remove those containers first.",
                )
            if context.volumes.remove(operation.project, operation.name):
                context.trash_waits.set()
            return Done()
        case protocol.VolumeList():
            volumes = context.volumes.list(operation.project)[:_PAGE]
            sizes = await _sizes(context, volumes) if operation.sizes else {}
            return Volumes(tuple((one.name, sizes.get(one.name, -1)) for one in volumes))


async def _sizes(context: Context, volumes: list[Volume]) -> dict[str, int]:
    """Bytes on disk of as many *volumes* as can be counted within the bound; -1 stands for the rest."""
    found: dict[str, int] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SIZES_TIMEOUT_S):
            for one in volumes:
                found[one.name] = await context.volumes.used_bytes(one)
    return found
