"""A layer that is at hand (in an archive, from a program's pipe) becomes a blob, a squashfs file and a record.

Worker only. An uncompressed layer may be packed on its way (gzip, level 1 through isal): a blob is kept for pushes
and exports, and three times smaller costs less than the disk.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

from isal import isal_zlib

from casemate.image import media
from casemate.image.convert import convert_layer
from casemate.image.decompress import GZIP, PLAIN, ZSTD, sniff
from casemate.image.errors import DigestMismatch, LayerInvalid, from_os_error
from casemate.image.records import LayerRecord, LayerRef
from casemate.image.transfer import Feeder, read_blob_chunks
from casemate.image.workspace import Meter, Workspace

#: isal's level 1; its output is the same for the same input and version.
GZIP_LEVEL = 1
_TYPES = {PLAIN: media.OCI_TAR, GZIP: media.OCI_TAR_GZIP, ZSTD: media.OCI_TAR_ZSTD}


class _Blob:
    """Writes a blob of unknown digest while its chunks flow by."""

    def __init__(
        self, work: Workspace, source: Iterator[bytes], wanted: str | None, item: str, total: int, *, pack: bool
    ) -> None:
        self._work = work
        self._source = source
        self._wanted = wanted
        self._meter = Meter(work.report, item, "importing", total)
        self._pack = pack
        self.form = ""
        self.digest = ""
        self.size_bytes = 0

    def chunks(self) -> Iterator[bytes]:
        """Every chunk of the source, unchanged; at the end the blob is stored and *digest* is known."""
        path = self._work.store.temporary("ingest")
        hashed = hashlib.sha256()
        packer = None
        try:
            with path.open("xb") as stream:
                for chunk in self._source:
                    self._work.check()
                    if not self.form:
                        self.form = sniff(chunk)
                        packer = (
                            isal_zlib.compressobj(GZIP_LEVEL, wbits=31)
                            if self._pack and self.form not in (GZIP, ZSTD)
                            else None
                        )
                    data = packer.compress(chunk) if packer else chunk
                    hashed.update(data)
                    self.size_bytes += stream.write(data)
                    self._meter.add(len(chunk))
                    yield chunk
                if packer:
                    data = packer.flush()
                    hashed.update(data)
                    self.size_bytes += stream.write(data)
                    self.form = GZIP
                stream.flush()
                os.fdatasync(stream.fileno())
            self.digest = f"sha256:{hashed.hexdigest()}"
            if self._wanted is not None and self.digest != self._wanted:
                raise DigestMismatch(
                    f"layer {self._wanted} hashes to {self.digest}", wanted=self._wanted, found=self.digest
                )
            self._work.lease.add((self.digest,))
            self._work.store.commit_blob(path, self.digest)
        except OSError as error:
            raise from_os_error(error, "storing a layer") from error
        finally:
            path.unlink(missing_ok=True)


def take_layer(
    work: Workspace,
    source: Iterator[bytes],
    *,
    item: str,
    total_bytes: int = 0,
    digest: str | None = None,
    diff_id: str | None = None,
    media_type: str | None = None,
    pack: bool = False,
) -> tuple[LayerRef, LayerRecord]:
    """Store and convert one layer read from *source*.

    With *digest* and *diff_id* given the content must match them. *media_type* None: it is told from the content.
    """
    blob = _Blob(work, source, digest, item, total_bytes, pack=pack)
    feeder = Feeder(blob.chunks(), work.stop)
    try:

        def open_source(attempt: int) -> Iterator[bytes]:
            if attempt == 0:
                return iter(feeder)
            for _ in feeder:
                pass
            return read_blob_chunks(work, blob.digest)

        record = convert_layer(work.store, diff_id, work.limits, open_source, lease=work.lease)
        for _ in feeder:
            pass
    finally:
        feeder.close()
    work.staged[record.squashfs_digest] = record
    if media_type is None:
        if blob.form not in _TYPES:
            raise LayerInvalid(f"{item} is packed as {blob.form}, which no registry takes")
        media_type = _TYPES[blob.form]
    return LayerRef(blob.digest, record.diff_id, media_type, blob.size_bytes), record
