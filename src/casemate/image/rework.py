"""Jobs on what is stored already: convert again, and verify everything. Worker only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from casemate.image.convert import READ_BYTES, convert_layer
from casemate.image.jobs import ConvertJob, Progress, Result
from casemate.image.records import LayerRecord
from casemate.image.transfer import read_blob_chunks
from casemate.image.workspace import Workspace
from casemate.spec.errors import Corrupt
from casemate.spec.ids import check_digest


def convert_again(work: Workspace, job: ConvertJob) -> Result:
    """Make the squashfs of each (blob digest, diff_id) anew; the same bytes come out, so the digest is the same."""
    records = []
    for digest, diff_id in job.layers:
        check_digest(digest)
        check_digest(diff_id)
        work.lease.add((digest, diff_id))
        records.append(convert_blob(work, digest, diff_id))
    return Result(layers=tuple(records), staged=tuple(work.staged), lease=work.lease.name)


def convert_blob(work: Workspace, digest: str, diff_id: str) -> LayerRecord:
    """Convert the stored blob *digest* under the lock of its layer."""

    def open_source(_attempt: int) -> Iterator[bytes]:
        return read_blob_chunks(work, digest)

    with work.hold(f"diff-{diff_id[7:]}", digest):
        work.report(Progress(digest, "converting"))
        record = convert_layer(work.store, diff_id, work.limits, open_source)
    work.staged[record.squashfs_digest] = record
    return record


def verify_store(work: Workspace) -> Result:
    """Read every blob, layer record and staged file; *damaged* names those that are not what they are called."""
    damaged = []
    for folder, suffix in (("blobs/sha256", ""), ("staging", ".sqfs")):
        for path in sorted((work.store.root / folder).iterdir()):
            if path.name.startswith("tmp-"):
                continue
            found = hashlib.sha256()
            try:
                with path.open("rb") as stream:
                    while chunk := stream.read(READ_BYTES):
                        work.check()
                        found.update(chunk)
            except FileNotFoundError:
                continue  # collected, or adopted, since the folder was listed
            if found.hexdigest() + suffix != path.name:
                damaged.append(f"{folder}/{path.name}: its content hashes to {found.hexdigest()}")
    for path in sorted((work.store.root / "layers").iterdir()):
        if not path.name.startswith("tmp-"):
            try:
                work.store.layer_record(f"sha256:{path.name.removesuffix('.json')}")
            except Exception as error:
                detail = error.detail if isinstance(error, Corrupt) else str(error)
                damaged.append(f"layers/{path.name}: {detail}")
    return Result(damaged=tuple(damaged))
