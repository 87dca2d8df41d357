"""The pull job: reference -> index -> manifest -> configuration -> layers. Worker only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from typing import TypeVar

from casemate.image import media
from casemate.image.artifacts import fetch
from casemate.image.errors import DigestUnpublished, ManifestInvalid
from casemate.image.http import Client
from casemate.image.jobs import Progress, PullJob, Result
from casemate.image.manifest import choose_platform, decode_index, decode_manifest, document_type, image_record
from casemate.image.records import LayerRecord, LayerRef
from casemate.image.referring import Referring, Wanted, keep
from casemate.image.registry import Repositories, Repository
from casemate.image.transfer import bring_layer
from casemate.image.workspace import Stopped, Workspace
from casemate.spec.errors import CasemateError
from casemate.spec.reference import Reference, parse_reference

T = TypeVar("T")


def pull(work: Workspace, job: PullJob) -> Result:
    """Do *job*; what it stored is leased, and the squashfs files that it made wait in ``staging/``."""
    reference = parse_reference(job.reference)
    with closing(Client(job.endpoints.ca_files, work.stop, work.patience)) as client:
        return _pull(work, job, reference, client)


def _pull(work: Workspace, job: PullJob, reference: Reference, client: Client) -> Result:
    places = Repositories(client, reference, job.endpoints)
    bound = work.limits.max_manifest_bytes
    work.report(Progress(str(reference), "resolving"))
    data, transport, digest = places.first(lambda place: place.manifest(reference.wanted, bound))
    check_published(reference, digest, job.published)
    kind = document_type(data, transport, f"{reference}", bound)
    index_digest = None
    index_data = b""
    if kind in media.INDEXES:
        entry = choose_platform(decode_index(data, str(reference), bound), job.platform, str(reference))
        index_digest, index_data = digest, data
        data, transport, digest = places.first(lambda place: place.manifest(entry.digest, bound))
        kind = document_type(data, transport, f"manifest {digest}", bound)
        if kind in media.INDEXES:
            raise ManifestInvalid(f"{reference} is an index of indexes: entry {digest} is {kind}")
    manifest = decode_manifest(data, f"manifest {digest}", bound)
    config_data = places.first(lambda place: place.small_blob(manifest.config.digest, manifest.config.size, bound))
    names = (str(reference),) if reference.tag is not None else ()
    record = image_record(data, kind, config_data, names, index_digest, digest, bound)
    work.lease.add(sorted(record.digests()))
    subjects = (digest,) if index_digest is None else (digest, index_digest)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="referring") as beside:
        asked = beside.submit(bring_referring, work, places, reference, subjects, job.referring)
        done = bring_layers(work, client, places.first, record.layers, convert=job.convert)
        asked.result()
    # The documents come last: an image whose manifest is in the store has its layers there too.
    for document in (config_data, data, index_data):
        if document:
            work.store.put_blob(document)
    return Result(
        images=(record,),
        layers=tuple(layer for layer, _ in done if layer is not None),
        staged=tuple(work.staged),
        lease=work.lease.name,
        transferred_bytes=sum(count for _, count in done),
        digest=digest,
    )


def check_published(reference: Reference, digest: str, published: str) -> None:
    """The digest that the tag leads to must be the one that its publisher signed, where one is known."""
    if published and digest != published:
        raise DigestUnpublished(
            f"{reference} leads to {digest} at the registry; its publisher signed {published}",
            found=digest, published=published,
        )  # fmt: skip


def bring_referring(
    work: Workspace, places: Repositories, reference: Reference, subjects: tuple[str, ...], wanted: Wanted | None
) -> None:
    """Keep what refers to the image beside it. A registry that fails here fails no pull: an image whose signatures are
    not known is one without, and policy answers that."""
    repository = f"{reference.registry}/{reference.repository}"
    for subject in subjects if wanted is not None else ():
        assert wanted is not None
        try:
            found = fetch(places, subject, wanted)
        except CasemateError as error:
            work.report(Progress(subject, "signatures", text=f"not known: {error.detail}"[:400]))
            continue
        keep(work.store, Referring(subject, repository, time.time(), found))


Outcome = tuple[LayerRecord | None, int]


def bring_layers(
    work: Workspace,
    client: Client,
    first: Callable[[Callable[[Repository], Outcome]], Outcome],
    layers: Iterable[LayerRef],
    *,
    convert: bool,
) -> list[Outcome]:
    """Every layer once, ``image.parallel_layers`` at a time; the first failure stops the others."""
    distinct = list({layer.digest: layer for layer in layers}.values())

    def bring(layer: LayerRef) -> Outcome:
        work.check()
        return first(lambda place: bring_layer(work, client, place, layer, convert=convert))

    return in_parallel(work.stop, work.limits.parallel_layers, [partial(bring, layer) for layer in distinct])


def in_parallel(stop: threading.Event, width: int, tasks: Sequence[Callable[[], T]]) -> list[T]:
    """The results of *tasks* in order; when one fails *stop* is set, the others end, and its error is raised."""
    with ThreadPoolExecutor(max_workers=max(1, width), thread_name_prefix="layer") as pool:
        futures = [pool.submit(task) for task in tasks]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failures = [error for future in done if (error := future.exception()) is not None]
        if failures:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise next((error for error in failures if not isinstance(error, Stopped)), failures[0])
        return [future.result() for future in futures]
