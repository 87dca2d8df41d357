"""Scans as casemated asks for them: which layers, from which base, with which ignores; the child does the work."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable

import msgspec

from casemate import __version__
from casemate.image import jobs as image_jobs
from casemate.image import leases
from casemate.image.records import ImageRecord
from casemate.node import images, imagestore
from casemate.node.clock import rfc3339
from casemate.node.core import Core
from casemate.node.imagejobs import run_job
from casemate.node.trust import child
from casemate.node.trust.jobs import Answer, ReportForm, ScanJob
from casemate.spec.api.scan import ScanLayer
from casemate.spec.errors import CasemateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.trust.rules.model import Rule
    from casemate.trust.signature.verify import Evidence

#: Steps of a Dockerfile can be whole scripts.
MAX_STEP_CHARS = 200
_BASE_NAME = "org.opencontainers.image.base.name"
#: A list that is damaged is made anew; more than once, and something else is wrong.
ATTEMPTS = 3
SCAN_TIMEOUT_S = 300.0


def today(core: Core) -> str:
    """The day by the node's clock, ``YYYY-MM-DD`` in UTC."""
    return rfc3339(core.clock())[:10]


async def scan(
    core: Core, reference: str, form: ReportForm, said: tuple[Rule | None, Evidence | None] = (None, None)
) -> Answer:
    """The scan of a stored image; *said*: the rule for it, and what its signers say.

    Raises what the feed's state is (missing, damaged) as its errors.
    """
    row = await core.db.read(lambda db: imagestore.find(db, reference))
    record = row.the_record()
    await complete(core, record)
    layers = await core.db.read(lambda db: layer_notes(db, record))
    base = await asyncio.to_thread(_annotated_base, core, record)
    if base and not any(layer.base for layer in layers):
        layers = tuple(msgspec.structs.replace(layer, base=base) for layer in layers[:1]) + layers[1:]
    job = ScanJob(
        state=core.settings.text("paths.state"), digest=row.manifest_digest, name=reference, layers=layers,
        today=today(core), created=rfc3339(core.clock()), version=__version__, form=form,
        max_feed_age_days=core.settings.number("feed.max_age_days"),
        ignores=core.trust.policy.ignores if core.trust.policy is not None else (),
        rule=said[0], evidence=said[1],
    )  # fmt: skip
    for attempt in range(ATTEMPTS):
        try:
            return await child.run(job, timeout_s=SCAN_TIMEOUT_S)
        except CasemateError as error:
            damaged = _damaged(error)
            if damaged is None or attempt == ATTEMPTS - 1:
                raise
            await complete(core, record, also=damaged)
    raise AssertionError("unreachable")


def _damaged(error: CasemateError) -> str | None:
    """The layer whose list could not be read, when that is what *error* says."""
    problem = error.to_problem()
    facts = problem.get("facts")
    if problem.get("code") != "trust.layer_not_scanned" or not isinstance(facts, dict):
        return None
    found = facts.get("diff_id")
    return found if isinstance(found, str) else None


async def complete(core: Core, record: ImageRecord, also: str = "") -> None:
    """Have the package list of each layer made that has none (and that of the layer *also*), from its kept blob."""
    async with core.lock(f"lists-{record.manifest_digest}"):
        missing = await asyncio.to_thread(_missing, core, record, also)
        if not missing:
            return
        job = image_jobs.ConvertJob(state=core.settings.text("paths.state"), layers=missing, limits=images.limits(core))
        result = await run_job(job)
        try:
            await images.adopt(core, (record,))
        finally:
            await asyncio.to_thread(leases.release, core.images, result.lease)


def _missing(core: Core, record: ImageRecord, also: str = "") -> tuple[tuple[str, str], ...]:
    """(blob digest, diff_id) of the layers without a list, each once; that of the layer *also* is dropped before."""
    from casemate.trust.packages.apply import CONTENTS_FOLDER, ContentsStore  # noqa: PLC0415 - and the scanner with it

    lists = ContentsStore(core.images.root / CONTENTS_FOLDER)
    if also:
        lists.drop(also)
    rows = [(layer.digest, layer.diff_id) for layer in record.layers if not lists.has(layer.diff_id)]
    return tuple(dict.fromkeys(rows))


def layer_notes(db: sqlite3.Connection, record: ImageRecord) -> tuple[ScanLayer, ...]:
    """What is known of each layer: the step that made it, and the stored image that it came with."""
    steps = [entry.created_by or entry.comment for entry in record.history if not entry.empty_layer]
    own = [layer.diff_id for layer in record.layers]
    bases = [""] * len(own)
    for count, name in sorted(_bases(db, record.manifest_digest, own)):
        # The shortest comes first: a layer belongs to the smallest image that brings it.
        for place in range(count):
            bases[place] = bases[place] or name
    return tuple(
        ScanLayer(diff_id, (steps[number] if number < len(steps) else "")[:MAX_STEP_CHARS], bases[number])
        for number, diff_id in enumerate(own)
    )


def _bases(db: sqlite3.Connection, digest: str, own: list[str]) -> Iterable[tuple[int, str]]:
    """(number of layers, name) of each stored image whose layers are the lowest of *own*, but not all."""
    for row, names in imagestore.all_images(db):
        if row.manifest_digest == digest or not names:
            continue
        layers = [layer.diff_id for layer in row.the_record().layers]
        if 0 < len(layers) < len(own) and own[: len(layers)] == layers:
            yield len(layers), names[0]


def _annotated_base(core: Core, record: ImageRecord) -> str:
    """What the manifest says that the image was built on."""
    try:
        data = core.images.read_blob(record.manifest_digest, core.settings.number("image.max_manifest_bytes"))
        found = msgspec.json.decode(data, type=dict[str, object]).get("annotations")
    except (CasemateError, OSError, msgspec.MsgspecError):
        return ""
    name = found.get(_BASE_NAME) if isinstance(found, dict) else None
    return name[:512] if isinstance(name, str) else ""
