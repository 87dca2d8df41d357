"""The node as a whole: version, info, doctor, disk usage, prune."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import sqlite3

from casemate import __version__
from casemate.hostd.client import HostdAway, ask
from casemate.hostd.protocol import Doctor, Findings, Hello, Prune, VolumeList, Volumes, Welcome
from casemate.image import garbage, jobs
from casemate.node import audit, database, events, imageremoval, images, imagestore, journal, volumes
from casemate.node.core import Caller, Core
from casemate.node.imagejobs import run_job
from casemate.node.rows import ALIVE, PodRow, select
from casemate.node.trust import checkup
from casemate.spec.api import (
    DiskAnswer,
    DiskRow,
    DoctorAnswer,
    FindingRow,
    InfoAnswer,
    PruneRequest,
    Removed,
    VersionAnswer,
)
from casemate.spec.errors import CasemateError
from casemate.spec.settings import SETTINGS

API_VERSION = "1"
#: Below this share of free space the doctor warns.
LOW_SPACE = 0.05
MAX_PRUNE_PODS = 2000
_TEMPLATE = "template of micro-VMs"


def version(core: Core) -> VersionAnswer:
    """Versions of what runs; hostd's is ``away`` when it does not answer."""
    welcome = core.hostd.welcome
    hostd = welcome.host.get("version", str(welcome.version)) if welcome is not None else "away"
    return VersionAnswer(__version__, API_VERSION, hostd, platform.python_version(), platform.release())


async def info(core: Core) -> InfoAnswer:
    """The host and what is on it."""
    counts = await core.db.read(_counts)
    welcome = core.hostd.welcome
    if welcome is not None:
        # Levels come and go while the connection stays: a guest kernel, a package.
        with contextlib.suppress(CasemateError):
            welcome = await ask(core.hostd, Hello(), Welcome)
    warnings = () if welcome is not None else ("casemate-hostd does not answer: containers cannot be changed",)
    settings: dict[str, object] = {row.name: core.settings.value(row.name) for row in SETTINGS}
    return InfoAnswer(
        version=__version__,
        containers=counts[0],
        running=counts[1],
        images=counts[2],
        levels=welcome.levels if welcome is not None else {},
        host=welcome.host if welcome is not None else {},
        settings=settings,
        warnings=warnings,
    )


def _counts(db: sqlite3.Connection) -> tuple[int, int, int]:
    marks = ", ".join(f"'{status}'" for status in sorted(ALIVE))
    query = f"SELECT count(*), coalesce(sum(status IN ({marks})), 0) FROM containers"  # noqa: S608
    containers, running = db.execute(query).fetchone()
    return containers, running, db.execute("SELECT count(*) FROM images").fetchone()[0]


async def doctor(core: Core) -> DoctorAnswer:
    """The checks of hostd, and our own: database, audit chain, store, space, interrupted work."""
    found: list[FindingRow] = []
    try:
        answer = await ask(core.hostd, Doctor(await _known_pods(core)), Findings, timeout_s=120.0)
        found += [FindingRow(f.check, f.severity, f.detail, f.remedy, f.left_over) for f in answer.findings]
    except HostdAway as error:
        found.append(FindingRow("hostd", "error", error.detail, error.remedy))
    found += await core.db.read(lambda db: _database(db, core.clock()))
    found += await asyncio.to_thread(_space, core)
    found += await _store(core)
    found += await checkup.findings(core)
    return DoctorAnswer(tuple(found), all(row.severity != "error" for row in found))


async def _known_pods(core: Core) -> tuple[str, ...] | None:
    """Every pod of the store, for hostd to tell those of nobody's; None where they are too many for one message."""
    found = tuple(row.id for row in await core.db.read(lambda db: select(db, PodRow, "")))
    return found if len(found) <= MAX_PRUNE_PODS else None


def _database(db: sqlite3.Connection, at: float) -> list[FindingRow]:
    found = []
    if problem := database.damage(db):
        found.append(FindingRow("database", "error", problem[:500], "Restore casemate.db from a backup."))
    else:
        found.append(FindingRow("database", "ok", "casemate.db is sound"))
    broken = audit.verify(db)
    if broken is not None:
        found.append(FindingRow("audit", "error", f"the chain of the audit log is broken at row {broken}",
                                "Rows were changed or removed: compare with a copy kept elsewhere."))  # fmt: skip
    else:
        found.append(FindingRow("audit", "ok", "the chain of the audit log holds"))
    found += [
        FindingRow("journal", "warning", f"{entry.kind} of {entry.subject[:80]} was interrupted ({entry.step})",
                   "Restart casemated: the reconcile loop finishes it.", left_over=True)
        for entry in journal.pending(db) if at - entry.at > 300
    ]  # fmt: skip
    return found


def _space(core: Core) -> list[FindingRow]:
    path = core.settings.text("paths.state")
    seen = os.statvfs(path)
    free = seen.f_bavail / seen.f_blocks if seen.f_blocks else 1.0
    text = f"{path}: {seen.f_bavail * seen.f_frsize >> 20} MiB ({free:.0%}) free"
    if free < LOW_SPACE:
        return [FindingRow("space", "warning", text, "`casemate system prune` and `casemate image prune` free space.")]
    return [FindingRow("space", "ok", text)]


async def _store(core: Core) -> list[FindingRow]:
    """Compare every object of the image store with its name, in the worker: it may take a while."""
    job = jobs.VerifyJob(state=core.settings.text("paths.state"), limits=images.limits(core))
    try:
        result = await run_job(job, timeout_s=600.0)
    except CasemateError as error:
        return [FindingRow("store", "error", f"the image store could not be verified: {error.detail}")]
    if result.damaged:
        return [
            FindingRow("store", "error", f"{text} is damaged", "Remove the image and pull it again.")
            for text in result.damaged[:50]
        ]
    return [FindingRow("store", "ok", "every blob matches its digest")]


async def disk(core: Core, project: str) -> DiskAnswer:
    """What takes space: images, containers, volumes, partial downloads."""
    found = await core.db.read(imagestore.all_images)
    counts = await core.db.read(
        lambda db: dict(db.execute("SELECT image_digest, count(*) FROM containers GROUP BY image_digest"))
    )
    usage = await asyncio.to_thread(garbage.usage, core.images)
    layers = await core.db.read(
        lambda db: db.execute("SELECT coalesce(sum(squashfs_bytes), 0) FROM layers").fetchone()[0]
    )
    in_use = [row for row, _ in found if counts.get(row.manifest_digest)]
    idle = [row.the_record().size_bytes for row, _ in found if not counts.get(row.manifest_digest)]
    containers, running, _ = await core.db.read(_counts)
    listed = await volumes.listing(core, project)
    sizes = await _volume_sizes(core, project)
    free = [v.name for v in listed.volumes if not v.used_by]
    return DiskAnswer(
        (
            DiskRow("images", len(found), len(in_use), usage.blobs + layers, sum(idle)),
            # What containers wrote is not counted: hostd has no operation for it yet.
            DiskRow("containers", containers, running, -1, -1),
            DiskRow("volumes", len(listed.volumes), len(listed.volumes) - len(free), sum(sizes.values()),
                    sum(sizes.get(name, 0) for name in free)),
            DiskRow("downloads", 0, 0, usage.ingest + usage.staging + usage.other, usage.ingest),
        )
    )  # fmt: skip


async def _volume_sizes(core: Core, project: str) -> dict[str, int]:
    if core.hostd.welcome is None:
        return {}
    answer = await ask(core.hostd, VolumeList(project, sizes=True), Volumes)
    return {name: max(0, size) for name, size in answer.volumes}


async def prune(core: Core, request: PruneRequest, caller: Caller) -> Removed:
    """Remove what a crash left, and (unless ``left_overs_only``) ended containers, images and volumes."""
    from casemate.node import removal  # noqa: PLC0415 - only here

    removed: list[str] = []
    untagged: tuple[str, ...] = ()
    freed = 0
    if not request.left_overs_only:
        rows = await core.db.read(
            lambda db: db.execute("SELECT id, project FROM containers WHERE status IN ('exited', 'created')").fetchall()
        )
        for id_, project in rows:
            if not request.dry_run:
                await removal.remove(core, id_, project, caller, force=False, volumes=False)
            removed.append(f"container {id_}")
    answer = await ask(
        core.hostd,
        Prune(await _known_pods(core), dry_run=request.dry_run, templates=not request.left_overs_only),
        Findings,
        timeout_s=120.0,
    )
    removed += [f"{f.check}: {f.detail}" for f in answer.findings if f.left_over or f.check == _TEMPLATE]
    removed += [f"layer {hex_}" for hex_ in await imageremoval.remove_unknown_layers(core, dry_run=request.dry_run)]
    if not request.left_overs_only:
        gone = await imageremoval.prune(core, caller, everything=request.all_images, dry_run=request.dry_run)
        removed += [f"image {id_}" for id_ in gone.removed]
        untagged, freed = gone.untagged, freed + gone.freed_bytes
        if request.volumes:
            swept = await volumes.prune(core, "default", caller, everything=True, dry_run=request.dry_run)
            removed += [f"volume {name}" for name in swept.removed]
            freed += swept.freed_bytes
    elif not request.dry_run:
        freed += await imageremoval.collect(core)
    if not request.dry_run:

        def told(db: sqlite3.Connection) -> None:
            audit.append(db, core.clock(), caller.who, "system.prune", "", removed=removed[:500])
            events.add(db, core.clock(), "system", "", "prune")

        await core.db.write(told)
        core.events.wake()
    return Removed(tuple(removed), untagged, freed)
