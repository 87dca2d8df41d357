"""The image store on disk: blobs, layer records, what is under way, and locks. Light: casemated imports it.

::

    blobs/sha256/<hex>      manifests, configurations, compressed layers; the name is the content's digest
    layers/<hex>.json       a LayerRecord; the name is the layer's diff_id
    staging/<hex>.sqfs      finished squashfs files that wait for adoption by hostd; the name is their digest
    ingest/<hex>            partial downloads, resumed by Range
    evidence/<hex>-<hex>.json   signatures and attestations of a manifest, as one repository had them
    locks/, leases/         who works on what, who needs what

Whatever becomes visible is written beside its place, synced, and renamed, so a crash leaves it whole or absent.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

import msgspec

from casemate.image.errors import from_os_error
from casemate.image.records import ImageRecord, LayerRecord
from casemate.spec.errors import Corrupt, NotFound
from casemate.spec.ids import check_digest, digest_hex

FOLDERS = ("blobs/sha256", "layers", "ingest", "staging", "locks", "leases", "uploads", "evidence")


class Store:
    """The store below *root*; making one touches nothing."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def create(self) -> None:
        """Make the folders; existing ones are left as they are."""
        for folder in FOLDERS:
            (self.root / folder).mkdir(mode=0o750, parents=True, exist_ok=True)

    # blobs

    def blob_path(self, digest: str) -> Path:
        return self.root / "blobs/sha256" / digest_hex(digest)

    def ingest_path(self, digest: str) -> Path:
        return self.root / "ingest" / digest_hex(digest)

    def has_blob(self, digest: str, size_bytes: int | None = None) -> bool:
        """Whether the blob is here (and, when given, has *size_bytes*)."""
        try:
            status = self.blob_path(digest).stat()
        except FileNotFoundError:
            return False
        return size_bytes is None or status.st_size == size_bytes

    def open_blob(self, digest: str) -> BinaryIO:
        """The blob, to be read; its content is not verified here."""
        try:
            return self.blob_path(digest).open("rb")
        except FileNotFoundError as error:
            raise NotFound(f"blob {digest} is not in the store", digest=digest) from error

    def read_blob(self, digest: str, max_bytes: int) -> bytes:
        """A small blob (manifest, configuration), verified; :class:`Corrupt` when it is not what it is called."""
        with self.open_blob(digest) as stream:
            data = stream.read(max_bytes + 1)
        if len(data) > max_bytes or f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise Corrupt(f"blob {digest} in {self.root} does not match its digest", digest=digest)
        return data

    def put_blob(self, data: bytes) -> str:
        """Store a small blob; its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if not self.has_blob(digest, len(data)):
            self.write_whole(self.blob_path(digest), data)
        return digest

    def commit_blob(self, temporary: Path, digest: str) -> None:
        """Give a written, synced and verified file its name."""
        target = self.blob_path(digest)
        temporary.replace(target)
        sync_folder(target.parent)

    # layers

    def layer_path(self, diff_id: str) -> Path:
        return self.root / "layers" / f"{digest_hex(diff_id)}.json"

    def layer_record(self, diff_id: str) -> LayerRecord | None:
        """What conversion learnt of the layer, or None when it was never converted."""
        try:
            data = self.layer_path(diff_id).read_bytes()
        except FileNotFoundError:
            return None
        try:
            record = msgspec.json.decode(data, type=LayerRecord)
            check_digest(record.squashfs_digest)
        except Exception as error:
            raise Corrupt(f"layer record {diff_id} cannot be read: {error}", diff_id=diff_id) from error
        if record.diff_id != diff_id:
            raise Corrupt(f"layer record {diff_id} is that of {record.diff_id[:80]!r}", diff_id=diff_id)
        return record

    def put_layer_record(self, record: LayerRecord) -> None:
        self.write_whole(self.layer_path(record.diff_id), msgspec.json.encode(record))

    def layer_records(self, image: ImageRecord) -> list[LayerRecord]:
        """The records of *image*'s layers, bottom to top; :class:`NotFound` for one that was not converted."""
        records = []
        for layer in image.layers:
            record = self.layer_record(layer.diff_id)
            if record is None:
                raise NotFound(
                    f"layer {layer.diff_id} of image {image.config_digest} was not converted", diff_id=layer.diff_id
                )
            records.append(record)
        return records

    def staged_path(self, squashfs_digest: str) -> Path:
        """Where a finished squashfs file waits for adoption by hostd."""
        return self.root / "staging" / f"{digest_hex(squashfs_digest)}.sqfs"

    def temporary(self, folder: str, suffix: str = "") -> Path:
        """A fresh name in *folder*; what bears such a name after its writer's death is garbage."""
        return self.root / folder / f"tmp-{os.getpid()}-{secrets.token_hex(8)}{suffix}"

    def sweep(self, pid: int) -> None:
        """Remove the temporary files of the process *pid* (which ends, or has ended)."""
        for folder in FOLDERS:
            for path in (self.root / folder).glob(f"tmp-{pid}-*"):
                path.unlink(missing_ok=True)

    # locks

    @contextlib.contextmanager
    def lock(self, name: str, *, shared: bool = False) -> Generator[None]:
        """Hold the lock *name* (waits; flock, so that it goes with its holder)."""
        descriptor = self._acquire(name, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        assert descriptor is not None
        try:
            yield
        finally:
            os.close(descriptor)

    def try_lock(self, name: str) -> int | None:
        """The lock's descriptor, or None when somebody holds it."""
        return self._acquire(name, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _acquire(self, name: str, how: int) -> int | None:
        path = self.root / "locks" / name
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, how)
                # Garbage collection removes lock files that it holds: a file that is no longer there locks nobody out.
                if os.fstat(descriptor).st_ino == os.stat(path).st_ino:  # noqa: PTH116 - compared with fstat
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                return None
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def write_whole(self, target: Path, data: bytes) -> None:
        """Let *target* hold *data*: written beside it, synced, renamed."""
        temporary = target.with_name(f"tmp-{os.getpid()}-{secrets.token_hex(8)}")
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
            sync_folder(target.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise from_os_error(error, f"writing {target}") from error


def sync_folder(folder: Path) -> None:
    """Make the names in *folder* durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
