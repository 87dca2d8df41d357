"""Images: listing, transfer through the worker, and removal. Only here are layers handed to hostd."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterable

import msgspec

from casemate.hostd.client import ask
from casemate.hostd.protocol import Done, LayerAdopt, LayerList, Layers
from casemate.image import jobs, leases
from casemate.image.records import ImageRecord
from casemate.node import audit, events, freshness, imagestore, journal
from casemate.node.core import Caller, Core
from casemate.node.evidence_jobs import WANTED
from casemate.node.imagejobs import run_job
from casemate.node.operations import Operations, Running
from casemate.node.platforms import parse_platform
from casemate.node.resolve import Image
from casemate.spec.api import (
    BuildDebianRequest,
    HistoryAnswer,
    HistoryRow,
    ImageDetail,
    ImageList,
    ImageSummary,
    Operation,
    Progress,
    PullRequest,
    PushRequest,
    RegistryAuth,
    TagRequest,
)
from casemate.spec.errors import CasemateError, InvalidArgument
from casemate.spec.ids import digest_hex
from casemate.spec.reference import parse_reference

MAX_NAMES = 64


def limits(core: Core) -> jobs.Limits:
    number = core.settings.number
    return jobs.Limits(
        parallel_layers=number("image.parallel_layers"),
        max_manifest_bytes=number("image.max_manifest_bytes"),
        max_layer_bytes=number("image.max_layer_bytes"),
        max_ratio=number("image.max_ratio"),
        max_layer_files=number("image.max_layer_files"),
        id_shift=core.id_shift,
    )


def endpoints(core: Core, auth: RegistryAuth | None, registry: str, *, plain_http: bool) -> jobs.Endpoints:
    insecure = core.settings.texts("registry.insecure")
    if plain_http and registry not in insecure:
        insecure = (*insecure, registry)
    logins = {}
    if auth is not None:
        logins = {auth.registry or registry: jobs.Login(auth.username, auth.password, auth.identity_token)}
    return jobs.Endpoints(mirrors=core.settings.texts("registry.mirrors"), insecure=insecure, logins=logins)


async def pull(core: Core, operations: Operations, request: PullRequest, caller: Caller) -> Operation:
    """Fetch an image; it becomes visible when hostd has taken all its layers over."""
    reference = parse_reference(request.reference)
    published = await freshness.published(core, reference)
    job = jobs.PullJob(
        state=core.settings.text("paths.state"),
        reference=str(reference),
        platform=parse_platform(request.platform),
        endpoints=endpoints(core, request.auth, reference.registry, plain_http=request.plain_http),
        limits=limits(core),
        referring=WANTED,
        published=published,
    )

    async def work(running: Running) -> dict[str, object]:
        result = await _run(job, running)
        names = (str(reference),) if reference.tag is not None else ()
        origin = f"{reference.registry}/{reference.repository}"
        done = await _record(core, result, names, caller, "pull", origin=origin)
        # What vouches for it was fetched with it, and may be more, or less, than what its containers were judged by.
        await core.trust.fetched_again(core.db, str(done["digest"]), reference.familiar)
        return done

    return await operations.start("image.pull", reference.familiar, caller, work)


async def push(core: Core, operations: Operations, request: PushRequest, caller: Caller) -> Operation:
    """Send a stored image to a registry."""
    reference = parse_reference(request.reference)
    row = await core.db.read(lambda db: imagestore.find(db, request.source or request.reference))
    job = jobs.PushJob(
        state=core.settings.text("paths.state"),
        reference=str(reference),
        manifest_digest=row.manifest_digest,
        endpoints=endpoints(core, request.auth, reference.registry, plain_http=request.plain_http),
        limits=limits(core),
    )

    async def work(running: Running) -> dict[str, object]:
        result = await _run(job, running)
        return {"digest": result.digest or row.manifest_digest, "transferred_bytes": result.transferred_bytes}

    return await operations.start("image.push", reference.familiar, caller, work)


async def build_debian(core: Core, operations: Operations, request: BuildDebianRequest, caller: Caller) -> Operation:
    """Make an image out of Debian packages."""
    reference = parse_reference(request.tag)
    change = jobs.ConfigChange(cmd=request.command or (), env=request.env, labels=request.labels)
    job = jobs.DebianJob(
        state=core.settings.text("paths.state"), name=str(reference), suite=request.suite, packages=request.packages,
        variant=request.variant, sources=_sources(request), change=change, epoch=int(core.clock()),
        limits=limits(core),
    )  # fmt: skip

    async def work(running: Running) -> dict[str, object]:
        result = await _run(job, running)
        return await _record(core, result, (str(reference),), caller, "build-debian")

    return await operations.start("image.build-debian", reference.familiar, caller, work)


def _sources(request: BuildDebianRequest) -> tuple[str, ...]:
    if request.mirror is None:
        return ()
    if any(char.isspace() for char in request.mirror):
        raise InvalidArgument(f"mirror {request.mirror[:80]!r} is not a URL")
    return (f"deb {request.mirror} {request.suite} main",)


async def import_(
    core: Core, operations: Operations, job: jobs.ImportJob, names: tuple[str, ...], caller: Caller
) -> Operation:
    """Read the uploaded archive ``job.source``; it is removed at the end."""

    async def work(running: Running) -> dict[str, object]:
        try:
            result = await _run(job, running)
            return await _record(core, result, names, caller, "import")
        finally:
            await asyncio.to_thread(_unlink, job.source)

    return await operations.start("image.import", names[0] if names else "archive", caller, work)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)  # noqa: PTH108
    except FileNotFoundError:
        return


async def _run(job: jobs.Job, running: Running) -> jobs.Result:
    def progress(told: jobs.Progress) -> None:
        running.tell(Progress(told.item, told.stage, told.current_bytes, told.total_bytes, told.text))

    return await run_job(job, progress)


async def _record(
    core: Core, result: jobs.Result, names: tuple[str, ...], caller: Caller, action: str, *, origin: str = ""
) -> dict[str, object]:
    """Let hostd take the layers over, then make the images visible; the worker's lease holds until then."""
    try:
        for record in result.images:
            await core.db.write(
                lambda db, r=record: journal.begin(db, "image.adopt", r.manifest_digest, core.clock())  # type: ignore[misc]
            )
        await adopt(core, result.images)
        at = core.clock()

        def work(db: sqlite3.Connection) -> None:
            for record in result.images:
                wanted = names if len(result.images) == 1 and names else record.names
                imagestore.put(db, record, wanted[:MAX_NAMES], at)
                if origin:
                    imagestore.note_origin(db, record.manifest_digest, origin, at)
                journal.end_all(db, record.manifest_digest)
                name = wanted[0] if wanted else record.config_digest
                events.add(db, at, "image", record.config_digest, action, name=name, digest=record.manifest_digest)
                audit.append(
                    db, at, caller.who, f"image.{action}", record.config_digest, digest=record.manifest_digest,
                    names=list(wanted[:MAX_NAMES]),
                )  # fmt: skip

        await core.db.write(work)
        core.events.wake()
    finally:
        await asyncio.to_thread(leases.release, core.images, result.lease)
    first = result.images[0] if result.images else None
    return {
        "images": [image.config_digest for image in result.images],
        "digest": first.manifest_digest if first else "",
        "id": first.config_digest if first else "",
        "names": list(names or (first.names if first else ())),
        "transferred_bytes": result.transferred_bytes,
        "form": result.form,
    }


async def recover(core: Core) -> None:
    """An adoption that a crash interrupted: the image never became visible, its layers are garbage until it is pulled
    again (then they are found at hostd and used).
    """

    def work(db: sqlite3.Connection) -> None:
        for entry in journal.pending(db):
            if entry.kind == "image.adopt":
                journal.end(db, entry.number)

    await core.db.write(work)


async def adopt(core: Core, images: Iterable[ImageRecord]) -> None:
    """Hand every layer of *images* that hostd does not have over to it."""
    have: set[str] | None = None
    for image in images:
        for layer in await asyncio.to_thread(core.images.layer_records, image):
            hex_ = digest_hex(layer.squashfs_digest)
            known = await core.db.read(
                lambda db, h=hex_: db.execute("SELECT adopted FROM layers WHERE hex=?", (h,)).fetchone()  # type: ignore[misc]
            )
            if known is not None and known[0]:
                # Converted once more (an import does that): hostd has it, so the copy that waits is not needed.
                await asyncio.to_thread(_unlink, str(core.images.staged_path(layer.squashfs_digest)))
                continue
            if have is None:
                have = await hostd_layers(core)
            if hex_ not in have:
                await ask(core.hostd, LayerAdopt(hex_), Done, timeout_s=600.0)
                have.add(hex_)
            row = (hex_, layer.diff_id, layer.squashfs_bytes, 1)
            await core.db.write(
                lambda db, r=row: db.execute("INSERT OR REPLACE INTO layers VALUES (?, ?, ?, ?)", r)  # type: ignore[misc]
            )


async def ready(core: Core, row: imagestore.ImageRow, reference: str) -> Image:
    """What a container needs of the image, its layers as hostd mounts them now."""
    if row.manifest_digest not in core.resolved:
        await convert_anew(core, row.the_record())
    return await imagestore.resolved(core, row, reference)


async def layers_now(core: Core, manifest_digest: str, layers: tuple[str, ...]) -> tuple[str, ...]:
    """The layers of a container that was never made: *layers*, but for those that were converted anew since."""
    image = core.resolved.get(manifest_digest)
    if image is None:
        try:
            row = await core.db.read(lambda db: imagestore.find(db, manifest_digest))
        except CasemateError:
            return layers  # the image was removed by force; hostd tells whether it has them
        image = await ready(core, row, manifest_digest)
    return image.layers


async def convert_anew(core: Core, record: ImageRecord) -> None:
    """Make those layers of an image that were converted with another ``id_shift`` anew, and hand them over.

    Happens once after ``userns.idmap``, or the kernel, was changed. What the layers were before stays at hostd until
    no container uses it, and the next collection.
    """
    async with core.lock(f"convert-{record.manifest_digest}"):
        stale = await asyncio.to_thread(_stale, core, record)
        if not stale:
            return
        job = jobs.ConvertJob(state=core.settings.text("paths.state"), layers=stale, limits=limits(core))
        result = await run_job(job)
        try:
            await adopt(core, (record,))
        finally:
            await asyncio.to_thread(leases.release, core.images, result.lease)


def _stale(core: Core, record: ImageRecord) -> tuple[tuple[str, str], ...]:
    """(blob digest, diff_id) of the layers that cannot be mounted as hostd mounts now; each once."""
    known = core.images.layer_records(record)
    wrong = [ref for ref, layer in zip(record.layers, known, strict=True) if layer.id_shift != core.id_shift]
    return tuple(dict.fromkeys((ref.digest, ref.diff_id) for ref in wrong))


async def hostd_layers(core: Core) -> set[str]:
    """The layers that hostd has."""
    found: set[str] = set()
    after = ""
    for _ in range(1000):
        page = await ask(core.hostd, LayerList(after), Layers)
        found.update(hex_ for hex_, _ in page.layers)
        after = page.next_after
        if not after:
            break
    return found


async def tag(core: Core, request: TagRequest, caller: Caller) -> None:
    """Give an image another name."""
    target = parse_reference(request.target)
    if target.digest is not None:
        raise InvalidArgument(f"{request.target} holds a digest; a tag is NAME[:TAG]")

    def work(db: sqlite3.Connection) -> None:
        row = imagestore.find(db, request.source)
        imagestore.set_name(db, str(target), row.manifest_digest)
        at = core.clock()
        events.add(db, at, "image", row.config_digest, "tag", name=str(target))
        audit.append(db, at, caller.who, "image.tag", row.config_digest, name=str(target))

    await core.db.write(work)
    core.events.wake()


def _summary(
    row: imagestore.ImageRow, record: ImageRecord, names: tuple[str, ...], counts: dict[str, int], uses: dict[str, int]
) -> ImageSummary:
    shared = sum(layer.size_bytes for layer in record.layers if uses.get(layer.diff_id, 0) > 1)
    return ImageSummary(
        id=row.config_digest, digest=row.manifest_digest, names=names, platform=str(record.platform),
        created_at=record.created, size_bytes=record.size_bytes, shared_bytes=shared,
        containers=counts.get(row.manifest_digest, 0), labels=record.config.labels,
    )  # fmt: skip


def _counts(db: sqlite3.Connection) -> dict[str, int]:
    return dict(db.execute("SELECT image_digest, count(*) FROM containers GROUP BY image_digest"))


def layer_uses(records: Iterable[ImageRecord]) -> dict[str, int]:
    """How many images hold each layer."""
    uses: dict[str, int] = {}
    for record in records:
        for diff_id in {layer.diff_id for layer in record.layers}:
            uses[diff_id] = uses.get(diff_id, 0) + 1
    return uses


async def listing(core: Core, text: str) -> ImageList:
    """Images whose names or id hold *text*."""

    def work(db: sqlite3.Connection) -> ImageList:
        found = [(row, row.the_record(), names) for row, names in imagestore.all_images(db)]
        counts, uses = _counts(db), layer_uses(record for _, record, _ in found)
        rows = (_summary(row, record, names, counts, uses) for row, record, names in found)
        return ImageList(tuple(r for r in rows if not text or text in r.id or any(text in n for n in r.names)))

    return await core.db.read(work)


async def inspect(core: Core, text: str) -> ImageDetail:
    def work(db: sqlite3.Connection) -> tuple[imagestore.ImageRow, tuple[str, ...], dict[str, int], dict[str, int]]:
        row = imagestore.find(db, text)
        uses = layer_uses(other.the_record() for other, _ in imagestore.all_images(db))
        return row, imagestore.names_of(db, row.manifest_digest), _counts(db), uses

    row, names, counts, uses = await core.db.read(work)
    record = row.the_record()
    manifest = await asyncio.to_thread(
        core.images.read_blob, row.manifest_digest, core.settings.number("image.max_manifest_bytes")
    )
    return ImageDetail(
        summary=_summary(row, record, names, counts, uses),
        config=msgspec.to_builtins(record.config),
        layers=tuple(msgspec.to_builtins(layer) for layer in record.layers),
        manifest=msgspec.json.decode(manifest, type=dict[str, object]),
    )


async def history(core: Core, text: str) -> HistoryAnswer:
    """The image's history, the newest first, with the size of each layer."""
    row = await core.db.read(lambda db: imagestore.find(db, text))
    record = row.the_record()
    sizes = [layer.size_bytes for layer in record.layers]
    rows: list[HistoryRow] = []
    for entry in record.history:
        size = 0 if entry.empty_layer or not sizes else sizes.pop(0)
        rows.append(HistoryRow(entry.created, entry.created_by, size, entry.comment, entry.empty_layer))
    rows += [HistoryRow("", "", size) for size in sizes]
    return HistoryAnswer(tuple(reversed(rows)))
