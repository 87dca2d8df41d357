"""The child that fetches and checks signatures: ``python -m casemate.node.evidence_child``.

It serves casemated one job after the other until its input ends: hostile JSON, DER and PEM are read here and not in
the daemon, and the libraries are loaded once. It bounds itself before it reads the first byte.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from casemate.host import ownlimits
from casemate.image.artifacts import fetch
from casemate.image.attach import Attachment, attach
from casemate.image.errors import WorkerFailed
from casemate.image.http import Client
from casemate.image.jobs import Endpoints, Failure
from casemate.image.manifest import Descriptor, decode_index, document_type
from casemate.image.referring import Artifact, Referring, keep, kept
from casemate.image.registry import Repositories, Repository
from casemate.image.store import Store
from casemate.image.worker import MAX_DESCRIPTORS
from casemate.node.evidence_jobs import (
    FIRST,
    JOBS,
    WANTED,
    Answer,
    Attached,
    AttachJob,
    Checked,
    CheckJob,
    EvidenceJob,
    Found,
    ResolveJob,
)
from casemate.node.freshness_jobs import RefreshJob, TagJob
from casemate.node.warm import MAX_MESSAGE_BYTES
from casemate.spec.errors import CasemateError, NotFound
from casemate.spec.reference import Reference, parse_reference
from casemate.trust.signature.cosign import BUNDLE_TYPES, DSSE_TYPE, SIGNATURE_ANNOTATION, SIMPLE_SIGNING
from casemate.trust.signature.notation import ENVELOPE_TYPE
from casemate.trust.signature.statement import Statement
from casemate.trust.signature.verify import Document, DocumentKind, Evidence, verify

if TYPE_CHECKING:
    from casemate.node.freshness_child import Standings

#: Python, the libraries, and the documents of one image several times over.
MEMORY_BYTES = 2 << 30
_KINDS: dict[str, DocumentKind] = {
    SIMPLE_SIGNING: "cosign-simple", DSSE_TYPE: "dsse", ENVELOPE_TYPE: "notation-jws",
    **dict.fromkeys(BUNDLE_TYPES, "cosign-bundle"),
}  # fmt: skip


class Served:
    """What stays between two jobs: connections to registries (no credential stays; each job has its own), and what
    publishers showed, verified.
    """

    def __init__(self) -> None:
        self.client = Client()
        #: Verified metadata of publishers, by key; the one that was asked last comes last.
        self.standings: Standings = {}

    def do(self, job: EvidenceJob) -> Answer:
        match job:
            case CheckJob():
                return check(self.client, job)
            case ResolveJob():
                return resolve(self.client, parse_reference(job.reference), job.endpoints, job.max_manifest_bytes)
            case AttachJob():
                return put(self.client, job)
            case RefreshJob() | TagJob():
                from casemate.node import freshness_child  # noqa: PLC0415 - and tuf with it

                if isinstance(job, TagJob):
                    return freshness_child.tag(job, self.standings)
                return freshness_child.refreshed(self.client, job)


def resolve(client: Client, reference: Reference, endpoints: Endpoints, max_bytes: int) -> Found:
    """What the registry has under *reference* now."""
    places = Repositories(client, reference, endpoints)
    data, transport, digest = places.first(lambda place: place.manifest(reference.wanted, max_bytes))
    return Found(digest, document_type(data, transport, str(reference), max_bytes), len(data))


def check(client: Client, job: CheckJob) -> Checked:
    """Fetch (or read what was kept) and verify each subject; what vouches for an index vouches for its manifests."""
    reference = parse_reference(job.reference)
    repository = f"{reference.registry}/{reference.repository}"
    subjects = job.subjects
    if not subjects:
        assert job.endpoints is not None
        subjects = (resolve(client, reference, job.endpoints, job.max_manifest_bytes).digest,)
    now = datetime.fromtimestamp(job.now_s, UTC)
    store = Store(job.state)
    if job.endpoints is not None and job.enough and not store.has_blob(subjects[0]):
        first = fetch(Repositories(client, reference, job.endpoints), subjects[0], FIRST)
        seen = verify(subjects[0], repository, documents(first), job.signers, now)
        if len(seen.signers & set(job.counting)) >= job.enough:  # more documents could only add to it
            return Checked(subjects[0], seen, "registry", job.now_s)
    found: list[Evidence] = []
    times: list[float] = []
    for number, subject in enumerate(subjects):
        referring = _referring(client, store, job, reference, subject)
        times.append(referring.fetched_at)
        if number and not _names(store, subject, subjects[0], job.max_manifest_bytes):
            continue
        found.append(verify(subject, repository, documents(referring.artifacts), job.signers, now))
    source = "stored" if job.endpoints is None else "registry"
    return Checked(subjects[0], _joined(subjects[0], found, predicates=job.predicates), source, min(times))


def _referring(client: Client, store: Store, job: CheckJob, reference: Reference, subject: str) -> Referring:
    repository = f"{reference.registry}/{reference.repository}"
    if job.endpoints is None:
        return kept(store, subject, repository) or Referring(subject, repository, 0.0, ())
    fetched = Referring(
        subject, repository, job.now_s, fetch(Repositories(client, reference, job.endpoints), subject, WANTED)
    )
    if job.keep and store.has_blob(subject):
        keep(store, fetched)
    return fetched


def _names(store: Store, index: str, manifest: str, max_bytes: int) -> bool:
    """Whether the stored index *index* names *manifest*: only then its signatures are about this image."""
    try:
        data = store.read_blob(index, max_bytes)
    except NotFound:
        return False
    return any(row.digest == manifest for row in decode_index(data, f"index {index}", max_bytes).manifests)


def documents(artifacts: Sequence[Artifact]) -> tuple[Document, ...]:
    """Artifacts as the verifier takes them; what it knows nothing of is left out."""
    return tuple(
        Document(_KINDS[row.kind], row.data, row.annotations.get(SIGNATURE_ANNOTATION, ""))
        for row in artifacts
        if row.kind in _KINDS
    )


def _joined(digest: str, found: Sequence[Evidence], *, predicates: tuple[str, ...]) -> Evidence:
    def short(statement: Statement) -> Statement:
        if statement.predicate_type.startswith(predicates):
            return statement
        return msgspec.structs.replace(statement, predicate=None, subject=())

    return Evidence(
        digest,
        tuple(row for one in found for row in one.verified),
        tuple(line for one in found for line in one.refused)[:200],
        sum(one.documents for one in found),
        tuple((name, short(statement)) for one in found for name, statement in one.attestations),
    )


def put(client: Client, job: AttachJob) -> Attached:
    """Push each blob; the image must be there, since a signature of nothing helps nobody."""
    reference = parse_reference(job.reference)
    place = Repository(client, reference.registry, reference.repository, "pull,push", job.endpoints)
    data, transport, digest = place.manifest(job.digest, job.max_manifest_bytes)
    kind = document_type(data, transport, f"manifest {digest}", job.max_manifest_bytes)
    subject = Descriptor(digest, len(data), kind)
    manifests = tuple(
        attach(place, subject, Attachment(row.kind, row.data, row.annotations, row.suffix, row.type, row.on_manifest))
        for row in job.blobs
    )
    if job.keep and Store(job.state).has_blob(digest):
        repository = f"{reference.registry}/{reference.repository}"
        found = fetch(Repositories(client, reference, job.endpoints), digest, WANTED)
        keep(Store(job.state), Referring(digest, repository, job.now_s, found))
    return Attached(manifests)


def bound_self() -> None:
    import signal  # noqa: PLC0415 - once

    ownlimits.bound_self(
        {
            resource.RLIMIT_NOFILE: MAX_DESCRIPTORS,
            resource.RLIMIT_FSIZE: MAX_MESSAGE_BYTES * 2,
            resource.RLIMIT_AS: MEMORY_BYTES,
        },
        parent_ended=signal.SIGTERM,
    )


def main() -> int:
    """Serve until the input ends."""
    bound_self()
    source, target = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(2, 1)  # what a library may print must not look like an answer
    served = Served()
    while head := source.read(4):
        length = int.from_bytes(head, "big")
        if len(head) < 4 or length > MAX_MESSAGE_BYTES:
            return 1
        _send(target, msgspec.json.encode(_answer(served, source.read(length))))
    return 0


def _answer(served: Served, data: bytes) -> Answer:
    try:
        return served.do(JOBS.decode(data))
    except CasemateError as error:
        return Failure(error.to_problem())
    except msgspec.MsgspecError as error:
        return Failure(WorkerFailed(f"the job cannot be read: {error}").to_problem())
    except (MemoryError, OSError) as error:
        return Failure(WorkerFailed(f"signatures: {type(error).__name__}: {error}"[:300]).to_problem())


def _send(descriptor: int, data: bytes) -> None:
    if len(data) > MAX_MESSAGE_BYTES:
        data = msgspec.json.encode(Failure(WorkerFailed(f"an answer of {len(data)} bytes").to_problem()))
    view = memoryview(len(data).to_bytes(4, "big") + data)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    sys.exit(main())
