"""Feeds as casemated has them: import of an upload, update from a mirror, list, verify, removal; done by the child."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec

from casemate.host.durable import read_bounded
from casemate.node import audit, events
from casemate.node.core import Caller, Core
from casemate.node.operations import Operations, Running
from casemate.node.trust import child
from casemate.node.trust.jobs import FeedsJob, ImportJob, RemoveJob, Told, UpdateJob
from casemate.node.trust.policies import demand
from casemate.node.trust.scans import today
from casemate.spec.api import Operation, Progress
from casemate.spec.api.scan import FeedChange, FeedList, FeedUpdateRequest
from casemate.spec.errors import InvalidArgument
from casemate.trust.feed.model import FeedKind, Source
from casemate.trust.signature.errors import KeyInvalid

#: Counting every row of the largest feed takes seconds.
LIST_TIMEOUT_S = 600.0
#: As `casemate.trust.signature.keys` bounds a key, which is not loaded before a key is.
MAX_PEM_BYTES = 16 << 10


async def listing(core: Core, *, thorough: bool = False) -> FeedList:
    """The feeds; *thorough* also checks every page and count of the file. Raises ``FeedInvalid`` for a damaged one."""
    job = FeedsJob(
        state=core.settings.text("paths.state"), today=today(core), thorough=thorough,
        max_feed_age_days=core.settings.number("feed.max_age_days"),
    )  # fmt: skip
    found = await child.run(job, timeout_s=LIST_TIMEOUT_S)
    return msgspec.json.decode(found.value, type=FeedList)


class Wanted(msgspec.Struct, frozen=True):
    """What an import was told about its file."""

    kind: FeedKind
    name: str
    date: str = ""
    digest: str = ""


async def import_(core: Core, operations: Operations, wanted: Wanted, path: Path, caller: Caller) -> Operation:
    """Import the upload at *path*, which is removed at the end."""
    demand(caller, "to import a feed")
    job = ImportJob(
        state=core.settings.text("paths.state"), kind=wanted.kind, origin=str(path), name=wanted.name,
        today=today(core), made=wanted.date, digest=wanted.digest,
    )  # fmt: skip

    async def work(running: Running) -> dict[str, object]:
        try:
            found = await child.run(job, _teller(running))
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)
        source = msgspec.json.decode(found.value, type=Source)
        await _told(core, caller, "import", source.name, rows=source.rows, date=source.date, digest=source.digest)
        return {"feed": msgspec.to_builtins(source)}

    return await operations.start("feed.import", wanted.name, caller, work)


async def update(core: Core, operations: Operations, request: FeedUpdateRequest, caller: Caller) -> Operation:
    """Fetch what the mirror has that is new, by digest, and import it."""
    demand(caller, "to update feeds")
    url = request.url or core.settings.text("feed.mirror")
    if not url:
        raise InvalidArgument(
            "no mirror of feeds is named", remedy="Give its address, or set feed.mirror in /etc/casemate/casemate.toml."
        )
    keys, threshold = request.keys, request.threshold
    if not keys:
        keys = await asyncio.to_thread(_keys, core.settings.texts("feed.keys"))
        threshold = core.settings.number("feed.key_threshold")
    if keys and threshold > len(keys):
        raise InvalidArgument(f"{threshold} of {len(keys)} keys cannot have signed the mirror's manifest")
    job = UpdateJob(
        state=core.settings.text("paths.state"), url=url, today=today(core), digest=request.digest,
        names=request.names, insecure=core.settings.texts("registry.insecure"), keys=keys, threshold=threshold,
    )  # fmt: skip

    async def work(running: Running) -> dict[str, object]:
        found = await child.run(job, _teller(running))
        changes = msgspec.json.decode(found.value, type=tuple[FeedChange, ...])
        for change in changes:
            if change.outcome != "unchanged":
                await _told(core, caller, "import", change.name, rows=change.rows, date=change.date)
        return {"changes": [msgspec.to_builtins(change) for change in changes]}

    return await operations.start("feed.update", url[:200], caller, work)


def _keys(paths: tuple[str, ...]) -> tuple[str, ...]:
    """The PEM files that ``feed.keys`` names. Whatever is wrong with one of them stops the update."""
    found: list[str] = []
    for path in paths:
        try:
            found.append(read_bounded(Path(path), MAX_PEM_BYTES).decode())
        except (OSError, UnicodeDecodeError) as error:
            raise KeyInvalid(f"{path}, which feed.keys names, cannot be read: {error}") from error
    return tuple(found)


async def remove(core: Core, name: str, caller: Caller) -> None:
    """Take a feed away. Raises ``FeedMissing`` when there is none of the name."""
    demand(caller, "to remove a feed")
    await child.run(RemoveJob(state=core.settings.text("paths.state"), name=name), timeout_s=LIST_TIMEOUT_S)
    await _told(core, caller, "remove", name)


def _teller(running: Running) -> Callable[[Told], None]:
    def tell(told: Told) -> None:
        running.tell(Progress(told.item, told.stage, told.current_bytes, told.total_bytes))

    return tell


async def _told(core: Core, caller: Caller, action: str, name: str, **facts: object) -> None:
    def work(db: sqlite3.Connection) -> None:
        at = core.clock()
        events.add(db, at, "feed", name, action, name=name, **facts)  # type: ignore[arg-type]  # none is called project or name
        audit.append(db, at, caller.who, f"feed.{action}", name, **facts)  # type: ignore[arg-type]  # nor answer

    await core.db.write(work)
    core.events.wake()
    core.trust.change(f"feed {name} changed")
